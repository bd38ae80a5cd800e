"""A browser's side of the dashboard: requests, and the WebSocket of pictures."""

import contextlib
import http.client
import json
import struct
import time
from collections.abc import Iterator
from io import BytesIO

import av
import numpy as np
from websockets.sync.client import ClientConnection, connect

JPEG = b"\xff\xd8\xff"  # what every JPEG begins with


class Dashboard:
    """One at 127.0.0.1:port."""

    def __init__(self, port: int):
        self.port, self.host = port, f"127.0.0.1:{port}"
        self.url = f"http://{self.host}"

    def ask(self, path: str, method: str = "GET", body: object = None, **headers: str) -> tuple[int, dict, bytes]:
        """(status, headers, body). `headers`: with _ for -."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        if data is not None:
            sent.setdefault("Content-Type", "application/json")
        with contextlib.closing(connection):
            connection.request(method, path, data, sent)
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()

    def json(self, path: str, method: str = "GET", body: object = None, **headers: str):
        """The answer, which must be a success."""
        status, _, content = self.ask(path, method, body, **headers)
        assert status == 200, (path, status, content)
        return json.loads(content)

    def error(self, path: str, method: str = "GET", body: object = None, **headers: str) -> tuple[int, str]:
        """(status, sentence) of an answer that must be an error."""
        status, _, content = self.ask(path, method, body, **headers)
        assert status >= 400, (path, status, content)
        return status, json.loads(content)["error"]

    def wait(self, timeout_s: float = 20) -> None:
        until_s = time.monotonic() + timeout_s
        while True:
            try:
                return self.json("/healthz")
            except OSError:
                assert time.monotonic() < until_s, "the dashboard does not answer"
                time.sleep(0.05)

    @contextlib.contextmanager
    def live(self, *wishes: dict, **options) -> Iterator[ClientConnection]:
        """A WebSocket that looks at something."""
        with connect(f"ws://{self.host}/api/v1/live", max_size=None, **options) as connection:
            connection.send(json.dumps({"watch": list(wishes)}))
            yield connection


def parts(message: bytes) -> tuple[dict, bytes]:
    """(what belongs to a picture, the JPEG)."""
    (length,) = struct.unpack(">I", message[:4])
    return json.loads(message[4 : 4 + length]), message[4 + length :]


def acknowledge(connection: ClientConnection, about: dict) -> None:
    connection.send(json.dumps({"ack": about["source"], "seq": about["seq"]}))


def pixels(jpeg: bytes) -> np.ndarray:
    """uint8 [height, width, 3]."""
    with av.open(BytesIO(jpeg)) as container:
        return next(container.decode(video=0)).to_ndarray(format="rgb24")
