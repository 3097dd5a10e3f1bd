"""Speed of the decoder rerankers on the CPU: Outcrop beside FlagEmbedding's own classes, fp32, in one run.

    python benches/peers/decoders_cpu.py --model DIR [--model DIR ...] --output FILE

Each model is scored at one shape: some queries with 20 passages of lognormal length each. Both sides turn the same texts into
scores, tokenisation included, and take turns in rounds, each round starting with the other one. FlagEmbedding runs as its README
calls it: its class for the model, its default batch size, its default prompt. README.md beside this file says what is measured
and how.
"""

import argparse
import datetime
import json
import math
import os
import random
import statistics
import sys
import tempfile
import time
import warnings
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
warnings.filterwarnings("ignore")

import numpy as np  # noqa: E402 - the environment above must be set first
import torch  # noqa: E402
import transformers  # noqa: E402

from common import (  # noqa: E402
    Outcrop, commit, device, one_token_words, quiet, ratios, run_rounds, text_of, write_pairs,
)

transformers.logging.set_verbosity_error()

PASSAGES = 20
# Scores of a random network of several layers in fp32, padded on the left by the reference (SPEC 15 has the small models').
SCORE_TOLERANCE = 5e-3


def lognormal_pairs(words, queries, rng):
    """Queries of 6 to 16 words, each with 20 passages of lognormal length, mean about 120 words, at most 400."""
    sigma = 0.6
    mu = math.log(120) - sigma**2 / 2
    pairs = []
    for _ in range(queries):
        query = text_of(words, rng.randint(6, 16), rng)
        for _ in range(PASSAGES):
            length = min(max(round(rng.lognormvariate(mu, sigma)), 16), 400)
            pairs.append((query, text_of(words, length, rng)))
    return pairs


class FlagEmbedding:
    """The reference's class for the model's architecture; with it the trial batch that it runs and throws away."""

    def __init__(self, model_dir, architecture, pairs, options):
        import FlagEmbedding

        name = {
            "GemmaForCausalLM": "FlagLLMReranker",
            "LayerWiseMiniCPMForCausalLM": "LayerWiseFlagLLMReranker",
            "CostWiseGemmaForCausalLM": "LightWeightFlagLLMReranker",
        }[architecture]
        self.reranker = quiet(getattr(FlagEmbedding, name), str(model_dir), use_fp16=False, devices="cpu")
        self.pairs = [list(pair) for pair in pairs]
        self.options = options
        self.settings = {"class": name, "options": options, "batch_size": self.reranker.batch_size}

    def run(self):
        start = time.perf_counter()
        scores = quiet(self.reranker.compute_score, self.pairs, **self.options)
        return time.perf_counter() - start, np.array(scores)

    def close(self):
        """Nothing outside this process."""


def options_for(config):
    """The cutoff at the model's last layer, and for the model that compresses ratio 2 in the middle: for FlagEmbedding and
    for the driver."""
    layers = config["num_hidden_layers"]
    flag, driver = {}, []
    if config["architectures"][0] != "GemmaForCausalLM":
        flag["cutoff_layers"] = [layers]
        driver += ["--cutoff-layers", str(layers)]
    if config["architectures"][0] == "CostWiseGemmaForCausalLM":
        flag.update(compress_ratio=2, compress_layers=[layers // 2])
        driver += ["--compress-ratio", "2", "--compress-layers", str(layers // 2)]
    return flag, driver


def measure(args, model_dir, work):
    config = json.loads((model_dir / "config.json").read_text())
    architecture = config["architectures"][0]
    flag_options, driver_options = options_for(config)
    tokenizer = transformers.AutoTokenizer.from_pretrained(model_dir)
    pairs = lognormal_pairs(one_token_words(tokenizer), args.queries, random.Random(args.seed))
    pairs_path = work / "pairs.jsonl"
    write_pairs(pairs, pairs_path)
    shape = {name: config[name] for name in ("num_hidden_layers", "hidden_size", "intermediate_size")}
    print(f"\n{architecture} {shape}, {args.queries} x {PASSAGES} pairs", flush=True)
    sides = {
        "outcrop": Outcrop(args.outcrop, model_dir, pairs_path, args.threads, driver_options),
        "flagembedding": FlagEmbedding(model_dir, architecture, pairs, flag_options),
    }
    tokens = sides["outcrop"].ready["tokens"]
    seconds, scores = run_rounds(sides, args.rounds)
    for side in sides.values():
        side.close()
    difference = float(np.abs(scores["outcrop"] - scores["flagembedding"]).max())
    case = {
        "architecture": architecture, "shape": shape, "pairs": len(pairs), "tokens": tokens,
        "score_standard_deviation": float(scores["flagembedding"].std()), "max_abs_score_difference": difference,
        "sides": {
            name: {
                "settings": side.settings, "seconds": seconds[name],
                "pairs_per_second": len(pairs) / statistics.median(seconds[name]),
            }
            for name, side in sides.items()
        },
        "ratios": ratios(seconds),
    }
    ratio = case["ratios"]["outcrop over flagembedding"]
    rounds = " ".join(f"{value:.2f}" for value in ratio["rounds"])
    print(f"  {tokens} tokens, mean {tokens / len(pairs):.0f}; score difference {difference:.1e} "
          f"(standard deviation {case['score_standard_deviation']:.2f})")
    print(f"  outcrop over flagembedding: {ratio['median']:.2f} (rounds {rounds})", flush=True)
    return case


def main():
    cores = len(os.sched_getaffinity(0))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, action="append", required=True, help="model directory; may be repeated")
    parser.add_argument("--outcrop", type=Path, default=Path("target/release/score-loop"), help="Outcrop's driver program")
    parser.add_argument("--queries", type=int, default=1, help="queries, with 20 passages each (default 1)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=cores, help="threads of either side (default: all cores)")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--output", type=Path, help="write the record as JSON")
    args = parser.parse_args()
    if not args.outcrop.exists():
        parser.error(f"{args.outcrop} does not exist: cargo build --release -p outcrop-benches")
    torch.set_num_threads(args.threads)
    record = {
        "device": device(args.threads), "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": commit(), "command": " ".join(["python", "benches/peers/decoders_cpu.py", *sys.argv[1:]]),
        "versions": {name: version(name) for name in ("torch", "transformers", "tokenizers", "FlagEmbedding")},
        "load_average_before": os.getloadavg(), "seed": args.seed, "cases": [],
    }
    for model_dir in args.model:
        with tempfile.TemporaryDirectory(prefix="decoders-cpu-") as folder:
            record["cases"].append(measure(args, model_dir, Path(folder)))
    record["load_average_after"] = os.getloadavg()
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(record, indent=1) + "\n")
        print(f"\nwrote {args.output}")
    far = [case["architecture"] for case in record["cases"] if not case["max_abs_score_difference"] <= SCORE_TOLERANCE]
    if far:
        raise SystemExit("scores differ from those of FlagEmbedding: " + "; ".join(far))


if __name__ == "__main__":
    main()
