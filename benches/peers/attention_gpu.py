"""Attention on a GPU: Outcrop's beside the backends of torch's scaled_dot_product_attention: flash, cuDNN, memory-efficient.

    python benches/peers/attention_gpu.py --output FILE

The shapes are the rows that `outcrop bench kernels` has for `attention`: heads of 64 without a mask, heads of 256 that are causal, at
128, 256 and 512 tokens a sequence, and a batch of many lengths. All sides take turns in rounds, each round starting with another one.
What a backend cannot run is left out and named. README.md beside this file says how each side is given its best case. --device cpu
tries the program without a GPU.
"""

import argparse
import datetime
import itertools
import json
import logging
import math
import statistics
import subprocess
import sys
import warnings
from importlib.metadata import version
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from common import commit, ratios, run_rounds
from common import device as host
from gemm_gpu import DTYPES, Lines, Ours, Torch, gpu

# What a backend cannot run is told by the program, once.
warnings.filterwarnings("ignore")
logging.getLogger("torch.nested._internal.sdpa").setLevel(logging.ERROR)

BACKENDS = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION, "efficient": SDPBackend.EFFICIENT_ATTENTION}


class Eager(Torch):
    """What cannot be recorded as a CUDA graph is called one by one; the host is in its time where it is slower than the device."""

    recorded = True

    def record(self, rounds):
        try:
            return super().record(rounds)
        except RuntimeError:
            torch.cuda.synchronize()
            self.recorded = False
            return self.call_all


def operands(shape, lengths, dtype, device, l2_bytes):
    """Copies of query, key and value, each [tokens, heads, head_dim], so many that more than twice the L2 lies between two uses."""
    tokens, dim = sum(lengths), shape["head_dim"]
    heads = (shape["num_heads"], shape["num_kv_heads"], shape["num_kv_heads"])
    copy_bytes = 2 * tokens * dim * sum(heads) * torch.finfo(dtype).bits // 8
    count = min(max(math.ceil(2 * l2_bytes / copy_bytes) + 1, 2), 64)
    return [tuple(torch.randn(tokens, n, dim, device=device).to(dtype) for n in heads) for _ in range(count)]


def equal_lengths(copies, len_, groups, expand):
    """[sequences, heads, len, head_dim], as a model has them: heads side by side in a token. Key and value heads are repeated only where
    a backend does not take fewer of them."""
    def view(x, repeat):
        x = x.view(-1, len_, *x.shape[1:]).transpose(1, 2)
        return x.repeat_interleave(repeat, dim=1) if repeat > 1 else x
    repeat = groups if expand else 1
    return [(view(q, 1), view(k, repeat), view(v, repeat)) for q, k, v in copies]


def with_backend(backend, causal, grouped):
    def attend(q, k, v):
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q, k, v, is_causal=causal, **({"enable_gqa": True} if grouped else {}))
    return attend


def one_by_one(backend, causal, lengths, grouped):
    """A call for each sequence of the batch: no padding, and as many launches as sequences."""
    bounds = list(itertools.pairwise([0, *itertools.accumulate(lengths)]))
    attend = with_backend(backend, causal, grouped)

    def attend_all(q, k, v):
        return [attend(*(x[a:b].transpose(0, 1).unsqueeze(0) for x in (q, k, v))) for a, b in bounds]
    return attend_all


def nested(copies, lengths, repeat):
    """Jagged nested tensors, for which flash attention has a call of its own."""
    offsets = torch.tensor([0, *itertools.accumulate(lengths)], device=copies[0][0].device)

    def jagged(x, times):
        x = x.repeat_interleave(times, dim=1) if times > 1 else x
        return torch.nested.nested_tensor_from_jagged(x, offsets, min_seqlen=min(lengths), max_seqlen=max(lengths)).transpose(1, 2)
    return [(jagged(q, 1), jagged(k, repeat), jagged(v, repeat)) for q, k, v in copies]


def flash_varlen(lengths, causal, device):
    """The call of the flash-attn package for batches of many lengths, if it is installed."""
    from flash_attn import flash_attn_varlen_func

    bounds = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32, device=device)
    longest = max(lengths)
    return lambda q, k, v: flash_attn_varlen_func(q, k, v, bounds, bounds, longest, longest, causal=causal)


def candidates(shape, lengths, causal, copies, device):
    """Name, and what makes the function and its operands, of every way to run the batch."""
    groups = shape["num_heads"] // shape["num_kv_heads"]
    is_ragged = len(set(lengths)) > 1
    backends = BACKENDS if device != "cpu" else {"math": SDPBackend.MATH, "flash": SDPBackend.FLASH_ATTENTION}
    for (name, backend), grouped in itertools.product(backends.items(), (True, False) if groups > 1 else (False,)):
        of = " grouped" if grouped else " repeated" if groups > 1 else ""
        repeat = 1 if grouped else groups
        if not is_ragged:
            yield name + of, lambda b=backend, g=grouped: (
                with_backend(b, causal, g), equal_lengths(copies, lengths[0], groups, not g))
            continue
        if not grouped:
            yield f"{name} nested{of}", lambda b=backend, r=repeat: (with_backend(b, causal, False), nested(copies, lengths, r))
        yield f"{name} one by one{of}", lambda b=backend, g=grouped, r=repeat: (
            one_by_one(b, causal, lengths, g),
            [(q, k.repeat_interleave(r, dim=1), v.repeat_interleave(r, dim=1)) if r > 1 else (q, k, v) for q, k, v in copies])
    if device != "cpu":
        yield "flash-attn varlen", lambda: (flash_varlen(lengths, causal, device), copies)


