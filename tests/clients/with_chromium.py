"""The page at `/` in a browser: Chromium without a window, driven by its DevTools protocol as a user's mouse and keys would drive it.

    python with_chromium.py OUTCROP CHROMIUM FOLDER

writes pictures of what it has seen into FOLDER.
"""

import base64
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import ranking, score, serve
from websockets.sync.client import connect

MODEL = "gemma2_lightweight"
LAYERS = 8
QUERY = "which animal eats bamboo?"
PASSAGES = ["The giant panda eats bamboo.", "Paris is in France.", "hi", "A bear is an animal.", "bamboo", "what?"]
SECONDS = 30


class Page:
    """A page of a browser."""

    def __init__(self, socket):
        self.socket = socket
        self.sent = 0
        # What went wrong on it, and which addresses it asked for.
        self.problems, self.addresses = [], []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(domain + ".enable")

    def call(self, method, **params):
        self.sent += 1
        self.socket.send(json.dumps({"id": self.sent, "method": method, "params": params}))
        while True:
            message = json.loads(self.socket.recv(timeout=SECONDS))
            if message.get("id") == self.sent:
                assert "error" not in message, (method, params, message)
                return message["result"]
            self.note(message)

    def note(self, event):
        method, params = event["method"], event["params"]
        if method == "Runtime.exceptionThrown":
            self.problems.append(params["exceptionDetails"])
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.problems.append(params["entry"])
        elif method == "Network.requestWillBeSent":
            self.addresses.append(params["request"]["url"])

    def value(self, script):
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, (script, answer)
        return answer["result"].get("value")

    def wait(self, script):
        """Waits until a condition holds."""
        deadline = time.monotonic() + SECONDS
        while not self.value(script):
            shown = "document.body.innerText"
            assert time.monotonic() < deadline, f"never true: {script}, but the page shows\n{self.value(shown)}"
            time.sleep(0.02)

    def open(self, address):
        self.call("Page.navigate", url=address)
        self.wait("document.readyState === 'complete' && location.href === " + json.dumps(address))

    def mouse(self, kind, x, y):
        pressed = kind != "mouseReleased"
        self.call(
            "Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=int(pressed), clickCount=1
        )

    def drag(self, slider, value):
        """Drags the knob of a slider to a value."""
        left, right, y, low, high, now = self.value(
            f"(() => {{ const s = document.getElementById('{slider}'); s.scrollIntoView({{block: 'nearest'}});"
            " const b = s.getBoundingClientRect(); return [b.left, b.right, (b.top + b.bottom) / 2, s.min, s.max, s.value].map(Number) })()"
        )
        # The knob's middle stays half its width within the ends.
        at = [left + 8 + (right - left - 16) * (place - low) / (high - low) for place in (now, value)]
        self.mouse("mousePressed", at[0], y)
        for step in range(1, 11):
            self.mouse("mouseMoved", at[0] + (at[1] - at[0]) * step / 10, y)
        self.mouse("mouseReleased", at[1], y)
        found = self.value(f"Number(document.getElementById('{slider}').value)")
        assert found == value, f"{slider} is at {found}, not {value}"

    def write(self, field, text):
        self.value(f"document.getElementById('{field}').select()")
        self.call("Input.insertText", text=text)

    def press(self, key, code, text=""):
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, text=text)

    def text(self, element):
        return self.value(f"document.getElementById('{element}').innerText")

    def picture(self, path):
        picture = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(picture["data"]))


@contextlib.contextmanager
def browser(chromium):
    with tempfile.TemporaryDirectory() as profile, open(Path(profile) / "log", "w+") as log:
        command = [chromium, "--headless", "--remote-debugging-port=0", f"--user-data-dir={profile}", "--no-first-run"]
        # What Chromium asks of its makers by itself; the page's own requests are seen below.
        command += ["--disable-background-networking", "--disable-component-update", "--window-size=1200,900"]
        if os.geteuid() == 0:
            # It refuses to run as root otherwise, as in most containers.
            command += ["--no-sandbox", "--disable-dev-shm-usage"]
        with subprocess.Popen([*command, "about:blank"], stderr=log, stdout=log) as process:
            try:
                yield debugged(process, Path(profile) / "DevToolsActivePort", log)
            finally:
                process.terminate()


def debugged(process, port_file, log):
    """The address of the browser's first page."""
    deadline = time.monotonic() + SECONDS
    while not port_file.exists() or len(port_file.read_text().splitlines()) < 2:
        if process.poll() is not None or time.monotonic() > deadline:
            log.seek(0)
            raise AssertionError(f"Chromium has not started:\n{log.read()}")
        time.sleep(0.05)
    port, path = port_file.read_text().splitlines()[:2]
    with connect(f"ws://127.0.0.1:{port}{path}", proxy=None) as socket:
        socket.send(json.dumps({"id": 1, "method": "Target.getTargets"}))
        targets = json.loads(socket.recv(timeout=SECONDS))["result"]["targetInfos"]
    (page,) = [target["targetId"] for target in targets if target["type"] == "page"]
    return f"ws://127.0.0.1:{port}/devtools/page/{page}"


