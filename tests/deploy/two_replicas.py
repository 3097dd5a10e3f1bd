"""runtime/deploy/two-replicas: callers lose nothing when a replica is killed, told to stop, or has too much to do.

    python two_replicas.py OUTCROP

Callers ask through the proxy without a pause. Meanwhile one replica is killed and comes back, then the other is told to stop and comes back.
Every request has to be answered with 200 and the same bytes as before, at the first try or, after a refusal with Retry-After, at a later one.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

from serving import DEPLOY, FIXTURES, ask, skip, wait_ready

CALLERS = 8
# Texts of a request: the largest are more than the buffers of sockets and proxies hold.
SIZES = [1, 20, 200]
# What a caller waits after a refusal. It is told a second; a test has less patience.
PATIENCE = 0.1


def free_port():
    """The first of three free ports."""
    while True:
        held = []
        try:
            held.append(socket.create_server(("127.0.0.1", 0)))
            port = held[0].getsockname()[1]
            held += [socket.create_server(("127.0.0.1", port + offset)) for offset in (1, 2)]
            return port
        except (OSError, OverflowError):
            pass
        finally:
            for one in held:
                one.close()


def body(size):
    # Only the beginning of a text is run, so that large bodies are little work.
    return {"query": "what is panda?", "texts": [f"passage {i} " + "word " * 300 for i in range(size)], "max_length": 24}


class Callers:
    """Threads that ask and compare until they are stopped."""

    def __init__(self, port, expected):
        self.port, self.expected = port, expected
        self.stopped = threading.Event()
        self.answered = self.refused = 0
        self.problems = []
        self.lock = threading.Lock()
        self.threads = [threading.Thread(target=self.call, args=(number,)) for number in range(CALLERS)]

    def call(self, number):
        while not self.stopped.is_set():
            number += 1
            size = SIZES[number % len(SIZES)]
            try:
                status, headers, text = ask(self.port, "POST", "/rerank", body(size))
            except OSError as error:
                status, headers, text = 0, {}, repr(error)
            with self.lock:
                if status == 200 and text == self.expected[size]:
                    self.answered += 1
                    continue
                if status in (429, 503) and "retry-after" in headers:
                    self.refused += 1
                else:
                    self.problems.append((status, size, text[:300]))
                    return
            self.stopped.wait(PATIENCE)

    def wait_for(self, more, what):
        """Lets so many more requests be answered."""
        with self.lock:
            goal = self.answered + more
        end = time.monotonic() + 120
        while True:
            with self.lock:
                assert not self.problems, f"{what}: {self.problems}"
                if self.answered >= goal:
                    return
            assert time.monotonic() < end, f"{what}: no answers"
            time.sleep(0.01)


def collect(stream, lines):
    for line in stream:
        lines.append(line)


def processes(lines, port):
    """Processes of a replica, the running one last."""
    return [int(pid) for pid in re.findall(rf"^replica {port}: process (\d+)$", "".join(lines), re.MULTILINE)]


def end(pid, kind, lines, port):
    """Ends a replica, and waits until another process has taken its place and is ready."""
    os.kill(pid, kind)
    limit = time.monotonic() + 60
    while processes(lines, port)[-1] == pid:
        assert time.monotonic() < limit, f"replica {port} is not started again"
        time.sleep(0.05)
    wait_ready(port)


def check(program, port, run, lines):
    for each in (port, port + 1, port + 2):
        wait_ready(each)
    expected = {}
    for size in SIZES:
        answers = {ask(port + offset, "POST", "/rerank", body(size))[2] for offset in (1, 2)}
        assert len(answers) == 1, f"replicas differ: {answers}"
        expected[size] = answers.pop()
    assert ask(port, "GET", "/metrics")[0] == 404 and ask(port + 1, "GET", "/metrics")[0] == 200
    callers = Callers(port, expected)
    for thread in callers.threads:
        thread.start()
    try:
        callers.wait_for(50, "before")
        end(processes(lines, port + 1)[-1], signal.SIGKILL, lines, port + 1)
        callers.wait_for(50, "after the first was killed")
        end(processes(lines, port + 2)[-1], signal.SIGTERM, lines, port + 2)
        callers.wait_for(50, "after the second was stopped")
    finally:
        callers.stopped.set()
        for thread in callers.threads:
            thread.join()
    assert not callers.problems, callers.problems
    (log,) = re.findall(r"log in (\S+)$", "".join(lines), re.MULTILINE)
    # A replica that did not answer, or refused, and then the other one that did.
    tries = re.findall(r" 200 \S+ to \S+, \S+: (\d+), 200$", Path(log).read_text(), re.MULTILINE)
    assert {"429", "502"} <= set(tries), f"no second tries: {Counter(tries)}"
    # As Ctrl-C does.
    os.killpg(run.pid, signal.SIGINT)
    assert run.wait(60) == 0
    for each in (port, port + 1, port + 2):
        assert socket.socket().connect_ex(("127.0.0.1", each)) != 0, f"somebody still listens on port {each}"
    assert not Path(log).parent.exists()
    second = ", ".join(f"{count} after {status}" for status, count in sorted(Counter(tries).items()))
    print(f"{callers.answered} answered, of these by the second replica asked: {second}; {callers.refused} told to come back")


def main(program):
    # Debian keeps it where only root looks.
    if shutil.which("nginx", path=os.environ["PATH"] + ":/usr/sbin") is None:
        skip("nginx", "no two replicas behind a proxy: no nginx (Debian: apt-get install nginx-light)")
        return
    port = free_port()
    # Two times three are fewer than there are callers.
    arguments = ["--model", str(FIXTURES / "xlmr_base"), "--device=cpu", "--threads=1", "--max-concurrent-requests=3", "--log-level=warn"]
    environment = {**os.environ, "PORT": str(port), "OUTCROP": os.path.abspath(program)}
    command = [DEPLOY / "two-replicas/run", *arguments]
    run = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)
    lines = []
    threading.Thread(target=collect, args=(run.stdout, lines)).start()
    try:
        check(program, port, run, lines)
    except BaseException:
        print("".join(lines[-40:]))
        raise
    finally:
        run.terminate()
        run.wait()


if __name__ == "__main__":
    main(*sys.argv[1:])
