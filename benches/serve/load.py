"""The server under load: what its callers wait, what it refuses, its memory, and what it adds to a call of the engine.

    python benches/serve/load.py MODEL --outcrop target/release/outcrop --output benches/results/FILE.json
    python benches/serve/load.py MODEL --outcrop target/debug/outcrop --short

Needs wrk (Debian: apt-get install wrk). Three parts, each with a server of its own on the loopback:

**load**: connections that ask again as soon as they are answered, for queries with 1 to 32 passages of lognormal lengths; first to
warm up, then measured. No answer may be an error, 99 in 100 must come within twice the median and a run, and memory must not have
grown by more than a twentieth since the end of the warm-up.

**refusals**: as many connections on a server that takes a quarter of them: every answer must be right or a 429 that says when to
come back, and there must be both.

**overhead**: one connection, the same texts in every request; `outcrop bench model` times the engine's call with these texts, in
turns. What the server adds, median against median, may be a millisecond.

--short takes a quarter of a minute and asks only for right answers: it is the test, which any build on any machine must pass.
"""

import argparse
import contextlib
import datetime
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "peers"))

from common import commit, device  # noqa: E402 - the path above must be set first

SIZES = (1, 1, 1, 1, 2, 2, 4, 4, 8, 8, 16, 32)
BODIES = 480


class Server:
    """A server that is running."""

    def __init__(self, outcrop, model, *flags):
        command = [outcrop, "serve", "--model", model, "--device=cpu", "--port=0", "--log-format=json", *flags]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        self.address = None
        for line in self.process.stderr:
            line = json.loads(line)
            self.address = line.get("address") if line["message"] == "listening" else self.address
            if line["message"] == "ready":
                break
        else:
            raise SystemExit(f"{outcrop} serve ended with status {self.process.wait()}")
        # What it logs is read, as whoever runs it does, and forgotten.
        self.reader = threading.Thread(target=self.process.stderr.read)
        self.reader.start()

    def resident_bytes(self):
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmRSS"))

    def cpu_seconds(self):
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def metrics(self):
        """Every sample of /metrics, by name and labels."""
        with urllib.request.urlopen(self.address + "/metrics", timeout=60) as response:
            return {name: float(value) for name, value in re.findall(r"^([^#\s].*) (\S+)$", response.read().decode(), re.M)}

    def stop(self):
        self.process.terminate()
        status = self.process.wait()
        self.reader.join()
        if status != 0:
            raise SystemExit(f"the server ended with status {status}")


@contextlib.contextmanager
def serve(outcrop, model, *flags):
    server = Server(outcrop, model, *flags)
    try:
        yield server
    except BaseException:
        server.process.kill()
        raise
    server.stop()


def wrk(server, bodies, connections, seconds):
    """Loads the server, and returns what wrk has seen."""
    threads = min(2, connections)
    command = ["wrk", f"--threads={threads}", f"--connections={connections}", f"--duration={seconds}s", "--timeout=60s"]
    command += ["--script", Path(__file__).parent / "requests.lua", server.address, "--", "/rerank", bodies]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    if ran.returncode != 0:
        raise SystemExit(f"wrk: {ran.stderr}{ran.stdout}")
    seen = json.loads(ran.stdout.splitlines()[-1])
    return {**seen, "requests_per_s": seen["answered"] / seen["seconds"]}


def engine(outcrop, model, passages, seconds, texts, queries=1, lengths="fixed:64"):
    """Milliseconds of the engine's call with these many passages, half of them; the texts are left in `texts`."""
    command = [outcrop, "bench", "model", model, "--device=cpu", "--quiet", "--json", "--ceiling=1", f"--lengths={lengths}"]
    command += ["--query-tokens=12", f"--queries={queries}", f"--passages={passages}", f"--seconds={seconds}", "--rounds=1"]
    command.append(f"--texts-out={texts}")
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    if ran.returncode != 0:
        raise SystemExit(f"outcrop bench model: {ran.stderr}")
    return json.loads(ran.stdout)["rows"][0]["p50_ms"]


