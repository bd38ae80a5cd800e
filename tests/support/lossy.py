"""A proxy between an RTSP camera and its viewers that loses, repeats and swaps packets of video, over TCP and UDP."""

import contextlib
import random
import re
import socket
import threading
from collections import Counter
from collections.abc import Iterator

LOST, REPEATED, SWAPPED = "lost", "repeated", "swapped"
MAX_BYTES = 1 << 16


class LossyProxy:
    """Passes RTSP on to a port of 127.0.0.1. Each video packet meets each fault with the probability `rate`."""

    def __init__(self, port: int, rate: float, seed: int = 0):
        self._port, self._rate, self._random = port, rate, random.Random(seed)
        self.faults: Counter[str] = Counter()
        self._ports: dict[bytes, bytes] = {}  # of the last viewer by UDP: ours -> its own
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._start(self._accept)

    def close(self) -> None:
        self._listener.close()

    def _start(self, work, *arguments) -> None:
        threading.Thread(target=work, args=arguments, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                viewer, _ = self._listener.accept()
                camera = socket.create_connection(("127.0.0.1", self._port))
                self._start(self._pump, viewer, camera, self._ask)
                self._start(self._pump, camera, viewer, self._answer)

    def _pump(self, source: socket.socket, target: socket.socket, change) -> None:
        held: list[bytes] = []
        with contextlib.suppress(OSError, EOFError), source.makefile("rb") as stream:
            while True:
                for piece in change(stream, held):
                    target.sendall(piece)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _ask(self, stream, held) -> Iterator[bytes]:
        """From the viewer: its ports for UDP become ports of this proxy."""
        message = _message(stream)
        found = re.search(rb"client_port=(\d+)-(\d+)", message)
        if found and message.startswith(b"SETUP"):
            first = self._relay(int(found[1]), faulty=True)
            second = self._relay(int(found[2]), faulty=False)
            self._ports = {b"client_port=%d-%d" % (first, second): found[0]}
            message = message.replace(found[0], next(iter(self._ports)))
        yield message

    def _answer(self, stream, held) -> Iterator[bytes]:
        """From the camera: RTSP, and over TCP the video between it."""
        message = _message(stream)
        if message[:1] == b"$" and message[1] % 2 == 0:
            yield from self._harmed(message, held)
            return
        for ours, theirs in self._ports.items():
            message = message.replace(ours, theirs)
        yield message

    def _relay(self, port: int, faulty: bool) -> int:
        """Passes datagrams on to a port; returns the one that they are to be sent to."""
        receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        receiver.bind(("127.0.0.1", 0))

        def relay() -> None:
            held: list[bytes] = []
            with contextlib.suppress(OSError):
                while True:
                    data = receiver.recv(MAX_BYTES)
                    for one in self._harmed(data, held) if faulty else [data]:
                        receiver.sendto(one, ("127.0.0.1", port))

        self._start(relay)
        return receiver.getsockname()[1]

    def _harmed(self, packet: bytes, held: list[bytes]) -> Iterator[bytes]:
        """What becomes of a packet: nothing, itself, twice itself, or itself behind the next one."""
        chance = self._random.random() / self._rate
        fault = LOST if chance < 1 else REPEATED if chance < 2 else SWAPPED if chance < 3 and not held else ""
        self.faults[fault] += 1
        if fault == SWAPPED:
            held.append(packet)
            return
        if fault != LOST:
            yield packet
        if fault == REPEATED:
            yield packet
        while held:
            yield held.pop()


def _message(stream) -> bytes:
    """One message of RTSP, or one interleaved packet."""
    first = stream.read(1)
    if not first:
        raise EOFError
    if first == b"$":
        header = stream.read(3)
        return first + header + stream.read(int.from_bytes(header[1:], "big"))
    lines = [first + stream.readline()]
    while lines[-1] not in (b"\r\n", b""):
        lines.append(stream.readline())
    head = b"".join(lines)
    length = re.search(rb"(?i)content-length: *(\d+)", head)
    return head + (stream.read(int(length[1])) if length else b"")
