"""What the tests with real clients share: the server, as its users start it, and the scores that `outcrop score` gives."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

FIXTURES = Path(__file__).parent.parent / "fixtures"
QUERY = "what is a panda?"
PASSAGES = [
    "hi",
    "The giant panda is a bear species endemic to China.",
    "Paris is the capital of France.",
    "fuser names the processes that use a file or a file system.",
    "pandas eat bamboo",
    "",
]
# Nothing leaves this machine, whatever proxy it has.
os.environ["NO_PROXY"] = "127.0.0.1"


def program():
    """The program under test: the only argument of every test here."""
    if len(sys.argv) != 2:
        raise SystemExit(f"usage: python {sys.argv[0]} OUTCROP")
    return sys.argv[1]


@contextlib.contextmanager
def serve(*models, flags=()):
    """Starts a server with these fixtures as its models, waits until it is ready, and gives its address."""
    command = [program(), "serve", "--port=0", "--device=cpu", "--log-format=json", *flags]
    for model in models:
        command += ["--model", str(FIXTURES / model)]
    with tempfile.TemporaryFile("w+") as log, subprocess.Popen(command, stderr=log) as server:
        try:
            yield address(server, log)
        except BaseException:
            log.seek(0)
            sys.stderr.write(log.read())
            raise
        finally:
            server.terminate()
        if server.wait(60) != 0:
            raise AssertionError(f"the server ended with status {server.returncode}")


def address(server, log):
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and server.poll() is None:
        log.seek(0)
        # The last line may still be being written.
        lines = [json.loads(line) for line in log.read().split("\n")[:-1]]
        if any(line["message"] == "ready" for line in lines):
            return next(line["address"] for line in lines if line["message"] == "listening")
        time.sleep(0.05)
    raise AssertionError("the server has not become ready")


def outcrop(command, model, lines, *options):
    """What `outcrop score` or `outcrop embed` answers to these lines."""
    text = "".join(json.dumps(line) + "\n" for line in lines)
    arguments = [program(), command, "--quiet", "--device=cpu", "--input=-", "--model", str(FIXTURES / model), *options]
    answer = subprocess.run(arguments, input=text, capture_output=True, text=True, check=False)
    if answer.returncode != 0:
        raise AssertionError(answer.stderr)
    return [json.loads(line) for line in answer.stdout.splitlines()]


def score(model, query, passages, *options):
    """The program's own answer for each passage, in order."""
    return outcrop("score", model, [{"query": query, "passages": passages}], *options)


def ranking(scored):
    """The order and the scores that a client must see: [(index, score)], best first."""
    return sorted(enumerate(one["score"] for one in scored), key=lambda one: (-one[1], one[0]))


def raises(error, call, *words):
    """Calls `call`, which must raise `error` with these words in its text, and returns the error."""
    try:
        answer = call()
    except error as raised:
        for word in words:
            assert word in str(raised), f"no {word!r} in {raised}"
        return raised
    raise AssertionError(f"no {error.__name__}, but {answer}")
