"""Speed of XLM-RoBERTa rerankers on the CPU: Outcrop beside transformers, ONNX Runtime and FlagEmbedding, fp32, in one run.

    python benches/peers/encoders_cpu.py --base DIR --large DIR --output FILE

Every side turns the same texts into scores, tokenisation included. The sides take turns in rounds, each round starting with
another one, so that a drift of the machine hits all of them. README.md beside this file says what is measured and how.
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

BATCH_SIZES = [1, 2, 4, 8, 16, 32]
MAX_TOKENS = 512
SPECIAL_TOKENS = 4  # <s> query </s></s> passage </s>
SCORE_TOLERANCE = 1e-3


# ------------------------------------------------------------------------------------------------------------------- texts


def lognormal_pairs(words, count, rng):
    """Pairs whose lengths in tokens are lognormal, mean about 170, at most 512; queries have 6 to 16 tokens."""
    sigma = 0.6
    mu = math.log(170) - sigma**2 / 2
    pairs = []
    for _ in range(count):
        total = min(max(round(rng.lognormvariate(mu, sigma)), 32), MAX_TOKENS)
        query = rng.randint(6, 16)
        pairs.append((text_of(words, query, rng), text_of(words, total - query - SPECIAL_TOKENS, rng)))
    return pairs


def one_query_pairs(words, rng):
    """One query of 10 tokens with 8 passages of 60 tokens."""
    query = text_of(words, 10, rng)
    return [(query, text_of(words, 60, rng)) for _ in range(8)]


def encode(tokenizer, pairs):
    """Token ids of every pair, unpadded."""
    queries, passages = [list(side) for side in zip(*pairs)]
    return tokenizer(queries, passages, truncation="only_second", max_length=MAX_TOKENS)["input_ids"]


# ------------------------------------------------------------------------------------------------------------------- sides


class Batched:
    """A side that pads and batches here: longest first, `batch_size` pairs at a time. `forward` is set by the subclass."""

    def __init__(self, model_dir, pairs):
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(model_dir)
        self.pairs = pairs
        self.batch_size = 1

    def batches(self, ids):
        order = sorted(range(len(ids)), key=lambda i: -len(ids[i]))
        return [order[i : i + self.batch_size] for i in range(0, len(order), self.batch_size)]

    def score_batch(self, ids, batch):
        rows = self.tokenizer.pad({"input_ids": [ids[i] for i in batch]}, return_tensors="np")
        return self.forward(rows["input_ids"], rows["attention_mask"])

    def run(self):
        """Scores all pairs; returns seconds and scores in the order of the pairs."""
        start = time.perf_counter()
        ids = encode(self.tokenizer, self.pairs)
        scores = np.empty(len(ids))
        for batch in self.batches(ids):
            scores[batch] = self.score_batch(ids, batch)
        return time.perf_counter() - start, scores

    def find_batch_size(self):
        """Times part of the work at every batch size, keeps the fastest, and returns tokens per second by batch size.

        The part is every fourth batch of the sorted pairs (all of them when there are few), timed twice."""
        ids = encode(self.tokenizer, self.pairs)
        speeds = {}
        for _ in range(2):
            for self.batch_size in [size for size in BATCH_SIZES if size <= len(ids)]:
                part = self.batches(ids)
                part = part[2::4] if len(ids) > 32 else part
                start = time.perf_counter()
                for batch in part:
                    self.score_batch(ids, batch)
                speed = sum(len(ids[i]) for batch in part for i in batch) / (time.perf_counter() - start)
                speeds[self.batch_size] = max(speed, speeds.get(self.batch_size, 0.0))
        self.batch_size = max(speeds, key=speeds.get)
        return {str(size): round(speed, 1) for size, speed in speeds.items()}

    def close(self):
        """Nothing outside this process."""


class Transformers(Batched):
    """XLMRobertaForSequenceClassification in fp32, with eager or SDPA attention, whichever is faster here."""

    def __init__(self, model_dir, pairs):
        super().__init__(model_dir, pairs)
        self.batch_size = 2
        best = math.inf
        for attention in ("sdpa", "eager"):
            try:
                model = quiet(
                    transformers.XLMRobertaForSequenceClassification.from_pretrained,
                    model_dir, torch_dtype=torch.float32, attn_implementation=attention,
                ).eval()
            except ValueError:  # this version of transformers has no SDPA for this family
                continue
            seconds = self.try_attention(model)
            if seconds < best:
                best, chosen, self.attention = seconds, model, attention
        self.model = chosen
        self.settings = {"attention": self.attention}

    def try_attention(self, model):
        self.model = model
        ids = encode(self.tokenizer, self.pairs)
        times = []
        for _ in range(3):
            start = time.perf_counter()
            for batch in self.batches(ids)[2::16] or self.batches(ids):
                self.score_batch(ids, batch)
            times.append(time.perf_counter() - start)
        return min(times)

    def forward(self, input_ids, attention_mask):
        with torch.inference_mode():
            output = self.model(torch.from_numpy(input_ids), attention_mask=torch.from_numpy(attention_mask))
        return output.logits[:, 0].numpy()


class OnnxRuntime(Batched):
    """ONNX Runtime's CPU provider on an fp32 export of the same model, all graph optimisations on."""

    def __init__(self, model_dir, pairs, onnx_path, threads):
        import onnxruntime

        super().__init__(model_dir, pairs)
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(str(onnx_path), options, providers=["CPUExecutionProvider"])
        self.settings = {"graph_optimization_level": "all", "intra_op_num_threads": threads}

    def forward(self, input_ids, attention_mask):
        inputs = {"input_ids": input_ids.astype(np.int64), "attention_mask": attention_mask.astype(np.int64)}
        return self.session.run(["logits"], inputs)[0][:, 0]


