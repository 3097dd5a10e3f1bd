"""Rerankers on a GPU: Outcrop beside FlagEmbedding, transformers with SDPA and sentence-transformers' CrossEncoder, in fp16, in one run.

    python benches/peers/models_gpu.py --model DIR --output FILE
    python benches/peers/models_gpu.py --model DIR --cutoff-layers 28 --compress-ratio 2 --compress-layers 8 --output FILE

Every side turns the same texts into scores, tokenisation included. The texts are made by `outcrop bench model`, which also runs them.
The sides take turns in rounds, each round starting with another one. README.md beside this file says what is measured and how.
--device cpu, in fp32, tries the program without a GPU.
"""

import argparse
import datetime
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
warnings.filterwarnings("ignore")

import numpy as np  # noqa: E402 - the environment above must be set first
import torch  # noqa: E402
import transformers  # noqa: E402

from common import commit, quiet, ratios, run_rounds  # noqa: E402
from common import device as host  # noqa: E402
from gemm_gpu import gpu  # noqa: E402

transformers.logging.set_verbosity_error()

BATCH_SIZES = [16, 32, 64, 128, 256]
MAX_LENGTH = 512
TOP = 10
FLAG_CLASSES = {
    "XLMRobertaForSequenceClassification": "FlagReranker",
    "GemmaForCausalLM": "FlagLLMReranker",
    "LayerWiseMiniCPMForCausalLM": "LayerWiseFlagLLMReranker",
    "CostWiseGemmaForCausalLM": "LightWeightFlagLLMReranker",
}
DTYPES = {"f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32}


class Outcrop:
    """`outcrop bench model --lines`: one process, which runs all texts for every line that names them. It writes them first."""

    def __init__(self, args, depth, texts_path):
        command = [
            str(args.outcrop), "bench", "model", str(args.model), "--lines", "--device", "cuda:0" if args.device == "cuda" else "cpu",
            "--dtype", args.dtype, "--queries", "1", "--passages", str(args.passages), "--lengths", args.lengths,
            "--query-tokens", str(args.query_tokens), "--texts-out", str(texts_path), "--max-length", str(MAX_LENGTH),
            "--seconds", "0.1", *depth,
        ]
        self.settings = {"command": " ".join(command)}
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.name = self.answer()["name"]

    def answer(self):
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.process.args[0]} ended with status {self.process.wait()}")
        answer = json.loads(line)
        if "error" in answer:
            raise SystemExit(answer["error"])
        return answer

    def run(self):
        self.process.stdin.write(self.name + "\n")
        self.process.stdin.flush()
        self.last = self.answer()
        return self.last["seconds"], np.array(self.last["scores"])

    def close(self):
        self.process.stdin.close()
        self.process.wait()


class Peer:
    """A side in this process. `score` is set by the subclass: of pairs, at `batch_size` where it may choose."""

    def __init__(self, calls, settings):
        self.calls, self.settings = calls, settings

    def run(self):
        """Scores call by call, as a service would; returns seconds and all scores."""
        start = time.perf_counter()
        scores = [np.asarray(quiet(self.score, pairs), dtype=np.float64).reshape(-1) for pairs in self.calls]
        return time.perf_counter() - start, np.concatenate(scores)

    def find_batch_size(self):
        """The fastest of several for all calls, each after one that does not count."""
        pairs, speeds = max(len(pairs) for pairs in self.calls), {}
        sizes = [size for size in BATCH_SIZES if size < pairs]
        for self.batch_size in [*sizes, next((size for size in BATCH_SIZES if size >= pairs), BATCH_SIZES[-1])]:
            try:
                self.run()
                speeds[self.batch_size] = min(self.run()[0] for _ in range(2))
            except torch.cuda.OutOfMemoryError:
                torch.cuda.empty_cache()
        self.batch_size = min(speeds, key=speeds.get)
        self.settings |= {"batch_size": self.batch_size, "seconds_by_batch_size": speeds}

    def close(self):
        """Nothing outside this process."""


class FlagEmbedding(Peer):
    """The reference's class for the model, as its README calls it: fp16, its batch, and the trial batch that it runs and throws away."""

    def __init__(self, args, architecture, calls, options):
        import FlagEmbedding as package

        name = FLAG_CLASSES[architecture]
        precision = {"use_fp16": args.device == "cuda" and args.dtype == "f16"}
        if args.device == "cuda" and args.dtype == "bf16":
            precision = {"use_fp16": False, "use_bf16": True}
        device = "cuda:0" if args.device == "cuda" else "cpu"
        self.reranker = quiet(getattr(package, name), str(args.model), devices=device, max_length=MAX_LENGTH, **precision)
        super().__init__(calls, {"class": name, "batch_size": self.reranker.batch_size, **precision, **options})
        self.score = lambda pairs: self.reranker.compute_score(pairs, **options)


