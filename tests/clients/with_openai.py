"""OpenAI's client: embeddings, the list of models, and the errors it makes of ours."""

import array
import base64
import math
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import openai
from common import PASSAGES, outcrop, raises, serve

MODEL = "embed_m3"
KEY = "secret"


def vectors(response):
    assert [item.index for item in response.data] == list(range(len(response.data))), response
    return [item.embedding for item in response.data]


def test_embeddings(client):
    expected = outcrop("embed", MODEL, [{"text": passage} for passage in PASSAGES])
    # What the client asks for by itself, base64, it decodes by itself.
    response = client.embeddings.create(model=MODEL, input=PASSAGES)
    floats = client.embeddings.create(model=MODEL, input=PASSAGES, encoding_format="float")
    for encoded, plain, one in zip(vectors(response), vectors(floats), expected, strict=True):
        # Short as it is written, a float has its bits when it is read again.
        bits = array.array("f", encoded)
        assert bits == array.array("f", plain) == array.array("f", one["embedding"]), (encoded, plain, one)
        assert math.isclose(math.hypot(*bits), 1, rel_tol=1e-5), math.hypot(*bits)
    tokens = sum(one["tokens"] for one in expected)
    assert response.usage.prompt_tokens == response.usage.total_tokens == tokens, response.usage
    assert response.model == MODEL, response.model
    # One text.
    assert vectors(client.embeddings.create(model=MODEL, input=PASSAGES[1])) == vectors(response)[1:2]
    text = client.embeddings.create(model=MODEL, input=PASSAGES[1], encoding_format="base64").data[0].embedding
    if isinstance(text, str):
        assert array.array("f", base64.b64decode(text)) == array.array("f", vectors(response)[1])
    raw = client.embeddings.with_raw_response.create(model=MODEL, input=PASSAGES)
    assert int(raw.headers["x-compute-tokens"]) == tokens and raw.headers["x-request-id"], raw.headers


def test_models(client):
    assert [model.id for model in client.models.list()] == [MODEL, "xlmr_base"]


def test_errors(client, url):
    def create(**options):
        return client.embeddings.create(**{"model": MODEL, "input": PASSAGES, **options})

    stranger = openai.OpenAI(base_url=url, api_key="wrong", max_retries=0)
    raises(openai.AuthenticationError, lambda: stranger.embeddings.create(model=MODEL, input="a"))
    raises(openai.AuthenticationError, lambda: stranger.models.list())
    error = raises(openai.UnprocessableEntityError, lambda: create(dimensions=7), "dimensions")
    assert (error.param, error.type) == ("dimensions", "invalid_request_error"), error.body
    error = raises(openai.NotFoundError, lambda: create(model="text-embedding-3-small"), "xlmr_base")
    assert error.param == "model", error.body
    raises(openai.BadRequestError, lambda: create(input=[]), "give at least one")
    # A model that scores pairs, and does not embed.
    raises(openai.APIStatusError, lambda: create(model="xlmr_base"), "has no embeddings")


def test_retries(url):
    """Refused for want of room, the client comes back when it is told to, and nobody goes without an answer."""
    client = openai.OpenAI(base_url=url + "/v1", api_key=KEY, max_retries=20)
    texts = [f"{passage} {i}" for i in range(40) for passage in PASSAGES]
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda _: vectors(client.embeddings.create(model=MODEL, input=texts)), range(12)))
    assert all(answer == answers[0] for answer in answers)
    with urllib.request.urlopen(url + "/metrics", timeout=60) as response:
        refused = [line for line in response.read().decode().splitlines() if 'err="overloaded"' in line]
    assert len(refused) == 1 and int(refused[0].split()[-1]) > 0, refused


with serve(MODEL, "xlmr_base", flags=[f"--api-key={KEY}"]) as address:
    base = address + "/v1"
    for_all = openai.OpenAI(base_url=base, api_key=KEY, max_retries=0)
    test_embeddings(for_all)
    test_models(for_all)
    test_errors(for_all, base)
with serve(MODEL, flags=["--max-concurrent-requests=2"]) as address:
    test_retries(address)