def export_onnx(model_dir, path):
    """Exports the model with dynamic batch and length; weights go to files beside `path` where they exceed 2 GiB."""
    model = quiet(
        transformers.XLMRobertaForSequenceClassification.from_pretrained,
        model_dir, torch_dtype=torch.float32, attn_implementation="eager",
    ).eval()
    example = torch.full((2, 8), 5, dtype=torch.int64)
    names = ["input_ids", "attention_mask"]
    quiet(
        torch.onnx.export, model, (example, torch.ones_like(example)), str(path), input_names=names,
        output_names=["logits"], opset_version=17, dynamo=False,
        dynamic_axes={**{name: {0: "batch", 1: "length"} for name in names}, "logits": {0: "batch"}},
    )


class FlagEmbedding:
    """FlagReranker as its README calls it: batch size 128, and with it the trial batch it runs and throws away."""

    def __init__(self, model_dir, pairs):
        from FlagEmbedding import FlagReranker

        self.reranker = quiet(FlagReranker, str(model_dir), use_fp16=False, devices="cpu")
        self.pairs = [list(pair) for pair in pairs]
        self.batch_size = self.reranker.batch_size
        self.settings = {}

    def run(self):
        start = time.perf_counter()
        scores = quiet(self.reranker.compute_score, self.pairs)
        return time.perf_counter() - start, np.array(scores)

    def close(self):
        """Nothing outside this process."""


# --------------------------------------------------------------------------------------------------------------- measuring


def open_sides(args, model_dir, pairs, work):
    sides = {"transformers": Transformers(model_dir, pairs)}
    onnx_path = work / "model.onnx"
    if not onnx_path.exists():
        export_onnx(model_dir, onnx_path)
    sides["onnxruntime"] = OnnxRuntime(model_dir, pairs, onnx_path, args.threads)
    if args.flag_rounds > 0:
        sides["flagembedding"] = FlagEmbedding(model_dir, pairs)
    if not args.skip_outcrop:
        pairs_path = work / f"pairs-{len(pairs)}.jsonl"
        write_pairs(pairs, pairs_path)
        options = ["--batch-tokens", str(args.batch_tokens)] if args.batch_tokens else []
        sides["outcrop"] = Outcrop(args.outcrop, model_dir, pairs_path, args.threads, options)
    return sides


def measure(args, label, model_dir, pairs, rounds, work):
    """One table: all sides on `pairs`."""
    print(f"\n{label}", flush=True)
    sides = open_sides(args, model_dir, pairs, work)
    lengths = [len(ids) for ids in encode(sides["transformers"].tokenizer, pairs)]
    scans = {}
    for name, side in sides.items():
        if isinstance(side, Batched):
            scans[name] = side.find_batch_size()
            print(f"  {name}: tokens/s by batch size {scans[name]}", flush=True)
        elif name == "outcrop":
            side.run()  # FlagEmbedding warms itself up: it runs its longest batch as a trial in every call
    seconds, scores = run_rounds(sides, rounds, {"flagembedding": args.flag_rounds})
    for side in sides.values():
        side.close()
    tokens = sum(lengths)
    reference = scores["transformers"]
    case = {
        "case": label, "pairs": len(pairs), "tokens": tokens, "mean_tokens": round(tokens / len(pairs), 1),
        "max_tokens": max(lengths), "score_standard_deviation": float(reference.std()), "sides": {},
    }
    for name, side in sides.items():
        median = statistics.median(seconds[name])
        case["sides"][name] = {
            "batch_size": side.batch_size, "settings": side.settings, "seconds": seconds[name], "median_seconds": median,
            "tokens_per_second": tokens / median, "scan_tokens_per_second": scans.get(name),
            "max_abs_score_difference": float(np.abs(scores[name] - reference).max()),
        }
    case["ratios"] = ratios(seconds)
    print_case(case)
    return case


