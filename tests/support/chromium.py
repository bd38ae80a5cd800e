"""A real browser: Chromium without a window, driven by the DevTools protocol."""

import base64
import json
import os
import shutil
import subprocess
import tempfile
import time
import urllib.request
from contextlib import ExitStack
from pathlib import Path

from websockets.sync.client import connect

BINARY = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), "")
KEYS = {"Tab": 9, "Enter": 13, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "Delete": 46}


class Chromium:
    """One page. `errors`: what its console has complained about."""

    def __init__(self) -> None:
        self._folder = tempfile.mkdtemp(prefix="pc-chromium-")
        offline = "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1"  # nothing but this machine can be asked
        self._process = subprocess.Popen(
            [BINARY, "--headless=new", "--no-sandbox", "--disable-gpu", "--mute-audio", "--no-first-run", offline,
             "--remote-debugging-port=0", f"--user-data-dir={self._folder}", "about:blank"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, "HOME": self._folder},
        )  # fmt: skip
        self.errors: list[str] = []
        self.requests: list[str] = []
        self._number = 0
        self._answers: dict[int, dict] = {}
        self._open = ExitStack()
        self._socket = self._open.enter_context(connect(self._page(), max_size=None, close_timeout=1))
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.do(f"{domain}.enable")

    def do(self, method: str, **parameters: object) -> dict:
        """A command of the DevTools protocol; returns its result."""
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        until_s = time.monotonic() + 30
        while self._number not in self._answers:
            self._hear(json.loads(self._socket.recv(max(0.1, until_s - time.monotonic()))))
        answer = self._answers.pop(self._number)
        assert "error" not in answer, (method, answer)
        return answer["result"]

    def js(self, expression: str):
        """The value of an expression on the page."""
        found = self.do("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, (expression, found["exceptionDetails"])
        return found["result"].get("value")

    def wait(self, expression: str, timeout_s: float = 10) -> None:
        """Returns when an expression is true."""
        until_s = time.monotonic() + timeout_s
        while not self.js(f"!!({expression})"):
            assert time.monotonic() < until_s, (
                f"never: {expression}\n{self.js('document.body.innerText')}\n{self.errors}"
            )
            time.sleep(0.05)

    def open(self, url: str, width: int = 1600, height: int = 1000, dark: bool = False) -> None:
        """Loads a page anew."""
        self.do(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.do("Emulation.setEmulatedMedia", features=[scheme])
        self.do("Page.navigate", url="about:blank")
        self.do("Page.navigate", url=url)
        self.wait("document.readyState === 'complete' && document.body")

    def click(self, x: float, y: float) -> None:
        for kind in ("mousePressed", "mouseReleased"):
            self.do("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def press(self, key: str, shift: bool = False) -> None:
        for kind in ("rawKeyDown", "keyUp"):
            self.do(
                "Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=KEYS[key],
                modifiers=8 if shift else 0,
            )  # fmt: skip

    def picture(self, path: Path, quality: int = 0) -> None:
        """Writes what is seen, as PNG, or with a quality as JPEG."""
        options = {"format": "jpeg", "quality": quality} if quality else {"format": "png"}
        path.write_bytes(base64.b64decode(self.do("Page.captureScreenshot", **options)["data"]))

    def close(self) -> None:
        self._open.close()
        self._process.terminate()
        self._process.wait(10)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _page(self) -> str:
        """The WebSocket of the first page, as soon as there is one."""
        until_s = time.monotonic() + 30
        while True:
            try:
                port = (Path(self._folder) / "DevToolsActivePort").read_text().split()[0]
                pages = json.load(urllib.request.urlopen(f"http://127.0.0.1:{port}/json", timeout=5))
                return next(page["webSocketDebuggerUrl"] for page in pages if page["type"] == "page")
            except (OSError, IndexError, StopIteration):
                assert self._process.poll() is None and time.monotonic() < until_s, "Chromium does not start"
                time.sleep(0.05)

    def _hear(self, message: dict) -> None:
        if "id" in message:
            self._answers[message["id"]] = message
            return
        method, about = message["method"], message["params"]
        if method == "Runtime.exceptionThrown":
            details = about["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description", details["text"]))
        elif method == "Log.entryAdded" and about["entry"]["level"] == "error":
            self.errors.append(f"{about['entry']['text']} {about['entry'].get('url', '')}")
        elif method == "Runtime.consoleAPICalled" and about["type"] in ("error", "assert"):
            self.errors.append(json.dumps(about["args"]))
        elif method == "Network.requestWillBeSent":
            self.requests.append(about["request"]["url"])
