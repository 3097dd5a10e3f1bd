"""What Prometheus scrapes, read by its own parser: every sample has a type and a text, and the counts are those of what was asked."""

import json
import urllib.error
import urllib.request

from common import PASSAGES, QUERY, score, serve
from prometheus_client.parser import text_string_to_metric_families

MODEL = "gemma2_lightweight"


def post(url, body):
    request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status
    except urllib.error.HTTPError as error:
        return error.code


def scrape(url):
    """Families by name."""
    with urllib.request.urlopen(url + "/metrics", timeout=60) as response:
        assert response.headers["content-type"].startswith("text/plain; version=0.0.4"), response.headers
        families = list(text_string_to_metric_families(response.read().decode()))
    names = [family.name for family in families]
    assert len(names) == len(set(names)), f"a family is split: {names}"
    return {family.name: family for family in families}


def value(families, name, **labels):
    # The parser gives the samples of every counter the ending that OpenMetrics wants.
    names = (name, name + "_total")
    found = [sample for family in families.values() for sample in family.samples if sample.name in names]
    matching = [sample.value for sample in found if sample.labels == labels]
    assert len(matching) == 1, f"{name} {labels}: {found}"
    return matching[0]


def check_shape(families):
    for family in families.values():
        assert family.type in ("counter", "gauge", "histogram"), f"{family.name} has the type {family.type}"
        assert family.documentation, f"{family.name} is not described"
        if family.type == "histogram":
            check_histogram(family)


def check_histogram(family):
    """Buckets are cumulative, and the last holds all."""
    series = {}
    for sample in family.samples:
        labels = {name: value for name, value in sample.labels.items() if name != "le"}
        series.setdefault(json.dumps(labels, sort_keys=True), []).append(sample)
    for samples in series.values():
        buckets = [(float(one.labels["le"]), one.value) for one in samples if one.name.endswith("_bucket")]
        assert buckets == sorted(buckets) and buckets[-1][0] == float("inf"), family.name
        assert [count for _, count in buckets] == sorted(count for _, count in buckets), family.name
        (count,) = [one.value for one in samples if one.name.endswith("_count")]
        assert buckets[-1][1] == count, family.name


with serve(MODEL) as address:
    # All that is counted is there before the first request.
    first = scrape(address)
    check_shape(first)
    assert value(first, "te_request_count", method="batch") == 0
    for _ in range(3):
        assert post(address + "/rerank", {"query": QUERY, "texts": PASSAGES, "cutoff_layers": [4]}) == 200
    assert post(address + "/predict", {"inputs": [QUERY, PASSAGES[0]]}) == 200
    assert post(address + "/rerank", {"query": QUERY, "texts": PASSAGES, "cutoff_layers": [99]}) == 422
    assert post(address + "/rerank", {"query": QUERY, "texts": []}) == 400
    families = scrape(address)
    check_shape(families)
    # A request that is refused for what it asks has come in all the same.
    assert value(families, "te_request_count", method="batch") == 4
    assert value(families, "te_request_success", method="batch") == 3
    assert value(families, "te_request_count", method="single") == 1
    assert value(families, "te_request_success", method="single") == 1
    assert value(families, "te_request_failure", err="validation") == 2
    assert value(families, "te_predict_success") == 3 * len(PASSAGES) + 1
    for name in ("te_request_duration", "te_request_queue_duration", "te_predict_inference_duration"):
        assert value(families, name + "_count") == 4, name
    lengths = [one["tokens"] for one in score(MODEL, QUERY, PASSAGES)]
    assert value(families, "te_request_input_length_count") == 3 * len(PASSAGES) + 1
    assert value(families, "te_request_input_length_sum") == 3 * sum(lengths) + lengths[0]
    # Half of the layers of three requests.
    assert value(families, "outcrop_layer_tokens_saved", model=MODEL, by="cutoff") == 3 * sum(lengths) * 4
    assert value(families, "te_queue_size", model=MODEL) == 0
    assert value(families, "outcrop_device_busy_seconds", model=MODEL) > 0
    # Nothing is counted by asking.
    assert value(scrape(address), "te_request_count", method="batch") == 4