def print_case(case):
    print(f"  {case['pairs']} pairs, {case['tokens']} tokens, mean {case['mean_tokens']}, longest {case['max_tokens']}")
    print(f"  {'side':<14} {'batch':>5} {'median s':>9} {'min s':>9} {'max s':>9} {'tokens/s':>9} {'score diff':>11}")
    for name, side in case["sides"].items():
        print(f"  {name:<14} {side['batch_size'] or '-':>5} {side['median_seconds']:>9.3f} {min(side['seconds']):>9.3f} "
              f"{max(side['seconds']):>9.3f} {side['tokens_per_second']:>9.1f} {side['max_abs_score_difference']:>11.1e}")
    leader = "outcrop" if "outcrop" in case["sides"] else "transformers"
    for name, ratio in case["ratios"].items():
        if name.startswith(f"{leader} over"):
            rounds = " ".join(f"{value:.2f}" for value in ratio["rounds"])
            print(f"  {name}: {ratio['median']:.3f} (rounds {rounds})")
    sys.stdout.flush()


# ------------------------------------------------------------------------------------------------------------------ record


def arguments():
    cores = len(os.sched_getaffinity(0))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, help="model directory of the base shape")
    parser.add_argument("--large", type=Path, help="model directory of the large shape")
    parser.add_argument("--outcrop", type=Path, default=Path("target/release/score-loop"), help="Outcrop's driver program")
    parser.add_argument("--skip-outcrop", action="store_true", help="measure the peers alone")
    parser.add_argument("--batch-tokens", type=int, help="Outcrop's token budget (default: its own)")
    parser.add_argument("--threads", type=int, default=cores, help="threads of every side (default: all cores)")
    parser.add_argument("--pairs", type=int, default=256, help="pairs with lognormal lengths (default 256)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds over these pairs (default 5)")
    parser.add_argument("--flag-rounds", type=int, default=2, help="rounds FlagEmbedding takes part in (default 2, 0: none)")
    parser.add_argument("--query-rounds", type=int, default=15, help="rounds over one query with 8 passages (default 15)")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--output", type=Path, help="write the record as JSON")
    args = parser.parse_args()
    if not (args.base or args.large):
        parser.error("give --base or --large, or both")
    if not args.skip_outcrop and not args.outcrop.exists():
        parser.error(f"{args.outcrop} does not exist: cargo build --release -p outcrop-benches, or --skip-outcrop")
    return args


def main():
    args = arguments()
    torch.set_num_threads(args.threads)
    record = {
        "device": device(args.threads), "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": commit(), "command": " ".join(["python", "benches/peers/encoders_cpu.py", *sys.argv[1:]]),
        "versions": {name: version(name) for name in ("torch", "transformers", "tokenizers", "onnxruntime", "FlagEmbedding")},
        "load_average_before": os.getloadavg(), "seed": args.seed, "cases": [],
    }
    for shape in ("base", "large"):
        model_dir = getattr(args, shape)
        if model_dir is None:
            continue
        words = one_token_words(transformers.AutoTokenizer.from_pretrained(model_dir))
        rng = random.Random(args.seed)
        with tempfile.TemporaryDirectory(prefix="encoders-cpu-") as folder:
            work = Path(folder)
            many = lognormal_pairs(words, args.pairs, rng)
            label = f"{shape}, {args.pairs} pairs with lognormal lengths"
            record["cases"].append(measure(args, label, model_dir, many, args.rounds, work))
            few = one_query_pairs(words, rng)
            label = f"{shape}, one query with 8 passages of 60 tokens"
            record["cases"].append(measure(args, label, model_dir, few, args.query_rounds, work))
    record["load_average_after"] = os.getloadavg()
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(record, indent=1) + "\n")
        print(f"\nwrote {args.output}")
    far = [
        f"{case['case']}: {name} by {side['max_abs_score_difference']:.1e}"
        for case in record["cases"] for name, side in case["sides"].items()
        if not side["max_abs_score_difference"] <= SCORE_TOLERANCE
    ]
    if far:
        raise SystemExit("scores differ from those of transformers: " + "; ".join(far))


if __name__ == "__main__":
    main()
