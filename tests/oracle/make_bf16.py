"""The reference's own scores in bf16, by which 16-bit runs are judged: bf16.json beside the expected.json of some fixtures.

usage: make_bf16.py OUT, where OUT has the tokenizers (make_tokenizers.py). README.md says how the environment is made.
"""

import sys
import tempfile
from pathlib import Path

from common import quiet, run_case, versions, write_json
from make_decoders import MODELS as DECODERS
from make_rerankers import MODELS as ENCODERS, build as build_encoder
import torch


def encoder(folder):
    from FlagEmbedding import FlagReranker

    # The class has no bf16 of its own.
    reranker = quiet(FlagReranker, str(folder), use_fp16=False, devices="cpu")
    reranker.model.to(torch.bfloat16)
    return reranker


def gemma(folder):
    from FlagEmbedding import FlagLLMReranker

    return quiet(FlagLLMReranker, str(folder), use_bf16=True, devices="cpu")


def minicpm(folder):
    from FlagEmbedding import LayerWiseFlagLLMReranker

    return quiet(LayerWiseFlagLLMReranker, str(folder), use_bf16=True, devices="cpu")


def gemma2(folder):
    from FlagEmbedding import LightWeightFlagLLMReranker

    return quiet(LightWeightFlagLLMReranker, str(folder), use_bf16=True, devices="cpu")


# name: the reranker, and a case of expected.json with its options
CASES = {
    "xlmr_base": (encoder, "default", {}),
    "xlmr_m3": (encoder, "default", {}),
    "gemma": (gemma, "default", {}),
    "minicpm_layerwise": (minicpm, "cutoff_2_3_4_5_6", {"cutoff_layers": [2, 3, 4, 5, 6]}),
    "gemma2_lightweight": (gemma2, "cutoff_3_5_8_ratio_2_layers_4_6",
                           {"cutoff_layers": [3, 5, 8], "compress_ratio": 2, "compress_layers": [4, 6]}),
}


def build(work, out, name):
    if name in ENCODERS:
        build_encoder(work, out / "tokenizers" / "xlmr" / "tokenizer.json", *ENCODERS[name])
    else:
        builder, arguments, _, _ = DECODERS[name]
        builder(work, out / "tokenizers", *arguments)


def main():
    out = Path(sys.argv[1])
    for name, (reranker, case_name, options) in CASES.items():
        with tempfile.TemporaryDirectory() as scratch:
            work = Path(scratch) / name
            work.mkdir()
            build(work, out, name)
            model = reranker(work)
            case = run_case(model, case_name, capture=False, **options)
        (out / name).mkdir(exist_ok=True)
        written = {"versions": {**versions("FlagEmbedding"), "dtype": str(model.model.dtype)}, **case}
        write_json(out / name / "bf16.json", written)
        print(f"{name}: {case_name} in {model.model.dtype}")


if __name__ == "__main__":
    main()
