"""Serves one model from memory to infer services, which then need no model on their disk.

Beyond loopback the server proves its identity with a CURVE key. The model itself is not kept secret.
"""

import re
import signal
import socket
from dataclasses import dataclass

import msgspec
import zmq

from peoplecounter.common.engine.model import Model, description
from peoplecounter.common.errors import AppError
from peoplecounter.common.files import sha256
from peoplecounter.common.ipc.messages import SCHEMA, Chunk, Fetch, Refuse, decode, encode
from peoplecounter.common.settings import LOOPBACK

PIECE_BYTES = 512 << 10  # of a chunk, half of the maximum of a message
POLL_MS = 200
REQUEST_BYTES_MAX = 1024


@dataclass(frozen=True)
class Item:
    """Something that is served."""

    data: bytes
    sha256: str
    sidecar: bytes = b""


def items(model: Model, weights: bytes | None) -> dict[str, Item]:
    """The items that `Fetch` can request, by name."""
    blob = model.blob
    served = {"model": Item(blob, sha256(blob), description(model))}
    if weights is not None:
        served["weights"] = Item(weights, sha256(weights))
    return served


class Server:
    """A bound socket that answers Fetch. Malformed requests are counted and ignored."""

    def __init__(self, endpoint: str, served: dict[str, Item], secret: bytes | None):
        if secret is None and not re.match(LOOPBACK, endpoint):
            raise AppError(f"{endpoint} is not on loopback: use --key FILE, so that clients can verify this server.")
        self._served, self.answered, self.malformed, self.running = served, 0, 0, True
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.MAXMSGSIZE, REQUEST_BYTES_MAX)
        self._socket.setsockopt(zmq.SNDHWM, 4)  # pieces queued for a client that does not read them; more are dropped
        self._socket.setsockopt(zmq.IPV6, "[" in endpoint)
        if secret is not None:
            self._socket.curve_server, self._socket.curve_secretkey = True, secret
        try:
            self._socket.bind(endpoint)
        except zmq.ZMQError as error:
            self._context.destroy(linger=0)
            raise AppError(f"{endpoint} cannot be bound: {error.strerror}.") from None

    @property
    def endpoint(self) -> str:
        """The endpoint for clients: with the port chosen for :*, and this host's name instead of 0.0.0.0."""
        bound = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
        return re.sub(r"//(0\.0\.0\.0|\[::\]):", f"//{socket.gethostname()}:", bound)

    def run(self) -> None:
        """Answers requests until `running` is False."""
        while self.running:
            if self._socket.poll(POLL_MS):
                self._answer()
        self._context.destroy(linger=0)

    def _answer(self) -> None:
        try:
            identity, data = self._socket.recv_multipart(zmq.NOBLOCK)
            wanted = decode(data)
            if not isinstance(wanted, Fetch):
                raise ValueError("not a request")
        except zmq.Again:
            return
        except (ValueError, msgspec.MsgspecError):
            self.malformed += 1
            return
        self._socket.send_multipart([identity, encode(self._reply(wanted))], zmq.NOBLOCK)
        self.answered += 1

    def _reply(self, wanted: Fetch) -> Chunk | Refuse:
        if wanted.schema != SCHEMA:
            return Refuse(f"it uses message schema {SCHEMA}, not {wanted.schema}: run the same version on both sides.")
        item = self._served.get(wanted.item)
        if item is None:
            return Refuse("it serves no such item.")
        piece = item.data[wanted.offset : wanted.offset + PIECE_BYTES]
        described = item.sidecar if wanted.offset == 0 else b""
        return Chunk(wanted.item, len(item.data), item.sha256, wanted.offset, piece, described)


def run(server: Server) -> None:
    """Serves until SIGINT or SIGTERM."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: setattr(server, "running", False))
    server.run()
