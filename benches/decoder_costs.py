"""What cutoffs, token compression and shared prefixes cost and save on the CPU: time beside the count of operations.

    python benches/decoder_costs.py [--depth DIR ...] [--savings DIR ...] --output FILE

--depth runs a model to each of several cutoffs, every one in a process of its own, and records pairs per second and peak
resident memory. --savings runs a model with and without prefix sharing, and where it has compression with ratios 1, 2 and 4,
taking turns, and compares the time saved with the operations saved. Needs numpy and the driver
(cargo build --release -p outcrop-benches).
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
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "peers"))

from common import Outcrop, commit, device, run_rounds, text_of, write_pairs  # noqa: E402 - the path above must be set first

PASSAGES = 8


def words_of(model_dir):
    """Words that the model's tokenizer knows as one piece."""
    vocabulary = json.loads((model_dir / "tokenizer.json").read_text())["model"]["vocab"]
    words = [piece[1:] for piece in vocabulary if piece.startswith("\u2581") and len(piece) > 2 and piece[1:].isalpha()]
    return sorted(words)


def lognormal_pairs(words, queries, query_words, rng):
    """Queries of `query_words` words, each with 8 passages of lognormal length, mean about 110 words, at most 350."""
    sigma = 0.6
    mu = math.log(110) - sigma**2 / 2
    pairs = []
    for _ in range(queries):
        query = text_of(words, query_words, rng)
        for _ in range(PASSAGES):
            length = min(max(round(rng.lognormvariate(mu, sigma)), 16), 350)
            pairs.append((query, text_of(words, length, rng)))
    return pairs


def cutoffs_of(config):
    """A fifth, two fifths, the published example and all of MiniCPM's layers, scaled to the model; nothing for a model without."""
    layers = config["num_hidden_layers"]
    if "start_layer" not in config:
        return [None]
    return sorted({max(config["start_layer"], round(layers * share)) for share in (0.2, 0.4, 0.7, 1.0)})


def option(name, value):
    return [] if value is None else [name, str(value)]


def measure_depth(args, model_dir, work):
    """Pairs per second and peak memory at every cutoff; rounds over all cutoffs, every run in a new process."""
    config = json.loads((model_dir / "config.json").read_text())
    pairs = lognormal_pairs(words_of(model_dir), args.queries, args.query_words, random.Random(args.seed))
    path = work / "pairs.jsonl"
    write_pairs(pairs, path)
    cutoffs = cutoffs_of(config)
    case = {"architecture": config["architectures"][0], "num_hidden_layers": config["num_hidden_layers"],
            "stored_bytes": sum(file.stat().st_size for file in model_dir.glob("*.safetensors")), "pairs": len(pairs)}
    print(f"\n{case['architecture']}, {len(pairs)} pairs", flush=True)
    rows = {cutoff: {"seconds": [], "open_seconds": [], "peak_resident_bytes": []} for cutoff in cutoffs}
    for number in range(args.depth_rounds):
        for cutoff in cutoffs[number % len(cutoffs):] + cutoffs[:number % len(cutoffs)]:
            start = time.perf_counter()
            side = Outcrop(args.outcrop, model_dir, path, args.threads, option("--cutoff-layers", cutoff))
            row = rows[cutoff]
            row["open_seconds"].append(time.perf_counter() - start)
            row["seconds"].append(side.run()[0])
            row["flops"], case["tokens"] = side.ready["flops"], side.ready["tokens"]
            side.close()
            row["peak_resident_bytes"].append(side.settings["peak_resident_bytes"])
    deepest = rows[cutoffs[-1]]
    case["cutoffs"] = []
    for cutoff, row in rows.items():
        row = {"cutoff": cutoff, **row, "pairs_per_second": len(pairs) / statistics.median(row["seconds"])}
        row["share_of_time"] = statistics.median(row["seconds"]) / statistics.median(deepest["seconds"])
        row["share_of_flops"] = row["flops"] / deepest["flops"]
        row["share_of_layers"] = 1.0 if cutoff is None else cutoff / cutoffs[-1]
        case["cutoffs"].append(row)
        print(f"  cutoff {cutoff or 'all':>3}: {row['pairs_per_second']:7.3f} pairs/s, "
              f"{row['share_of_time']:.3f} of the time of the deepest, {row['share_of_flops']:.3f} of its operations, "
              f"{row['share_of_layers']:.3f} of its layers; peak {max(row['peak_resident_bytes']) / 1e9:.2f} GB", flush=True)
    return case


