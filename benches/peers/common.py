"""What the comparisons share: texts of chosen lengths, the driver of Outcrop, rounds that take turns, the record."""

import contextlib
import io
import json
import os
import statistics
import subprocess
import time
from pathlib import Path


def quiet(function, *args, **kwargs):
    """Calls `function` without its progress bars."""
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        return function(*args, **kwargs)


def one_token_words(tokenizer):
    """Words of the vocabulary that the tokenizer gives back as one token, so that lengths can be chosen exactly."""
    pieces = sorted(piece[1:] for piece in tokenizer.get_vocab() if piece.startswith("\u2581"))
    words = [piece for piece in pieces if len(piece) > 1 and piece.isalpha()]
    # Some tokenizers put the space before a text by themselves, others do not: a word inside a text has it either way.
    alone = tokenizer(words, add_special_tokens=False)["input_ids"]
    inside = tokenizer([" " + word for word in words], add_special_tokens=False)["input_ids"]
    words = [word for word, *ids in zip(words, alone, inside) if min(map(len, ids)) == 1]
    if len(words) < 20:
        raise SystemExit(f"the tokenizer has {len(words)} words of one token; at least 20 are needed to write texts")
    return words


def text_of(words, tokens, rng):
    return " ".join(rng.choice(words) for _ in range(tokens))


def write_pairs(pairs, path):
    """One JSON object per line, as the driver reads them."""
    lines = [json.dumps({"query": query, "passage": passage}, ensure_ascii=False) for query, passage in pairs]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


class Outcrop:
    """The driver program: opens the model once, then scores all pairs for every line "run" on its standard input."""

    def __init__(self, driver, model_dir, pairs_path, threads, options=()):
        command = [str(driver), str(model_dir), str(pairs_path), "--threads", str(threads), *options]
        self.batch_size = None
        self.settings = {"options": " ".join(options)}
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.ready = self.answer()
        if not self.ready.get("ready"):
            raise SystemExit(f"{driver} did not report that it is ready")

    def answer(self):
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.process.args[0]} ended with status {self.process.wait()}")
        return json.loads(line)

    def run(self):
        import numpy as np  # not needed by those who take only the record from here

        start = time.perf_counter()
        self.process.stdin.write("run\n")
        self.process.stdin.flush()
        answer = self.answer()
        wall = time.perf_counter() - start
        # The driver's own clock leaves out writing the scores to the pipe and reading them here.
        if not wall - 0.05 * wall - 0.02 <= answer["seconds"] <= wall:
            raise SystemExit(f"the driver reports {answer['seconds']:.3f} s for a call that took {wall:.3f} s")
        return answer["seconds"], np.array(answer["scores"])

    def peak_resident_bytes(self):
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))

    def close(self):
        self.settings["peak_resident_bytes"] = self.peak_resident_bytes()
        self.process.stdin.write("quit\n")
        self.process.stdin.close()
        self.process.wait()


def run_rounds(sides, rounds, rounds_of=None, pause=0.3):
    """Seconds per side and round, and the scores of the first round. Each round starts with another side; a side named in
    `rounds_of` takes part in that many of the first rounds only. Before every run there is a `pause` in seconds."""
    seconds = {name: [] for name in sides}
    scores = {}
    names = list(sides)
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            if number >= (rounds_of or {}).get(name, rounds):
                continue
            time.sleep(pause)  # lets another side's spinning threads come to rest
            elapsed, answer = sides[name].run()
            seconds[name].append(elapsed)
            scores.setdefault(name, answer)
    return seconds, scores


def ratios(seconds):
    """How many times faster the first named side is than the second, per round, for every pair of sides."""
    table = {}
    for fast in seconds:
        for slow in seconds:
            if fast != slow:
                per_round = [b / a for a, b in zip(seconds[fast], seconds[slow])]
                table[f"{fast} over {slow}"] = {"rounds": per_round, "median": statistics.median(per_round)}
    return table


def device(threads):
    info = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":", 1)[1].strip() for line in info if line.startswith("model name")), "unknown")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {"cpu": model, "cores": len(os.sched_getaffinity(0)), "threads": threads, "memory_bytes": memory}


def commit():
    packed = Path(__file__).parent.parent / "commit"
    if packed.exists():  # by tests/gpu, for a machine without the repository
        return packed.read_text().strip()

    def git(*words):
        return subprocess.run(["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True).stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no")
    return git("rev-parse", "HEAD") + (" with changes" if changed else "")
