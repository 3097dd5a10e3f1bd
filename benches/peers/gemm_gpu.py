"""Matrix products on a GPU: Outcrop's, each with its epilogue, beside torch.matmul (cuBLAS) without one and a compiled one.

    python benches/peers/gemm_gpu.py [PATTERN ...] --output FILE

The shapes are the rows that `outcrop bench kernels` has for `gemm`. For each of them three sides take turns in rounds, each round
starting with another one: outcrop, with the epilogue that the model needs; cublas, the product alone; compiled, product and epilogue
as torch.compile makes them. All are timed alike; README.md beside this file says how. --device cpu tries the program without a GPU.
"""

import argparse
import datetime
import json
import math
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import torch
import torch._dynamo
import torch.nn.functional as F

from common import commit, ratios, run_rounds
from common import device as host

DTYPES = {"f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32}
# As in kernels/src/bench: least time of a lap, and launches of one at most.
LAP_SECONDS = 0.5e-3
LAUNCHES_MAX = 4096


class Lines:
    """`outcrop bench kernels --lines`: one process, which times the row named on each line."""

    def __init__(self, command):
        self.process = subprocess.Popen([*command, "--lines"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def time(self, name):
        self.process.stdin.write(name + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.process.args[0]} ended with status {self.process.wait()}")
        answer = json.loads(line)
        if "error" in answer:
            raise SystemExit(f"{name}: {answer['error']}")
        return answer

    def close(self):
        self.process.stdin.close()
        self.process.wait()


class Ours:
    """A row of Outcrop's."""

    def __init__(self, lines, name):
        self.lines, self.name = lines, name

    def run(self):
        answer = self.lines.time(self.name)
        return answer["median_us"] / 1e6, answer


class Torch:
    """A function of torch on operands of its own, rotated over copies beyond twice the L2 cache. Calls are recorded as a CUDA graph, and
    laps of it are timed by events, submitted one behind the other."""

    def __init__(self, function, copies, seconds, device):
        self.function, self.copies, self.seconds, self.device = function, copies, seconds, device
        for copy in copies:  # compiles, and lets cuBLAS choose
            function(*copy)
        lap = self.record(1)
        rounds = min(max(math.ceil(LAP_SECONDS / min(self.laps(3, lap))), 1), max(LAUNCHES_MAX // len(copies), 1))
        self.lap = self.record(rounds)

    def record(self, rounds):
        """What submits so many launches on every copy."""
        self.launches = rounds * len(self.copies)
        if self.device == "cpu":
            return self.call_all
        graph = torch.cuda.CUDAGraph()
        # The results of one round stay alive, so that no two launches in a row share the memory of theirs.
        self.results = []
        with torch.cuda.graph(graph):
            for i in range(self.launches):
                result = self.function(*self.copies[i % len(self.copies)])
                if i < len(self.copies):
                    self.results.append(result)
        return graph.replay

    def call_all(self):
        for i in range(self.launches):
            self.function(*self.copies[i % len(self.copies)])

    def laps(self, count, lap):
        """Seconds of each lap."""
        if self.device == "cpu":
            times = [time.perf_counter()]
            for _ in range(count):
                lap()
                times.append(time.perf_counter())
            return [end - start for start, end in zip(times, times[1:])]
        events = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
        events[0].record()
        for event in events[1:]:
            lap()
            event.record()
        torch.cuda.synchronize()
        return [start.elapsed_time(end) / 1e3 for start, end in zip(events, events[1:])]

    def run(self):
        once = min(self.laps(2, self.lap))
        count = min(max(int(self.seconds / once), 5), 2000)
        warm_up = math.ceil(count / 5)
        seconds = sorted(self.laps(warm_up + count, self.lap)[warm_up:])
        return seconds[(len(seconds) - 1) // 2] / self.launches, None


def epilogue(shape):
    """What the kernel does in one launch, as a function of the product's operands and of those of the epilogue."""
    columns = shape.get("rotated_columns")

    def product(a, b):
        return torch.matmul(a, b.t())

    def rotated(x, cos, sin):
        # Neighbouring columns are a pair, as in the kernel; angles are given for every row and pair.
        pairs = x.unflatten(-1, (-1, cos.shape[-1], 2)).float()
        even, odd = pairs.unbind(-1)
        cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
        turned = torch.stack((even * cos - odd * sin, odd * cos + even * sin), -1)
        return turned.flatten(1).to(x.dtype)

    def rope(a, b, bias, residual, cos, sin):
        x = product(a, b)
        return torch.cat((rotated(x[:, :columns], cos, sin), x[:, columns:]), -1)

    def gated(activation):
        def function(a, b, bias, residual, cos, sin):
            gate, up = product(a, b).chunk(2, -1)
            return activation(gate) * up

        return function

    functions = {
        "none": lambda a, b, bias, residual, cos, sin: product(a, b),
        "bias": lambda a, b, bias, residual, cos, sin: torch.addmm(bias, a, b.t()),
        "bias-gelu-erf": lambda a, b, bias, residual, cos, sin: F.gelu(torch.addmm(bias, a, b.t())),
        "bias-tanh": lambda a, b, bias, residual, cos, sin: torch.tanh(torch.addmm(bias, a, b.t())),
        "add-scaled": lambda a, b, bias, residual, cos, sin: residual.add_(product(a, b)),
        "gated-gelu-tanh": gated(lambda x: F.gelu(x, approximate="tanh")),
        "gated-gelu-erf": gated(F.gelu),
        "gated-silu": gated(F.silu),
        "rope": rope,
    }
    return functions[shape["epilogue"]]


def operands(shape, dtype, device, l2_bytes):
    """Copies of everything that a row needs, so many that more than twice the L2 lies between two uses of one."""
    m, n, k, name = shape["m"], shape["n"], shape["k"], shape["epilogue"]
    rows = 2 * n if name.startswith("gated") else n
    copy_bytes = (m * k + rows * k + m * n) * torch.finfo(dtype).bits // 8
    count = min(max(math.ceil(2 * l2_bytes / copy_bytes) + 1, 2), 512)

    def normal(*size, type=dtype, deviation=1.0):
        return torch.randn(*size, dtype=torch.float32, device=device).mul_(deviation).to(type)

    head_dim = shape.get("head_dim", 64)
    angles = torch.arange(m, device=device).remainder(512).float().outer(torch.rand(head_dim // 2, device=device))
    copies = []
    for _ in range(count):
        residual = normal(m, n, type=torch.float32) if name == "add-scaled" else None
        copies.append((normal(m, k), normal(rows, k, deviation=k**-0.5), normal(rows), residual, angles.cos(), angles.sin()))
    return copies


def sides_of(args, lines, row, l2_bytes):
    copies = operands(row["shape"], DTYPES[args.dtype], args.device, l2_bytes)
    m, rows = copies[0][0].shape[0], copies[0][1].shape[0]
    outs = [torch.empty(m, rows, dtype=copies[0][0].dtype, device=args.device) for _ in copies]
    plain = [(a, b, out) for (a, b, *_), out in zip(copies, outs)]
    sides = {
        "outcrop": Ours(lines, row["name"]),
        "cublas": Torch(lambda a, b, out: torch.matmul(a, b.t(), out=out), plain, args.seconds, args.device),
    }
    if not args.no_compile:
        # Beyond a few shapes of one function dynamo gives up and runs it as it is, without a word.
        torch._dynamo.reset()
        compiled = torch.compile(epilogue(row["shape"]), mode=args.compile_mode, dynamic=False)
        sides["compiled"] = Torch(compiled, copies, args.seconds, args.device)
    return sides


def measure(args, lines, row, l2_bytes):
    sides = sides_of(args, lines, row, l2_bytes)
    seconds, answers = run_rounds(sides, args.rounds, pause=0)
    shape = row["shape"]
    flops = 2 * shape["m"] * shape["n"] * shape["k"] * (2 if shape["epilogue"].startswith("gated") else 1)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    ours = ratios(seconds)
    case = {
        "name": row["name"], "shape": shape, "kernels": answers["outcrop"]["kernels"],
        "us": {name: [1e6 * time for time in times] for name, times in seconds.items()},
        "tflops": {name: flops / median / 1e12 for name, median in medians.items()},
        "ratios": {name: ours[name] for name in ours if name.startswith("outcrop over ")},
    }
    figures = "  ".join(f"{name} {value:7.1f}" for name, value in case["tflops"].items())
    over = "  ".join(f"{ratio['median']:.3f} ({min(ratio['rounds']):.3f} to {max(ratio['rounds']):.3f})" for ratio in case["ratios"].values())
    print(f"{row['name']:32} {figures} TFLOP/s   {over}", flush=True)
    return case


def summary(cases):
    """Geometric means and the worst row of every ratio: over all rows, and by number of rows of a."""
    means = {}
    groups = {"all": cases}
    for case in cases:
        groups.setdefault(f"m = {case['shape']['m']}", []).append(case)
    for group, members in groups.items():
        means[group] = {}
        for name in members[0]["ratios"]:
            medians = {case["name"]: case["ratios"][name]["median"] for case in members}
            worst = min(medians, key=medians.get)
            means[group][name] = {
                "geometric_mean": math.exp(statistics.fmean(math.log(ratio) for ratio in medians.values())),
                "worst": medians[worst], "worst_row": worst, "rows": len(medians),
            }
    return means


def gpu():
    """The device as torch and nvidia-smi have it."""
    properties = torch.cuda.get_device_properties(0)
    query = ["nvidia-smi", "--query-gpu=driver_version,clocks.sm,clocks.max.sm,power.limit", "--format=csv,noheader", "--id=0"]
    try:
        told = subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        told = None
    return {
        "name": properties.name, "memory_bytes": properties.total_memory, "l2_bytes": properties.L2_cache_size,
        "driver, clock, highest clock, power limit": told, "cuda": torch.version.cuda,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pattern", nargs="*", default=["gemm"], help="rows by parts of their names (default: gemm, all of them)")
    parser.add_argument("--outcrop", type=Path, default=Path("target/release/outcrop"))
    parser.add_argument("--tokens", default="64,512,4096,16384,51200", help="numbers of tokens (default %(default)s)")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--dtype", choices=DTYPES, help="default: f16, on the CPU f32")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.1, help="of every side in every round (default %(default)s)")
    parser.add_argument("--compile-mode", default="default", help="of torch.compile; max-autotune-no-cudagraphs takes long")
    parser.add_argument("--no-compile", action="store_true", help="leave the compiled side out")
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
    device = "cuda:0" if args.device == "cuda" else "cpu"
    command = [
        str(args.outcrop), "bench", "kernels", *args.pattern, "--tokens", args.tokens, "--device", device, "--dtype", args.dtype,
        "--seconds", str(args.seconds),
    ]
    listed = subprocess.run([*command, "--list", "--json"], stdout=subprocess.PIPE, text=True, check=True).stdout
    rows = [row for row in map(json.loads, listed.splitlines()) if row["kernel"] == "gemm"]
    if not rows:
        parser.error("none of these rows is a matrix product")
    record = {
        "device": place, "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"), "commit": commit(),
        "command": " ".join(["python", "benches/peers/gemm_gpu.py", *sys.argv[1:]]), "dtype": args.dtype,
        "versions": {"torch": version("torch"), "cuda": torch.version.cuda}, "rounds": args.rounds, "seconds": args.seconds,
    }
    lines = Lines(command)
    record["cases"] = [measure(args, lines, row, place.get("l2_bytes", 32 << 20)) for row in rows]
    lines.close()
    record["summary"] = summary(record["cases"])
    print()
    for group, means in record["summary"].items():
        for name, found in means.items():
            print(f"{group:12} {name:24} geometric mean {found['geometric_mean']:.3f} over {found['rows']} rows, "
                  f"worst {found['worst']:.3f} ({found['worst_row']})")
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(record, indent=1) + "\n")
        print(f"\nwrote {args.output}")


if __name__ == "__main__":
    main()
