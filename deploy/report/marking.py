"""A page on which a person marks the crossings of a clip, shown slowly with its lines. It needs no network.

It is served on 127.0.0.1 only. Its URL contains a random token, and each request must name this server as its Host: so
no other user and no other web page reads or writes here.
"""

import json
import re
import secrets
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from math import isfinite
from pathlib import Path

import numpy as np

from peoplecounter.common import shapes
from peoplecounter.common.counting import LineSettings
from peoplecounter.common.errors import BAD_DATA, AppError
from peoplecounter.common.settings import SourceSettings
from peoplecounter.deploy.engine.calibration import pictures
from peoplecounter.deploy.report.crossings import DIRECTIONS, CrossingAt
from peoplecounter.deploy.report.pictures import jpeg_of
from peoplecounter.services.decoder.playback import START, Picture

PAGE = Path(__file__).with_name("marking.html")
WIDTH_MAX_PX = 1280  # of a picture on the page
AHEAD, BACK = 32, 12  # a picture so far ahead is reached by going on; another one is begun so many before it
KEPT = 96  # pictures in memory
BODY_BYTES_MAX = 4 << 20
LOOPBACK = ("127.0.0.1", "localhost")
IDLE_S = 60.0  # then a browser's connection is closed
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",  # the token stays here
    "X-Content-Type-Options": "nosniff",
}
OnDone = Callable[[list[CrossingAt]], list[str]]


class ClipPictures:
    """The pictures of a file by number, as JPEG and as the product sees them: upright, with square pixels.

    Reads the file once, to its end. Raises SourceError for a file that is not a video, AppError for one without times.
    """

    def __init__(self, source: SourceSettings):
        self._source, self._lock = source, threading.Lock()
        self._positions = [START]  # behind so many pictures
        self.times_s: list[float] = []
        self.size = (0, 0)
        for picture in pictures(source):
            if picture.pts_s is None:
                raise AppError(f"{source.url} has no timestamps: put it into an MP4 first, e.g. by ffmpeg.", BAD_DATA)
            if not self.times_s:
                self.size = picture.surface.layout.width, picture.surface.layout.height
            self._positions.append(picture.position)
            self.times_s.append(round(picture.pts_s, 6))
        self._next = 0  # number of the picture that comes next
        self._coming: Iterator[Picture] = iter(())
        self._jpegs: OrderedDict[int, bytes] = OrderedDict()
        self._go_to(0)

    def jpeg(self, number: int) -> bytes:
        """A picture. May be called from any thread. Raises LookupError when there is none of that number."""
        if not 0 <= number < len(self.times_s):
            raise LookupError(number)
        with self._lock:
            if number not in self._jpegs:
                if not self._next <= number <= self._next + AHEAD:
                    self._go_to(max(0, number - BACK))
                while self._next <= number:
                    self._read()
            return self._jpegs[number]

    def _go_to(self, number: int) -> None:
        self._next, self._coming = number, pictures(self._source, self._positions[number])

    def _read(self) -> None:
        picture = next(self._coming, None)
        if picture is None:
            raise LookupError(self._next)
        layout = picture.surface.layout
        surface = np.empty(layout.nbytes, np.uint8)
        picture.surface.write(surface)
        self._jpegs[self._next] = jpeg_of(layout, surface, WIDTH_MAX_PX)
        self._jpegs.move_to_end(self._next)
        if len(self._jpegs) > KEPT:
            self._jpegs.popitem(last=False)
        self._next += 1


