"""Tiny XLM-RoBERTa rerankers with random weights, and the scores FlagEmbedding's FlagReranker gives for them.

    python make_rerankers.py OUT [NAME ...]

needs OUT/tokenizers (make_tokenizers.py) and writes OUT/xlmr_base, OUT/xlmr_m3 and OUT/xlmr_eps. All scores are fp32 on the
CPU. README.md describes expected.json.
"""

import sys
import tempfile
from pathlib import Path

from common import TRACED, add_tokenizer, draw_weights, edit_config, keep_fixture, last_call, quiet, run_case
from common import save_with_positions, versions, write_json
import torch
from safetensors.torch import save_file
from tiny_text import LONG_QUERY, PAIRS

# name: seed, layers, hidden_size, heads, layer_norm_eps, positions while the weights are drawn, positions kept
MODELS = {
    "xlmr_base": (11, 3, 128, 2, 1e-5, 514, 514),
    "xlmr_m3": (12, 2, 64, 1, 1e-5, 8194, 2050),
    "xlmr_eps": (13, 2, 64, 1, 0.05, 514, 514),
}


def build(folder, tokenizer_json, seed, layers, hidden_size, heads, eps, positions, kept_positions):
    """Writes a model folder in the published layout."""
    from transformers import XLMRobertaConfig, XLMRobertaForSequenceClassification

    vocab_size = add_tokenizer(folder, tokenizer_json, "XLMRobertaTokenizer", kept_positions - 2)
    model = XLMRobertaForSequenceClassification(XLMRobertaConfig(
        vocab_size=vocab_size, hidden_size=hidden_size, num_hidden_layers=layers, num_attention_heads=heads,
        intermediate_size=2 * hidden_size, hidden_act="gelu", max_position_embeddings=positions, type_vocab_size=1,
        layer_norm_eps=eps, pad_token_id=1, bos_token_id=0, eos_token_id=2, num_labels=1))
    draw_weights(model, seed, token_type=0.3, bias=0.15, norm_bias=0.1)
    save_with_positions(model, folder, kept_positions)
    edit_config(folder, id2label={"0": "LABEL_0"}, label2id={"LABEL_0": 0}, output_past=True, torch_dtype="float32")


def cases(folder, positions):
    """Every case of one model."""
    from FlagEmbedding import FlagReranker

    def reranker(**constructor):
        return quiet(FlagReranker, str(folder), use_fp16=False, devices="cpu", **constructor)

    def instructed(name, note=None, **constructor):
        picks = [0, 1, 2, 5, 6]
        return run_case(reranker(**constructor), name, picks=picks, constructor=constructor, note=note)

    plain = reranker()
    overlong = [[LONG_QUERY * 3, "short passage"]]
    yield run_case(plain, "default")
    yield run_case(plain, "normalize", normalize=True, capture=False)
    yield run_case(plain, "batch_size_3", batch_size=3, capture=False)
    yield run_case(plain, "max_length_64", max_length=64)
    yield run_case(plain, "max_length_64_query_16", max_length=64, query_max_length=16)
    yield run_case(plain, "max_length_17", max_length=17, note="query limit 12, 4 special ids")
    yield run_case(plain, "max_length_8_no_room", max_length=8,
                   note="query limit 6 + 4 specials > 8: where the passage (itself cut to 8) has no more tokens than must "
                        "go, nothing is removed")
    yield run_case(plain, "single_pair_list", picks=[TRACED])
    if positions == 514:
        yield run_case(plain, "query_limit_above_positions", pairs=overlong, max_length=512, query_max_length=2000,
                       note="a query longer than the position table: IndexError on the CPU")
        yield run_case(plain, "max_length_512", picks=[8], max_length=512, note="the longest sequence the table holds")
        yield run_case(plain, "max_length_513", picks=[8], max_length=513, note="position 514 does not exist")
        yield run_case(plain, "max_length_600", picks=[8], max_length=600)
    else:
        yield run_case(plain, "query_limit_above_positions", pairs=overlong, max_length=512, query_max_length=2000,
                       note="fits the longer table")
        yield run_case(plain, "max_length_1024", max_length=1024)
    yield run_case(plain, "empty_list", pairs=[])
    yield instructed("instructions", query_instruction_for_rerank="Represent this query: ",
                     passage_instruction_for_rerank="passage", passage_instruction_format="{} -> {}")
    yield instructed("instruction_format_backslash_n", query_instruction_for_rerank="find",
                     query_instruction_format="Task: {}\\nQuery: {}",
                     note="the two characters backslash n in the format become a newline")


def write_trace(folder):
    """Keeps the hidden states of one pair: hidden_0 is the embeddings after their LayerNorm, hidden_i the output of layer i-1."""
    from FlagEmbedding import FlagReranker

    reranker = quiet(FlagReranker, str(folder), use_fp16=False, devices="cpu")
    _, call = last_call(reranker, list(PAIRS[TRACED][1:]), {})
    inputs = {name: call[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        output = reranker.model(**inputs, output_hidden_states=True)
    trace = {f"hidden_{i}": state.contiguous() for i, state in enumerate(output.hidden_states)}
    save_file({**inputs, **trace, "logits": output.logits.contiguous()}, folder / "trace.safetensors")


def main():
    out = Path(sys.argv[1])
    for name in sys.argv[2:] or MODELS:
        with tempfile.TemporaryDirectory() as scratch:
            work = Path(scratch) / name
            work.mkdir()
            build(work, out / "tokenizers" / "xlmr" / "tokenizer.json", *MODELS[name])
            expected = {
                "family": name,
                "versions": versions("FlagEmbedding"),
                "pairs": {pair_id: {"query": query, "passage": passage} for pair_id, query, passage in PAIRS},
                "cases": list(cases(work, MODELS[name][-1])),
            }
            if name == "xlmr_base":
                expected["trace_pair"] = PAIRS[TRACED][0]
                write_trace(work)
            write_json(work / "expected.json", expected)
            keep_fixture(work, out, "xlmr")
        failed = sum("error" in case for case in expected["cases"])
        print(f"{name}: {len(expected['cases'])} cases, {failed} of them errors of the reference")


if __name__ == "__main__":
    main()