# The rows as shown: [[index, score, places gained, layers drawn]], top first.
ROWS = """[...document.querySelectorAll('#results li')].map((row) => [Number(row.dataset.index), row.querySelector('.score').innerText,
    row.querySelector('.move').innerText, row.querySelectorAll('.layers span').length])"""


def check_rows(page, options, layers):
    """What is shown is what the program gives for these options, beside the full ranking."""
    expected = ranking(score(MODEL, QUERY, PASSAGES, "--normalize", *options))
    full = {index: rank for rank, (index, _) in enumerate(ranking(score(MODEL, QUERY, PASSAGES)))}
    rows = []
    for rank, (index, value) in enumerate(expected):
        gained = full[index] - rank
        move = f"▲ {gained}" if gained > 0 else f"▼ {-gained}" if gained < 0 else ""
        rows.append([index, f"{value:.4f}", move, layers])
    page.wait(f"JSON.stringify({ROWS}) === {json.dumps(json.dumps(rows, separators=(',', ':'), ensure_ascii=False))}")
    return rows


def test_sliders(page, address, folder):
    page.open(address + "/")
    page.wait("document.querySelectorAll('#results li').length > 0")
    assert MODEL in page.text("about"), page.text("about")
    page.write("query", QUERY)
    page.write("passages", "\n".join(PASSAGES))
    before = check_rows(page, [], LAYERS - 1)
    assert page.text("cutoff-value") == str(LAYERS), page.text("cutoff-value")
    assert all(move == "" for _, _, move, _ in before), before
    page.picture(folder / "all-layers.png")
    # Cutoffs go from 2 to 8: the slider's place 1 is the third layer.
    page.drag("cutoff", 1)
    after = check_rows(page, ["--cutoff-layers=3"], 2)
    assert page.text("cutoff-value") == "3", page.text("cutoff-value")
    assert [row[0] for row in after] != [row[0] for row in before], "a ranking that no cutoff changes shows nothing"
    assert any(move for _, _, move, _ in after), after
    page.picture(folder / "cutoff-3.png")
    # Keys move sliders too.
    page.drag("cutoff", 5)
    page.value("document.getElementById('ratio').focus()")
    page.press("ArrowRight", 39)
    page.press("ArrowRight", 39)
    page.drag("compress-layer", 2)
    options = ["--cutoff-layers=7", "--compress-ratio=4", "--compress-layers=2"]
    check_rows(page, options, 6)
    assert (page.text("ratio-value"), page.text("compress-layer-value")) == ("4", "2")
    assert page.text("problem") == "", page.text("problem")
    page.picture(folder / "compressed.png")
    # What is wrong is told, and forgotten when it is right again.
    page.write("passages", "\n")
    page.wait("document.getElementById('problem').innerText.includes('at least one passage')")
    page.write("passages", "\n".join(PASSAGES))
    page.wait("document.getElementById('problem').innerText === ''")
    check_rows(page, options, 6)


def test_docs(page, address, folder):
    page.open(address + "/docs")
    page.wait("document.querySelectorAll('#paths details').length > 10")
    page.value("""(() => { const box = [...document.querySelectorAll('#paths details')].find((one) => one.innerText.startsWith('POST /v2/rerank'));
        box.open = true; box.querySelector('button').click(); box.id = 'asked' })()""")
    page.wait("document.querySelector('#asked pre').innerText.startsWith('200') && document.querySelector('#asked pre').innerText.includes('relevance_score')")
    page.picture(folder / "docs.png")


def test_key(page, address, folder):
    page.open(address + "/")
    page.wait("!document.getElementById('key-field').hidden && document.getElementById('problem').innerText !== ''")
    assert page.value("document.querySelectorAll('#results li').length") == 0
    page.value("document.getElementById('key').focus()")
    page.call("Input.insertText", text="secret")
    page.press("Enter", 13, "\r")
    page.wait("document.querySelectorAll('#results li').length === 7 && document.getElementById('problem').innerText === ''")
    page.picture(folder / "key.png")


def main():
    chromium, folder = sys.argv.pop(2), Path(sys.argv.pop(2))
    folder.mkdir(parents=True, exist_ok=True)
    with browser(chromium) as target, connect(target, max_size=None, proxy=None) as socket:
        page = Page(socket)
        with serve(MODEL) as address:
            test_sliders(page, address, folder)
            test_docs(page, address, folder)
            assert not page.problems, page.problems
        outside = [one for one in page.addresses if not one.startswith(address + "/")]
        assert not outside, f"asked for outside of the server: {outside}"
        with serve(MODEL, flags=["--api-key=secret"]) as address:
            test_key(page, address, folder)


main()
