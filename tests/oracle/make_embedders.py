"""Tiny dense embedders with random weights, and the vectors FlagEmbedding and sentence-transformers give for them.

    PYTHONPATH=<folder with requirements-embedders.txt> python make_embedders.py OUT

needs OUT/tokenizers (make_tokenizers.py) and writes OUT/embed_m3, OUT/embed_bge_en and OUT/embed_minilm. FlagEmbedding 1.4.2's
embedders pass `dtype=` to from_pretrained, which transformers 4.44.2 does not know: hence another version than elsewhere.
"""

import json
import sys
import tempfile
from pathlib import Path

from common import add_tokenizer, draw_weights, keep_fixture, quiet, save_with_positions, versions, write_json
import numpy as np
from tiny_text import PAIRS

QUERY_INSTRUCTION = "Represent this sentence for searching relevant passages: "


def texts():
    """Every text of PAIRS once, under q_<id> or p_<id>."""
    named = [(f"q_{pair_id}", query) for pair_id, query, _ in PAIRS]
    named += [(f"p_{pair_id}", passage) for pair_id, _, passage in PAIRS]
    first_name = {}
    for name, text in named:
        first_name.setdefault(text, name)
    return {name: text for text, name in first_name.items()}


TEXTS = texts()


def rounded(vectors):
    """Nine significant digits: enough to give every f32 back exactly."""
    return [[float(f"{value:.9g}") for value in row] for row in np.asarray(vectors, dtype=np.float64).tolist()]


def flag_case(folder, name, method, constructor, options):
    """One call of FlagModel's encode_corpus or encode_queries."""
    from FlagEmbedding import FlagModel

    model = quiet(FlagModel, str(folder), use_fp16=False, devices="cpu", **constructor)
    vectors = quiet(getattr(model, method), list(TEXTS.values()), **options)
    instruction = constructor.get("query_instruction_for_retrieval", "") if method == "encode_queries" else ""
    ids = [
        model.tokenizer(instruction + text, truncation=True, max_length=options.get("max_length", 512))["input_ids"]
        for text in TEXTS.values()
    ]
    return {"name": name, "constructor": constructor, "method": method, "options": options, "text_ids": list(TEXTS),
            "input_ids": ids, "vectors": rounded(vectors)}


def finish(work, out, tokenizer, cases):
    expected = {"family": work.name, "versions": versions("FlagEmbedding", "sentence-transformers"), "texts": TEXTS}
    write_json(work / "expected.json", {**expected, "cases": cases})
    keep_fixture(work, out, tokenizer)
    print(f"{work.name}: {len(cases)} cases, {len(TEXTS)} texts")


def make_m3(work, out):
    from transformers import XLMRobertaConfig, XLMRobertaModel

    vocab_size = add_tokenizer(work, out / "tokenizers/xlmr/tokenizer.json", "XLMRobertaTokenizer", 1024)
    model = XLMRobertaModel(XLMRobertaConfig(
        vocab_size=vocab_size, hidden_size=64, num_hidden_layers=2, num_attention_heads=1, intermediate_size=128,
        hidden_act="gelu", max_position_embeddings=8194, type_vocab_size=1, layer_norm_eps=1e-5,
        pad_token_id=1, bos_token_id=0, eos_token_id=2))
    draw_weights(model, 61, token_type=0.3, bias=0.15, norm_bias=0.1)
    save_with_positions(model, work, 1026)
    finish(work, out, "xlmr", [
        flag_case(work, "cls_normalized", "encode_corpus", {}, {}),
        flag_case(work, "cls_max_length_32", "encode_corpus", {}, {"max_length": 32}),
        flag_case(work, "cls_max_length_1024", "encode_corpus", {}, {"max_length": 1024}),
        flag_case(work, "cls_not_normalized", "encode_corpus", {"normalize_embeddings": False}, {}),
        flag_case(work, "cls_query_no_instruction", "encode_queries", {}, {}),
    ])


def build_bert(work, out, seed):
    from transformers import BertConfig, BertModel

    vocab_size = add_tokenizer(work, out / "tokenizers/bert/tokenizer.json", "BertTokenizer", 512)
    model = BertModel(BertConfig(
        vocab_size=vocab_size, hidden_size=64, num_hidden_layers=3, num_attention_heads=2, intermediate_size=128,
        hidden_act="gelu", max_position_embeddings=512, type_vocab_size=2, layer_norm_eps=1e-12, pad_token_id=0))
    draw_weights(model, seed, token_type=0.35, bias=0.12, norm_bias=0.12)
    model.save_pretrained(work)


def make_bge_en(work, out):
    build_bert(work, out, 62)
    finish(work, out, "bert", [
        flag_case(work, "cls_passage", "encode_corpus", {}, {}),
        flag_case(work, "cls_query_instruction", "encode_queries", {"query_instruction_for_retrieval": QUERY_INSTRUCTION}, {}),
        flag_case(work, "cls_max_length_16", "encode_corpus", {}, {"max_length": 16}),
        flag_case(work, "mean_pooling_option", "encode_corpus", {"pooling_method": "mean"}, {}),
    ])


def make_minilm(work, out):
    """A model in the layout of all-MiniLM-L6-v2, encoded by sentence-transformers from those files."""
    from sentence_transformers import SentenceTransformer

    build_bert(work, out, 63)
    modules = [
        {"idx": idx, "name": str(idx), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for idx, (path, kind) in enumerate([("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")])
    ]
    pooling = {
        "word_embedding_dimension": 64, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True,
        "pooling_mode_max_tokens": False, "pooling_mode_mean_sqrt_len_tokens": False,
    }
    (work / "1_Pooling").mkdir()
    (work / "modules.json").write_text(json.dumps(modules, indent=2))
    (work / "1_Pooling" / "config.json").write_text(json.dumps(pooling, indent=2))
    limits = {"max_seq_length": 256, "do_lower_case": False}
    (work / "sentence_bert_config.json").write_text(json.dumps(limits, indent=2))

    model = SentenceTransformer(str(work), device="cpu")
    assert model.max_seq_length == 256, model.max_seq_length
    vectors = model.encode(list(TEXTS.values()), batch_size=8, convert_to_numpy=True, show_progress_bar=False)
    ids = [model.tokenizer(text, truncation=True, max_length=256)["input_ids"] for text in TEXTS.values()]
    finish(work, out, "bert", [
        {"name": "mean_normalized", "options": {"max_seq_length": 256}, "text_ids": list(TEXTS), "input_ids": ids,
         "vectors": rounded(vectors)},
    ])


def main():
    out = Path(sys.argv[1])
    makers = {"embed_m3": make_m3, "embed_bge_en": make_bge_en, "embed_minilm": make_minilm}
    for name, make in makers.items():
        with tempfile.TemporaryDirectory() as scratch:
            work = Path(scratch) / name
            work.mkdir()
            make(work, out)


if __name__ == "__main__":
    main()
