"""A model from another machine: asked for in pieces from `peoplecounter engine serve`, summed up, and checked.

A plan is code that runs here. So beyond loopback the server must prove who it is (CURVE, engine.server_key).
"""

import contextlib
import hashlib
import re
import time

import msgspec
import zmq

from peoplecounter.common.errors import SOFTWARE, Refused
from peoplecounter.common.ipc.messages import MAX_BYTES, SCHEMA, Chunk, Fetch, Refuse, decode, encode
from peoplecounter.common.settings import ENDPOINT, LOOPBACK

SILENT_S = 10.0  # without an answer, the server is not there
ASK_S = 1.0  # then the same piece is asked for again, and again after twice as long: the server may be another by now


def fetch(endpoint: str, item: str, server_key: str, most_bytes: int) -> tuple[bytes, bytes]:
    """(content, sidecar) of "model" or "weights" served at an endpoint.

    Raises Refused, in one sentence, for a server that does not answer, has no such item, offers more than `most_bytes`,
    or sends what it did not announce.
    """
    if not re.match(ENDPOINT, endpoint):
        raise Refused(f"The model {endpoint} is no address: write tcp://HOST:PORT.")
    if not server_key and not re.match(LOOPBACK, endpoint):
        raise Refused(f"The model {endpoint} is on another machine: set engine.server_key to its server's public key.")
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
            raise Refused(
                f"The model {endpoint} cannot be asked for: check the address and engine.server_key."
            ) from None
        return _fetch(socket, endpoint, item, most_bytes)
    finally:
        context.destroy(linger=0)


def _fetch(socket: zmq.Socket, endpoint: str, item: str, most_bytes: int) -> tuple[bytes, bytes]:
    first = _ask(socket, endpoint, Fetch(SCHEMA, item, 0))
    if first.total > most_bytes:
        raise Refused(
            f"The {item} served at {endpoint} has {first.total} bytes, more than the {most_bytes} that engine.limit_mb "
            "allows."
        )
    content = bytearray(first.data)
    while len(content) < first.total:
        piece = _ask(socket, endpoint, Fetch(SCHEMA, item, len(content)))
        if (piece.total, piece.sha256) != (first.total, first.sha256) or not piece.data:
            raise Refused(f"The {item} served at {endpoint} changed while it was read: start again.", SOFTWARE)
        content += piece.data
    if len(content) != first.total or hashlib.sha256(content).hexdigest() != first.sha256:
        raise Refused(f"What was received from {endpoint} is not the {item} it announced.", SOFTWARE)
    return bytes(content), first.sidecar


def _ask(socket: zmq.Socket, endpoint: str, wanted: Fetch) -> Chunk:
    heard_s, ask_s, wait_s = time.monotonic(), 0.0, ASK_S
    while (now_s := time.monotonic()) - heard_s < SILENT_S:
        if now_s >= ask_s:
            ask_s, wait_s = now_s + wait_s, 2 * wait_s
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
            raise Refused(f"{endpoint} serves no {wanted.item}: {answer.reason}")
        if isinstance(answer, Chunk) and answer.item == wanted.item:
            if answer.offset == wanted.offset:
                return answer
            heard_s = now_s  # a piece that was asked for twice: the link is slow
    raise Refused(f"Nobody serves a model at {endpoint}: start 'peoplecounter engine serve' there.", SOFTWARE)
