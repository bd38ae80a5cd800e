"""A model from `peoplecounter engine serve`: requested in pieces, hashed, and checked.

A plan contains code that runs on this machine. So beyond loopback the server must prove its identity (CURVE,
engine.server_key).
"""

import contextlib
import hashlib
import re
import time
from typing import Literal

import msgspec
import zmq

from peoplecounter.common.errors import SOFTWARE, AppError
from peoplecounter.common.ipc.messages import MAX_BYTES, SCHEMA, Chunk, Fetch, Refuse, decode, encode
from peoplecounter.common.settings import ENDPOINT, LOOPBACK

Item = Literal["model", "weights"]
SILENT_S = 10.0  # a server that does not answer for this long is unreachable
RETRY_S = 1.0  # the same piece is requested again after this, then twice this: the server may have restarted


def fetch(endpoint: str, item: Item, server_key: str, max_bytes: int) -> tuple[bytes, bytes]:
    """(content, sidecar) of "model" or "weights" served at an endpoint.

    Raises AppError for a server that does not answer, has no such item, offers more than `max_bytes`, or sends data
    that does not match its hash.
    """
    if not re.match(ENDPOINT, endpoint):
        raise AppError(f"Invalid model address {endpoint}: use tcp://HOST:PORT.")
    if not server_key and not re.match(LOOPBACK, endpoint):
        raise AppError(f"The model {endpoint} is on another machine: set engine.server_key to its server's public key.")
    context = zmq.Context()
    socket = context.socket(zmq.DEALER)
    try:
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.MAXMSGSIZE, MAX_BYTES)
        socket.setsockopt(zmq.IPV6, "[" in endpoint)
        try:
            if server_key:
                socket.curve_publickey, socket.curve_secretkey = zmq.curve_keypair()
                socket.curve_serverkey = server_key.encode()
            socket.connect(endpoint)
        except (zmq.ZMQError, ValueError):
            raise AppError(
                f"Cannot connect to the model server {endpoint}: check the address and engine.server_key."
            ) from None
        return _fetch(socket, endpoint, item, max_bytes)
    finally:
        context.destroy(linger=0)


def _fetch(socket: zmq.Socket, endpoint: str, item: Item, max_bytes: int) -> tuple[bytes, bytes]:
    first = _ask(socket, endpoint, Fetch(SCHEMA, item, 0))
    if first.total > max_bytes:
        raise AppError(
            f"The {item} served at {endpoint} has {first.total} bytes, more than the {max_bytes} that engine.limit_mb "
            "allows."
        )
    content = bytearray(first.data)
    while len(content) < first.total:
        piece = _ask(socket, endpoint, Fetch(SCHEMA, item, len(content)))
        if (piece.total, piece.sha256) != (first.total, first.sha256) or not piece.data:
            raise AppError(f"The {item} served at {endpoint} changed while it was read: try again.", SOFTWARE)
        content += piece.data
    if len(content) != first.total or hashlib.sha256(content).hexdigest() != first.sha256:
        raise AppError(f"The data received from {endpoint} does not match the hash of its {item}: try again.", SOFTWARE)
    return bytes(content), first.sidecar


def _ask(socket: zmq.Socket, endpoint: str, wanted: Fetch) -> Chunk:
    heard_s, send_s, wait_s = time.monotonic(), 0.0, RETRY_S
    while (now_s := time.monotonic()) - heard_s < SILENT_S:
        if now_s >= send_s:
            send_s, wait_s = now_s + wait_s, 2 * wait_s
            with contextlib.suppress(zmq.Again):  # not connected yet
                socket.send(encode(wanted), zmq.NOBLOCK)
        if not socket.poll(100):
            continue
        try:
            (data,) = socket.recv_multipart(zmq.NOBLOCK)
            answer = decode(data)
        except (ValueError, msgspec.MsgspecError, zmq.Again):
            continue
        if isinstance(answer, Refuse):
            raise AppError(f"The server {endpoint} refused the {wanted.item}: {answer.reason}")
        if isinstance(answer, Chunk) and answer.item == wanted.item:
            if answer.offset == wanted.offset:
                return answer
            heard_s = now_s  # a piece that was requested twice: the connection is slow
    raise AppError(f"No server answers at {endpoint}: start 'peoplecounter engine serve' there.", SOFTWARE)
