"""Cohere's client: both versions of rerank, its own options and ours, many at once, and the errors it makes of ours."""

import asyncio

import cohere
from common import PASSAGES, QUERY, raises, ranking, score, serve

MODEL = "gemma2_lightweight"


def pairs(response):
    return [(result.index, result.relevance_score) for result in response.results]


def test_v2(url):
    client = cohere.ClientV2("unused", base_url=url)
    expected = ranking(score(MODEL, QUERY, PASSAGES, "--normalize"))
    response = client.rerank(model=MODEL, query=QUERY, documents=PASSAGES)
    assert pairs(response) == expected, (response, expected)
    assert response.meta.api_version.version == "2" and response.meta.billed_units.search_units == 1, response
    response = client.rerank(model=MODEL, query=QUERY, documents=PASSAGES, top_n=2)
    assert pairs(response) == expected[:2], response
    # What only we have goes through as well, there and back.
    options = {"cutoff_layers": [3, 5], "compress_ratio": 2, "compress_layers": [4], "raw_scores": True}
    expected = score(MODEL, QUERY, PASSAGES, "--cutoff-layers=3,5", "--compress-ratio=2", "--compress-layers=4")
    response = client.rerank(
        model=MODEL, query=QUERY, documents=PASSAGES, request_options={"additional_body_parameters": options}
    )
    assert pairs(response) == ranking(expected), (response, expected)
    for result in response.results:
        assert result.scores == expected[result.index]["scores"], (result, expected)


def test_v1(url):
    client = cohere.Client("unused", base_url=url)
    expected = ranking(score(MODEL, QUERY, PASSAGES, "--normalize"))
    documents = [{"text": passage, "source": "a book"} for passage in PASSAGES]
    response = client.rerank(model=MODEL, query=QUERY, documents=documents, return_documents=True)
    assert pairs(response) == expected, (response, expected)
    assert [result.document.text for result in response.results] == [PASSAGES[index] for index, _ in expected]
    # By fields, one per line.
    joined = ["\n".join((passage, "a book")) for passage in PASSAGES]
    response = client.rerank(model=MODEL, query=QUERY, documents=documents, rank_fields=["text", "source"])
    assert pairs(response) == ranking(score(MODEL, QUERY, joined, "--normalize")), response


def test_many_at_once(url):
    queries = [f"{QUERY} {i}" for i in range(24)]

    async def ask():
        async with cohere.AsyncClientV2("unused", base_url=url) as client:
            calls = [client.rerank(model=MODEL, query=query, documents=PASSAGES) for query in queries]
            return await asyncio.gather(*calls)

    for query, response in zip(queries, asyncio.run(ask())):
        assert pairs(response) == ranking(score(MODEL, query, PASSAGES, "--normalize")), query


def test_errors(url, key):
    client = cohere.ClientV2(key, base_url=url)
    ask = {"model": "xlmr_base", "query": QUERY, "documents": PASSAGES}
    cutoff = {"additional_body_parameters": {"cutoff_layers": [2]}}
    raises(cohere.UnauthorizedError, lambda: cohere.ClientV2("wrong", base_url=url).rerank(**ask), "Authorization")
    raises(cohere.BadRequestError, lambda: client.rerank(**{**ask, "documents": []}), "give at least one")
    raises(cohere.NotFoundError, lambda: client.rerank(**{**ask, "model": "rerank-v3.5"}), "xlmr_base, " + MODEL)
    error = raises(
        cohere.UnprocessableEntityError, lambda: client.rerank(**ask, request_options=cutoff), "cutoff_layers"
    )
    assert error.body["id"], error.body
    assert pairs(client.rerank(**ask)) == ranking(score("xlmr_base", QUERY, PASSAGES, "--normalize"))


with serve(MODEL) as address:
    test_v2(address)
    test_v1(address)
    test_many_at_once(address)
with serve("xlmr_base", MODEL, flags=["--api-key=secret"]) as address:
    test_errors(address, "secret")