class MarkingServer(ThreadingHTTPServer):
    """Serves the page at `url`. Raises AppError for a port that cannot be used; 0 is any."""

    def __init__(self, clip: ClipPictures, lines: Mapping[str, LineSettings], speed: float, port: int):
        self.clip, self.lines, self.speed = clip, lines, speed
        try:
            super().__init__(("127.0.0.1", port), _Answer)
        except OSError as error:
            raise AppError(
                f"Port {port} of 127.0.0.1 cannot be used: {error.strerror}. Choose another --port."
            ) from None
        self.token, self.hosts = secrets.token_urlsafe(24), {f"{host}:{self.server_port}" for host in LOOPBACK}
        self.url = f"http://127.0.0.1:{self.server_port}/{self.token}/"
        self.done, self._taken = threading.Event(), False  # done: and the page knows
        self._one_at_a_time = threading.Lock()

    def serve(self, on_done: OnDone, stop: threading.Event) -> bool:
        """Blocks until `on_done` has taken the marks, or `stop` is set; returns whether it has.

        `on_done(marks)` returns what the page shows then. When it raises AppError, the page shows that and goes on.
        """
        self._on_done = on_done
        thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)
        thread.start()
        while not stop.is_set() and not self.done.wait(0.1):
            pass
        self.shutdown()
        self.server_close()
        return self.done.is_set()

    def about(self) -> dict:
        """What the page must know of the clip."""
        lines = [
            {"name": name, "points": line.points, "side": shapes.side(line.points, line.inside), "anchor": line.anchor}
            for name, line in self.lines.items()
        ]
        return {"times_s": self.clip.times_s, "size": self.clip.size, "speed": self.speed, "lines": lines}

    def take(self, body: bytes) -> tuple[int, list[str]]:
        """(HTTP status, what the page shows) for the marks as JSON: [{"line", "direction", "at_s"}, …]."""
        try:
            marks = [_mark(row, self.lines) for row in json.loads(body)]
        except (ValueError, KeyError, TypeError):
            return 400, ["These are not marks."]
        with self._one_at_a_time:
            if self._taken:
                return 409, ["The marks were taken already."]
            try:
                told = self._on_done(marks)
            except AppError as error:
                return 500, [str(error)]
            self._taken = True
            return 200, told

    def handle_error(self, request, client_address) -> None:
        """A browser that hangs up is no error."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Answer(BaseHTTPRequestHandler):
    """Answers one connection of a browser."""

    server: MarkingServer
    protocol_version, timeout = "HTTP/1.1", IDLE_S
    server_version, sys_version = "peoplecounter", ""

    def do_GET(self) -> None:
        asked = self._asked()
        if asked is None:
            self._send(403, "text/plain", b"forbidden")
        elif not asked:
            self._send(200, "text/html; charset=utf-8", PAGE.read_bytes())
        elif asked == "clip":
            self._send(200, "application/json", json.dumps(self.server.about()).encode())
        elif found := re.fullmatch(r"frame/([0-9]{1,9})", asked):
            self._send_picture(int(found[1]))
        else:
            self._send(404, "text/plain", b"not found")

    def do_POST(self) -> None:
        self.close_connection = True  # the body of a refused request is never read
        length = self.headers.get("Content-Length", "")
        if self._asked() != "marks":
            return self._send(403, "text/plain", b"forbidden")
        if not length.isdecimal() or int(length) > BODY_BYTES_MAX:
            return self._send(413, "text/plain", b"too long")
        status, lines = self.server.take(self.rfile.read(int(length)))
        try:
            self._send(status, "application/json", json.dumps(lines).encode())
        finally:
            if status == 200:
                self.server.done.set()

    def log_message(self, *_: object) -> None:
        """Nothing: the terminal belongs to the command."""

    def _asked(self) -> str | None:
        """What is asked for, behind the token; None for who may not ask."""
        token, slash, rest = self.path.removeprefix("/").partition("/")
        known = secrets.compare_digest(token.encode(), self.server.token.encode())
        return rest if slash and known and self.headers.get("Host", "") in self.server.hosts else None

    def _send_picture(self, number: int) -> None:
        try:
            self._send(200, "image/jpeg", self.server.clip.jpeg(number))
        except (LookupError, AppError):
            self._send(404, "text/plain", b"not found")

    def _send(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        for name, value in {**HEADERS, "Content-Type": kind, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)


def _mark(row: dict, lines: Mapping[str, LineSettings]) -> CrossingAt:
    """Raises ValueError, KeyError or TypeError for what is no mark at one of the lines."""
    line, direction, at_s = row["line"], row["direction"], float(row["at_s"])
    if line not in lines or direction not in DIRECTIONS or not isfinite(at_s):
        raise ValueError
    return CrossingAt(line, direction, at_s)