def measure_savings(args, model_dir, work):
    """Prefix sharing on and off, and ratios of compression, taking turns."""
    config = json.loads((model_dir / "config.json").read_text())
    pairs = lognormal_pairs(words_of(model_dir), args.queries, args.savings_query_words, random.Random(args.seed))
    path = work / "pairs.jsonl"
    write_pairs(pairs, path)
    variants = {"plain": [], "without prefix sharing": ["--no-prefix-sharing"]}
    if config["architectures"][0] == "CostWiseGemmaForCausalLM":
        layer = max(1, config["num_hidden_layers"] // 4)
        for ratio in (2, 4):
            variants[f"ratio {ratio} before layer {layer}"] = option("--compress-ratio", ratio) + option("--compress-layers", layer)
    sides = {name: Outcrop(args.outcrop, model_dir, path, args.threads, options) for name, options in variants.items()}
    flops = {name: side.ready["flops"] for name, side in sides.items()}
    case = {"architecture": config["architectures"][0], "num_hidden_layers": config["num_hidden_layers"], "pairs": len(pairs),
            "tokens": sides["plain"].ready["tokens"], "flops": flops, "savings": []}
    print(f"\n{case['architecture']}, {len(pairs)} pairs, {case['tokens']} tokens", flush=True)
    case["seconds"], _ = run_rounds(sides, args.rounds)
    for side in sides.values():
        side.close()
    comparisons = [("prefix sharing", "plain", "without prefix sharing")]
    comparisons += [(name, name, "plain") for name in variants if name.startswith("ratio")]
    for label, less, more in comparisons:
        per_round = [1 - a / b for a, b in zip(case["seconds"][less], case["seconds"][more])]
        saved, expected = statistics.median(per_round), 1 - flops[less] / flops[more]
        case["savings"].append({"what": label, "time_saved": saved, "rounds": per_round, "flops_saved": expected,
                                "time_over_flops": saved / expected})
        print(f"  {label}: saves {saved:.1%} of the time, {expected:.1%} of the operations: {saved / expected:.2f} of it", flush=True)
    return case


def main():
    cores = len(os.sched_getaffinity(0))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depth", type=Path, action="append", default=[], help="model to run to several cutoffs; may be repeated")
    parser.add_argument("--savings", type=Path, action="append", default=[], help="model to run with and without; may be repeated")
    parser.add_argument("--outcrop", type=Path, default=Path("target/release/score-loop"), help="the driver program")
    parser.add_argument("--queries", type=int, default=4, help="queries, with 8 passages each (default 4)")
    parser.add_argument("--query-words", type=int, default=10, help="words of a query for --depth (default 10)")
    parser.add_argument("--savings-query-words", type=int, default=60, help="words of a query for --savings (default 60)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of --savings (default 5)")
    parser.add_argument("--depth-rounds", type=int, default=2, help="rounds of --depth (default 2)")
    parser.add_argument("--threads", type=int, default=cores)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--output", type=Path, help="write the record as JSON")
    args = parser.parse_args()
    record = {
        "device": device(args.threads), "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": commit(), "command": " ".join(["python", "benches/decoder_costs.py", *sys.argv[1:]]),
        "load_average_before": os.getloadavg(), "seed": args.seed, "depth": [], "savings": [],
    }
    with tempfile.TemporaryDirectory(prefix="decoder-costs-") as folder:
        record["savings"] = [measure_savings(args, model_dir, Path(folder)) for model_dir in args.savings]
        record["depth"] = [measure_depth(args, model_dir, Path(folder)) for model_dir in args.depth]
    record["load_average_after"] = os.getloadavg()
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(record, indent=1) + "\n")
        print(f"\nwrote {args.output}")


if __name__ == "__main__":
    main()