class Transformers(Peer):
    """XLMRobertaForSequenceClassification with SDPA, where this version of transformers has it: pairs sorted by length, padded to the
    longest of a batch, at the best of several batch sizes."""

    def __init__(self, args, calls):
        options = {"torch_dtype": DTYPES[args.dtype]}
        load = transformers.AutoModelForSequenceClassification.from_pretrained
        try:
            model, attention = quiet(load, args.model, attn_implementation="sdpa", **options), "sdpa"
        except ValueError:
            model, attention = quiet(load, args.model, **options), "eager, for this version has no SDPA for this family"
        self.model, self.device = model.eval().to(args.device), args.device
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(args.model)
        super().__init__(calls, {"attention": attention, "dtype": args.dtype})

    def score(self, pairs):
        queries, passages = [list(side) for side in zip(*pairs)]
        ids = self.tokenizer(queries, passages, truncation="only_second", max_length=MAX_LENGTH)["input_ids"]
        order = sorted(range(len(ids)), key=lambda i: -len(ids[i]))
        batches, found = [order[i : i + self.batch_size] for i in range(0, len(order), self.batch_size)], []
        with torch.inference_mode():
            for batch in batches:
                rows = self.tokenizer.pad({"input_ids": [ids[i] for i in batch]}, return_tensors="pt").to(self.device)
                found.append(self.model(**rows).logits[:, 0].float())
        scores = np.empty(len(ids))
        scores[order] = torch.cat(found).cpu().numpy()
        return scores


class CrossEncoder(Peer):
    """sentence-transformers' class, which sorts and pads by itself, at the best of several batch sizes."""

    def __init__(self, args, calls):
        import sentence_transformers

        options = {"max_length": MAX_LENGTH, "device": args.device, "model_kwargs": {"torch_dtype": DTYPES[args.dtype]}}
        self.model = quiet(sentence_transformers.CrossEncoder, str(args.model), **options)
        super().__init__(calls, {"dtype": args.dtype})

    def score(self, pairs):
        raw = {"activation_fn": torch.nn.Identity(), "show_progress_bar": False}
        return self.model.predict(pairs, batch_size=self.batch_size, convert_to_numpy=True, **raw)


def depth_of(args):
    """The depth of the run for Outcrop and for FlagEmbedding."""
    ours, flag = [], {}
    if args.cutoff_layers:
        ours += ["--cutoff-layers", str(args.cutoff_layers)]
        flag["cutoff_layers"] = [args.cutoff_layers]
    if args.compress_ratio:
        layers = [int(layer) for layer in args.compress_layers.split(",")]
        ours += ["--compress-ratio", str(args.compress_ratio), "--compress-layers", args.compress_layers]
        flag |= {"compress_ratio": args.compress_ratio, "compress_layers": layers}
    return ours, flag


def open_sides(args, architecture, work):
    ours, flag = depth_of(args)
    texts_path = work / "texts.jsonl"
    sides = {"outcrop": Outcrop(args, ours, texts_path)}
    calls = [json.loads(line) for line in texts_path.read_text(encoding="utf-8").splitlines()]
    calls = [[(call["query"], passage) for passage in call["passages"]] for call in calls]
    sides["flagembedding"] = FlagEmbedding(args, architecture, calls, flag)
    if architecture == "XLMRobertaForSequenceClassification":
        sides["transformers"] = Transformers(args, calls)
        try:
            sides["sentence-transformers"] = CrossEncoder(args, calls)
        except ImportError as error:
            print(f"without sentence-transformers: {error}", flush=True)
    wanted = args.sides.split(",") if args.sides else list(sides)
    return {name: side for name, side in sides.items() if name == "outcrop" or name in wanted}, [len(pairs) for pairs in calls]


def agreement(ours, theirs, calls):
    """How scores differ: the largest difference, over the range of theirs too, and how many of the ten best of each call are the same."""
    start, same, count = 0, 0, 0
    for pairs in calls:
        best = [set(np.argsort(-scores[start : start + pairs])[:TOP].tolist()) for scores in (ours, theirs)]
        same, count = same + len(best[0] & best[1]), count + len(best[0])
        start += pairs
    difference, spread = float(np.abs(ours - theirs).max()), float(np.ptp(theirs))
    return {"max_abs_difference": difference, "of_range": difference / spread if spread else math.inf, f"same_of_top_{TOP}": same / count}


