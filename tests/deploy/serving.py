"""What the tests of deployments share: where things are, starting a server, asking it, and saying that a test cannot run here."""

import http.client
import json
import os
import subprocess
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
DEPLOY = ROOT / "runtime/deploy"
FIXTURES = ROOT / "tests/fixtures"


def skip(name, reason):
    """Says that a test cannot run here; it has to where `REQUIRE` lists what is missing."""
    if name in os.environ.get("REQUIRE", "").split(","):
        raise SystemExit(f"REQUIRE lists {name}, but: {reason}")
    print(f"SKIPPED: {reason}")


def ask(port, method, path, body=None, headers=None, timeout=120):
    """Status, headers and body of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        data = None if body is None else json.dumps(body)
        connection.request(method, path, data, {"content-type": "application/json", **(headers or {})})
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()
    finally:
        connection.close()


def wait_ready(port, seconds=60):
    """Waits until a server answers that it is ready."""
    end = time.monotonic() + seconds
    while True:
        try:
            if ask(port, "GET", "/ready", timeout=5)[0] == 200:
                return
        except OSError:
            pass
        if time.monotonic() > end:
            raise SystemExit(f"port {port} is not ready after {seconds} s")
        time.sleep(0.05)


class Server:
    """A server on a free port, configured by its environment alone as a container is; killed at the end."""

    def __init__(self, program, environment):
        environment = {"OUTCROP_LOG_FORMAT": "json", "OUTCROP_PORT": "0", "OUTCROP_DEVICE": "cpu", **environment}
        self.process = subprocess.Popen([program, "serve"], env=environment, stderr=subprocess.PIPE, text=True)

    def __enter__(self):
        seen = []
        for line in self.process.stderr:
            seen.append(line)
            message = json.loads(line) if line.startswith("{") else {}
            if message.get("message") == "listening":
                self.port = int(message["address"].rsplit(":", 1)[1])
                wait_ready(self.port)
                return self
        raise SystemExit(f"the server ended with status {self.process.wait()}:\n{''.join(seen)}")

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
