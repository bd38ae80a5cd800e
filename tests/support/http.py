"""HTTP servers of one picture or file, for tests: a camera that sends multipart MJPEG, and files with their length."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import av
import numpy as np


def jpeg(grey: int, width: int = 64, height: int = 48) -> bytes:
    """A JPEG of one grey."""
    context = av.CodecContext.create("mjpeg", "w")
    context.width, context.height, context.pix_fmt, context.framerate = width, height, "yuvj420p", 25
    frame = av.VideoFrame.from_ndarray(np.full((height, width, 3), grey, np.uint8), "rgb24")
    return b"".join(bytes(packet) for packet in [*context.encode(frame.reformat(format="yuvj420p")), *context.encode()])


class HttpServer:
    """Answers each request on 127.0.0.1 with `answer()`: pieces that are sent as they come, until it is closed."""

    def __init__(self, answer):
        self._answer, self._listener = answer, socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/stream"
        self.requests = 0
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._talk, args=(client,), daemon=True).start()

    def _talk(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            client.recv(4096)
            self.requests += 1
            for piece in self._answer():
                client.sendall(piece)


def mjpeg_camera(frames: int, every_s: float = 0.0) -> HttpServer:
    """Sends each client this many JPEGs, one after the other, and hangs up."""

    def answer() -> Iterator[bytes]:
        yield b"HTTP/1.0 200 OK\r\nContent-Type: multipart/x-mixed-replace; boundary=frame\r\n\r\n"
        for number in range(frames):
            if number:
                time.sleep(every_s)
            image = jpeg(number % 256)
            yield b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n%s\r\n" % (len(image), image)

    return HttpServer(answer)


def file_server(data: bytes) -> HttpServer:
    """Sends a file, with its length."""
    return HttpServer(lambda: iter([b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n" % len(data), data]))


def status_server(status: str) -> HttpServer:
    """Answers with a status only, e.g. "404 Not Found"."""
    return HttpServer(lambda: iter([f"HTTP/1.0 {status}\r\nContent-Length: 0\r\n\r\n".encode()]))