def write_bodies(texts, path, sizes):
    """A body for each size, out of as many queries as there are."""
    lines = [json.loads(line) for line in texts.read_text().splitlines()]
    bodies = [
        {"query": line["query"], "texts": line["passages"][:size]}
        for line, size in zip(lines * (len(sizes) // len(lines)), sizes, strict=True)
    ]
    path.write_text("".join(json.dumps(body) + "\n" for body in bodies))


def mixed_bodies(args, folder):
    texts, bodies = folder / "mixed-texts.jsonl", folder / "mixed.jsonl"
    engine(args.outcrop, args.model, max(SIZES), 0.1, texts, queries=40, lengths="lognormal:100")
    sizes = list(SIZES) * (BODIES // len(SIZES))
    random.Random(7).shuffle(sizes)
    write_bodies(texts, bodies, sizes)
    return bodies


def load(args, bodies):
    with serve(args.outcrop, args.model) as server:
        warm_up = wrk(server, bodies, args.connections, args.warm_up)
        resident, cpu = server.resident_bytes(), server.cpu_seconds()
        seen = wrk(server, bodies, args.connections, args.seconds)
        resident_after, cpu_after = server.resident_bytes(), server.cpu_seconds()
        # Only now: reading metrics frees memory, and a server whose metrics nobody reads must not grow either.
        metrics = server.metrics()
    name = f'{{model="{Path(args.model).name}"'
    runs = metrics[f"outcrop_run_duration_count{name}}}"]
    run_seconds = metrics[f"outcrop_run_duration_sum{name}}}"]
    counted = sum(value for key, value in metrics.items() if key.startswith("te_request_success"))
    return {
        "connections": args.connections,
        "warm_up": warm_up,
        **seen,
        "counted_by_the_server": counted,
        "resident_bytes_after_warm_up": resident,
        "resident_bytes_at_the_end": resident_after,
        "cpu_seconds": cpu_after - cpu,
        "runs": runs,
        "tokens_per_run": metrics["te_batch_next_tokens_sum"] / runs,
        "run_ms": run_seconds / runs * 1e3,
    }


def refusals(args, bodies):
    with serve(args.outcrop, args.model, f"--max-concurrent-requests={args.connections // 4}") as server:
        seen = wrk(server, bodies, args.connections, args.seconds // 4)
        after = server.metrics()
    return {**seen, "counted_by_the_server": after['te_request_failure{err="overloaded"}']}


def overhead(args, folder, passages):
    texts, body = folder / f"texts-{passages}.jsonl", folder / f"{passages}.jsonl"
    rounds = {"engine_ms": [], "client_ms": []}
    with serve(args.outcrop, args.model) as server:
        for _ in range(5):
            rounds["engine_ms"].append(engine(args.outcrop, args.model, passages, 2, texts))
            write_bodies(texts, body, [passages])
            rounds["client_ms"].append(wrk(server, body, 1, 2)["p50_ms"])
    added = [client - engine for client, engine in zip(rounds["client_ms"], rounds["engine_ms"])]
    return {"passages": passages, **rounds, "added_ms": statistics.median(added)}


def checks(record, is_short):
    """What is held, each with whether it is so."""
    part, refused = record["load"], record["refusals"]
    sent = part["warm_up"]["answered"] + part["answered"]
    held = {
        "no error but 429": part["others"] + part["broken"] + refused["others"] + refused["broken"] == 0,
        # Answers that were under way when wrk stopped are counted by the server alone.
        "all answers counted": 0 < sent <= part["counted_by_the_server"] <= sent + 2 * part["connections"],
        "both answers and refusals": refused["answered"] > 0 and refused["busy"] > 0,
    }
    if not is_short:
        grown = part["resident_bytes_at_the_end"] / part["resident_bytes_after_warm_up"]
        held[f"memory {grown:.3f} of that after the warm-up, at most 1.05"] = grown <= 1.05
        limit = 2 * part["p50_ms"] + part["run_ms"]
        held[f"p99 {part['p99_ms']:.1f} ms, at most twice the median and a run, {limit:.1f} ms"] = part["p99_ms"] <= limit
        for row in record["overhead"]:
            added = row["added_ms"]
            held[f"{row['passages']} passages: the server adds {added:.3f} ms, at most 1"] = added <= 1
    return held


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a model directory; a small one, so that the server is what is measured")
    parser.add_argument("--outcrop", default="target/release/outcrop", help="the program")
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--warm-up", type=int, default=60, metavar="SECONDS")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--short", action="store_true", help="a quarter of a minute, and only what any build must do")
    parser.add_argument("--output", type=Path, help="write the record to this file")
    args = parser.parse_args()
    args.model = args.model.rstrip("/")
    if args.short:
        args.warm_up, args.seconds = 2, 8
    record = {
        "device": device(len(os.sched_getaffinity(0))),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": commit(),
        "command": " ".join(["python", *sys.argv]),
        "wrk": subprocess.run(["wrk", "--version"], capture_output=True, text=True, check=False).stdout.split("\n")[0],
        "load_average_before": os.getloadavg(),
        "niceness": os.nice(0),
        "sizes": SIZES,
    }
    with tempfile.TemporaryDirectory() as folder:
        bodies = mixed_bodies(args, Path(folder))
        record["load"] = load(args, bodies)
        record["refusals"] = refusals(args, bodies)
        if not args.short:
            time.sleep(2)
            record["overhead"] = [overhead(args, Path(folder), passages) for passages in (1, 8)]
    record["held"] = checks(record, args.short)
    if args.output:
        args.output.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps({part: record[part] for part in ("load", "refusals", "overhead") if part in record}, indent=1))
    for what, is_so in record["held"].items():
        print(f"{'held' if is_so else 'NOT HELD'}: {what}")
    return 0 if all(record["held"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