def sides_of(args, lines, row, l2_bytes):
    """Outcrop, and every candidate that runs; and why the others do not."""
    shape = row["shape"]
    lengths = shape.get("lengths") or [shape["len"]] * shape["sequences"]
    causal = row["name"].split("/")[1] not in ("base", "large")
    copies = operands(shape, lengths, DTYPES[args.dtype], args.device, l2_bytes)
    sides, refused = {"outcrop": Ours(lines, row["name"])}, {}
    for name, make in candidates(shape, lengths, causal, copies, args.device):
        try:
            side = Eager(*make(), args.seconds, args.device)
            side.run()
            sides[name] = side
        except (RuntimeError, ImportError, ValueError, TypeError, NotImplementedError) as error:
            refused[name] = str(error).splitlines()[0][:200]
    return sides, refused


def flops(row):
    shape = row["shape"]
    lengths = shape.get("lengths") or [shape["len"]] * shape["sequences"]
    causal = row["name"].split("/")[1] not in ("base", "large")
    scores = sum(n * (n + 1) // 2 if causal else n * n for n in lengths)
    return 4 * shape["head_dim"] * shape["num_heads"] * scores


def measure(args, lines, row, l2_bytes):
    sides, refused = sides_of(args, lines, row, l2_bytes)
    if len(sides) == 1:
        raise SystemExit(f"{row['name']}: no backend of torch runs this: {refused}")
    seconds, answers = run_rounds(sides, args.rounds, pause=0)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    best = min((name for name in medians if name != "outcrop"), key=medians.get)
    ratio = ratios(seconds)[f"outcrop over {best}"]
    case = {
        "name": row["name"], "shape": row["shape"], "kernels": answers["outcrop"]["kernels"],
        "us": {name: [1e6 * time for time in times] for name, times in seconds.items()},
        "tflops": {name: flops(row) / median / 1e12 for name, median in medians.items()},
        "not_recorded": [name for name, side in sides.items() if not getattr(side, "recorded", True)],
        "refused": refused, "best": best, "ratio": ratio,
    }
    figures = "  ".join(f"{name} {value:.1f}" for name, value in case["tflops"].items())
    print(f"{row['name']:36} {figures} TFLOP/s   over the best ({best}) {ratio['median']:.3f} "
          f"({min(ratio['rounds']):.3f} to {max(ratio['rounds']):.3f})", flush=True)
    for name, reason in refused.items():
        print(f"{'':36} without {name}: {reason}", flush=True)
    return case


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pattern", nargs="*", default=["attention/base/", "attention/gemma/"],
                        help="rows by parts of their names (default: attention/base/ attention/gemma/)")
    parser.add_argument("--outcrop", type=Path, default=Path("target/release/outcrop"))
    parser.add_argument("--tokens", default="16384", help="numbers of tokens (default %(default)s)")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--dtype", choices=DTYPES, help="default: f16, on the CPU f32")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.1, help="of every side in every round (default %(default)s)")
    parser.add_argument("--output", type=Path, help="write the record as JSON")
    args = parser.parse_args()
    args.dtype = args.dtype or ("f32" if args.device == "cpu" else "f16")
    if not args.outcrop.exists():
        parser.error(f"{args.outcrop} does not exist: cargo build --release -p outcrop")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no GPU; --device cpu tries the program without one")
    torch.manual_seed(7)
    torch.set_grad_enabled(False)
    place = gpu() if args.device == "cuda" else host(torch.get_num_threads())
    command = [
        str(args.outcrop), "bench", "kernels", *args.pattern, "--tokens", args.tokens, "--dtype", args.dtype, "--seconds", str(args.seconds),
        "--device", "cuda:0" if args.device == "cuda" else "cpu",
    ]
    listed = subprocess.run([*command, "--list", "--json"], stdout=subprocess.PIPE, text=True, check=True).stdout
    rows = [row for row in map(json.loads, listed.splitlines()) if row["kernel"] == "attention"]
    rows = [row for row in rows if "/row/" not in row["name"] and "/window/" not in row["name"]]
    if not rows:
        parser.error("none of these rows is attention of all queries")
    record = {
        "device": place, "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"), "commit": commit(),
        "command": " ".join(["python", "benches/peers/attention_gpu.py", *sys.argv[1:]]), "dtype": args.dtype,
        "versions": {"torch": version("torch"), "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()},
        "rounds": args.rounds, "seconds": args.seconds,
    }
    lines = Lines(command)
    record["cases"] = [measure(args, lines, row, place.get("l2_bytes", 32 << 20)) for row in rows]
    lines.close()
    medians = {case["name"]: case["ratio"]["median"] for case in record["cases"]}
    worst = min(medians, key=medians.get)
    mean = math.exp(statistics.fmean(map(math.log, medians.values())))
    record["summary"] = {"geometric_mean": mean, "worst": medians[worst], "worst_row": worst, "rows": len(medians)}
    print(f"\nover the best backend of each row: geometric mean {mean:.3f} over {len(medians)} rows, worst {medians[worst]:.3f} ({worst})")
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(record, indent=1) + "\n")
        print(f"\nwrote {args.output}")


if __name__ == "__main__":
    main()
