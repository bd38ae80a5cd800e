"""Another real browser: Firefox without a window, driven by WebDriver BiDi."""

import json
import os
import re
import shutil
import subprocess
import tempfile
import threading
import time
from contextlib import ExitStack

from websockets.sync.client import connect

BINARY = next((path for name in ("firefox-esr", "firefox") if (path := shutil.which(name))), "")
LISTENS = re.compile(r"WebDriver BiDi listening on (ws://127\.0\.0\.1:\d+)")


class Firefox:
    """One page. `errors`: what its console has complained about."""

    def __init__(self) -> None:
        self._folder = tempfile.mkdtemp(prefix="pc-firefox-")
        self._process = subprocess.Popen(
            [BINARY, "--headless", "--no-remote", "--profile", self._folder, "--remote-debugging-port=0"],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env={**os.environ, "HOME": self._folder},
        )  # fmt: skip
        self.errors: list[str] = []
        self._number = 0
        self._open = ExitStack()
        self._socket = self._open.enter_context(connect(f"{self._url()}/session", max_size=None, close_timeout=1))
        self.do("session.new", capabilities={})
        self.do("session.subscribe", events=["log.entryAdded"])
        self._page = self.do("browsingContext.getTree")["contexts"][0]["context"]

    def do(self, method: str, **parameters: object) -> dict:
        """A command of WebDriver BiDi; returns its result."""
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv(30))
            if message.get("method") == "log.entryAdded" and message["params"]["level"] == "error":
                self.errors.append(message["params"]["text"])
            if message.get("id") == self._number:
                assert message["type"] == "success", (method, message)
                return message["result"]

    def open(self, url: str) -> None:
        self.do("browsingContext.navigate", context=self._page, url=url, wait="complete")

    def wait(self, expression: str, timeout_s: float = 20) -> None:
        """Returns when an expression on the page is true."""
        until_s = time.monotonic() + timeout_s
        target = {"context": self._page}
        while True:
            found = self.do("script.evaluate", expression=f"!!({expression})", target=target, awaitPromise=True)
            if found.get("result", {}).get("value"):
                return
            assert time.monotonic() < until_s, f"never: {expression}\n{found}\n{self.errors}"
            time.sleep(0.05)

    def close(self) -> None:
        self._open.close()
        self._process.terminate()
        self._process.wait(20)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _url(self) -> str:
        """Where it listens, as soon as it says so."""
        limit = threading.Timer(60, self._process.kill)
        limit.start()
        assert self._process.stderr is not None
        for line in self._process.stderr:
            if found := LISTENS.search(line):
                limit.cancel()
                threading.Thread(target=self._process.stderr.read, daemon=True).start()
                return found[1]
        raise AssertionError("Firefox does not start")