def measure(args, work):
    architecture = json.loads((args.model / "config.json").read_text())["architectures"][0]
    sides, calls = open_sides(args, architecture, work)
    for name, side in sides.items():
        if name in ("transformers", "sentence-transformers"):
            side.find_batch_size()
        else:
            side.run()  # loads layers and kernels
            side.run()
    seconds, scores = run_rounds(sides, args.rounds, pause=0.1)
    tokens = sides["outcrop"].last["tokens"]
    device_seconds = sides["outcrop"].last["device_s"]
    for side in sides.values():
        side.close()
    pairs = sum(calls)
    case = {
        "model": args.model.name, "architecture": architecture, "lengths": args.lengths, "calls": len(calls), "pairs": pairs,
        "tokens": tokens, "outcrop_device_seconds": device_seconds,
        "sides": {
            name: {
                "settings": side.settings, "seconds": seconds[name], "pairs_per_second": pairs / statistics.median(seconds[name]),
                "scores": agreement(scores["outcrop"], scores[name], calls) if name != "outcrop" else None,
            }
            for name, side in sides.items()
        },
        "ratios": {name: ratio for name, ratio in ratios(seconds).items() if name.startswith("outcrop over ")},
    }
    print(f"\n{args.model.name}: {len(calls)} calls, {pairs} pairs, mean {tokens / pairs:.0f} tokens")
    for name, side in case["sides"].items():
        compared, ratio = side["scores"], case["ratios"].get(f"outcrop over {name}")
        print(f"  {name:22} {side['pairs_per_second']:10.1f} pairs/s", end="")
        print(f"   outcrop {ratio['median']:.2f} times as fast ({min(ratio['rounds']):.2f} to {max(ratio['rounds']):.2f}); scores within "
              f"{compared['of_range']:.2%} of their range, {compared[f'same_of_top_{TOP}']:.0%} of the ten best" if ratio else "")
    return case


def installed(name):
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="model directory")
    parser.add_argument("--outcrop", type=Path, default=Path("target/release/outcrop"))
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--dtype", choices=DTYPES, help="default: f16, on the CPU f32")
    parser.add_argument("--lengths", default="lognormal:170", help="tokens of a pair, as outcrop bench model has it (default %(default)s)")
    parser.add_argument("--passages", type=int, default=100, help="passages of a query (default %(default)s)")
    parser.add_argument("--query-tokens", type=int, default=16, help="tokens of a query (default %(default)s)")
    parser.add_argument("--cutoff-layers", type=int, help="layers after which to score, of a layerwise model")
    parser.add_argument("--compress-ratio", type=int, help="passage tokens that become one, of the lightweight model")
    parser.add_argument("--compress-layers", default="8", help="layers before which they do (default %(default)s)")
    parser.add_argument("--sides", help="peers to compare with, separated by commas (default: all that know the model)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tolerance", type=float, default=0.05, help="largest score difference over the range of scores (default %(default)s)")
    parser.add_argument("--output", type=Path, help="write the record as JSON")
    args = parser.parse_args()
    args.dtype = args.dtype or ("f32" if args.device == "cpu" else "f16")
    if not args.outcrop.exists():
        parser.error(f"{args.outcrop} does not exist: cargo build --release -p outcrop")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no GPU; --device cpu tries the program without one")
    place = gpu() if args.device == "cuda" else host(torch.get_num_threads())
    record = {
        "device": place, "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"), "commit": commit(),
        "command": " ".join(["python", "benches/peers/models_gpu.py", *sys.argv[1:]]), "dtype": args.dtype, "rounds": args.rounds,
        "versions": {name: installed(name) for name in ("torch", "transformers", "FlagEmbedding", "sentence-transformers")},
    }
    with tempfile.TemporaryDirectory(prefix="models-gpu-") as folder:
        record["case"] = measure(args, Path(folder))
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(record, indent=1) + "\n")
        print(f"\nwrote {args.output}")
    sides = record["case"]["sides"]
    far = [name for name, side in sides.items() if side["scores"] and not side["scores"]["of_range"] <= args.tolerance]
    if far:
        raise SystemExit("scores differ by more than the tolerance from those of " + ", ".join(far))


if __name__ == "__main__":
    main()
