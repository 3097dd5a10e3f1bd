"""LangChain's reranker for servers that speak Cohere's dialect."""

from common import PASSAGES, QUERY, ranking, score, serve
from langchain_cohere import CohereRerank
from langchain_core.documents import Document

MODEL = "xlmr_base"

with serve(MODEL) as address:
    reranker = CohereRerank(base_url=address, cohere_api_key="unused", model=MODEL, top_n=3)
    expected = ranking(score(MODEL, QUERY, PASSAGES, "--normalize"))
    results = reranker.rerank(PASSAGES, QUERY, top_n=None)
    assert [(one["index"], one["relevance_score"]) for one in results] == expected, (results, expected)
    documents = [Document(passage, metadata={"place": place}) for place, passage in enumerate(PASSAGES)]
    compressed = reranker.compress_documents(documents, QUERY)
    found = [(one.page_content, one.metadata) for one in compressed]
    assert found == [
        (PASSAGES[index], {"place": index, "relevance_score": score}) for index, score in expected[:3]
    ], found
