"""The two ends of a link: LinkServer (ROUTER, at the owner) and LinkClient (DEALER, at each of its peers).

Both handle hello, welcome, refuse, beat and bye; every other message goes to the `on_message` they were given. Data
that cannot be decoded is counted and ignored. A peer that misses its beats is silent. A peer whose process has ended is
gone: a pidfd reports that at once, and cannot be fooled by a reused pid.
"""

import contextlib
import errno
import os
import secrets
import select
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import msgspec
import zmq

from peoplecounter.common.errors import AppError
from peoplecounter.common.files import IPC_PATH_MAX, Lock
from peoplecounter.common.ipc.loop import Loop
from peoplecounter.common.ipc.messages import (
    MAX_BYTES,
    SCHEMA,
    Beat,
    Bye,
    Hello,
    Message,
    Refuse,
    Welcome,
    decode,
    encode,
    namespaces,
)

MAX_PEERS = 400  # each needs two descriptors
RECONNECT_MS = 50  # without backoff: an owner that is killed should be found again as soon as it is back
BURST = 500  # messages handled before the loop continues: a flood on one socket must not starve the others


@dataclass(frozen=True)
class Timing:
    """How often each end beats, and how long a peer may miss its beats before it counts as silent."""

    beat_ns: int = 250_000_000
    silent_ns: int = 2_000_000_000

    @classmethod
    def of_ms(cls, beat_ms: int, silent_ms: int) -> "Timing":
        return cls(beat_ms * 1_000_000, silent_ms * 1_000_000)


@dataclass
class Peer:
    """One peer as the server sees it."""

    identity: bytes
    hello: Hello
    pidfd: int
    heard_ns: int
    turn: int = 0  # grows with every offer: the smallest is the least recently used
    welcomed: bool = False
    silent: bool = False
    left: bool = False  # it sent Bye
    number: int = 0  # grows with every peer


def _socket(loop: Loop, kind: int) -> zmq.Socket:
    socket = loop.context.socket(kind)
    socket.setsockopt(zmq.LINGER, 200)
    socket.setsockopt(zmq.MAXMSGSIZE, MAX_BYTES)
    socket.setsockopt(zmq.RECONNECT_IVL, RECONNECT_MS)
    return socket


def _endpoint(path: Path) -> str:
    if len(os.fsencode(path)) > IPC_PATH_MAX:
        raise AppError(f"The socket path {path} is longer than {IPC_PATH_MAX} bytes: use a shorter run_dir.")
    return f"ipc://{path}"


class LinkServer:
    """Binds `<run_dir>/<name>.sock` as its only owner, and keeps the peers that sent a valid hello.

    `welcome(hello)` answers a Hello with Welcome, with Refuse, or with None for "not yet" (see invite()). `on_silent`
    and `on_gone` report a peer's state. `lock`: the lock of the name, if the caller holds it already. Raises AppError
    when another process owns the name.
    """

    def __init__(
        self,
        loop: Loop,
        run_dir: Path,
        name: str,
        timing: Timing,
        welcome: Callable[[Hello], Welcome | Refuse | None],
        on_message: Callable[[Peer, Message], None],
        on_silent: Callable[[Peer], None],
        on_gone: Callable[[Peer], None],
        lock: Lock | None = None,
    ):
        self.loop, self.timing = loop, timing
        self.peers: dict[bytes, Peer] = {}
        self._welcome, self._on_message, self._on_silent, self._on_gone = welcome, on_message, on_silent, on_gone
        self._numbers = count()
        self._lock = lock or Lock(run_dir / f"{name}.lock")
        self._path = run_dir / f"{name}.sock"
        self._path.unlink(missing_ok=True)  # a second bind would steal it silently: the lock prevents that
        self._socket = _socket(loop, zmq.ROUTER)
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._socket.bind(_endpoint(self._path))
        self._beat_due_ns = self._look_due_ns = 0
        loop.watch(self._socket, self._receive)
        loop.every_tick(self._on_tick)

    def send(self, peer: Peer, message: Message) -> bool:
        """False when the peer cannot take the message now. A peer that ended is noticed by its pidfd."""
        return self._send(peer.identity, message)

    def invite(self) -> None:
        """Answers every peer that waits for its Welcome, and gives all others the Welcome of a new epoch."""
        for peer in list(self.peers.values()):
            self._answer(peer)

    def close(self) -> None:
        for peer in list(self.peers.values()):
            self._drop(peer)
        self.loop.unwatch(self._socket)
        self.loop.stop_calling(self._on_tick)
        self._socket.close()
        self._path.unlink(missing_ok=True)
        self._lock.close()

    def _send(self, identity: bytes, message: Message) -> bool:
        try:
            self._socket.send_multipart([identity, encode(message)], zmq.NOBLOCK)
            return True
        except zmq.ZMQError:  # EAGAIN: its queue is full; EHOSTUNREACH: it has disconnected
            return False

    def _receive(self) -> None:
        for _ in range(BURST):
            try:
                frames = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                identity, data = frames
                message = decode(data)
            except (ValueError, msgspec.MsgspecError):
                self.loop.counters["messages_malformed"] += 1
                continue
            self._handle(identity, message)

    def _handle(self, identity: bytes, message: Message) -> None:
        peer = self.peers.get(identity)
        if isinstance(message, Hello):
            self._greet(identity, message)
        elif peer is None:
            if not isinstance(message, Bye):
                self._send(identity, Refuse("say hello first", final=False))
        elif isinstance(message, Bye):
            peer.left = True
            self._drop(peer)
        else:
            peer.heard_ns, peer.silent = self.loop.now_ns(), False
            if not isinstance(message, Beat):
                self._on_message(peer, message)

    def _greet(self, identity: bytes, hello: Hello) -> None:
        if hello.schema != SCHEMA:
            versions = f"this process uses message schema {SCHEMA}, {hello.service} uses {hello.schema}"
            return self._reject(identity, f"{versions}: run the same version of peoplecounter in all services.")
        peer = self.peers.get(identity)
        if peer is None:
            if len(self.peers) >= MAX_PEERS:
                return self._reject(identity, f"{MAX_PEERS} peers are connected already.", final=False)
            try:
                if hello.namespaces[0] != namespaces()[0]:
                    raise ProcessLookupError
                pidfd = os.pidfd_open(hello.pid)
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE):
                    return self._reject(identity, "this process has too many open files.", final=False)
                hidden = f"process {hello.pid} of {hello.service} is not visible from here"
                return self._reject(identity, f"{hidden}: run all services in one PID namespace.")
            peer = self.peers[identity] = Peer(identity, hello, pidfd, self.loop.now_ns(), number=next(self._numbers))
            self.loop.watch(pidfd, lambda: self._drop(peer))
        self._answer(peer)

    def _reject(self, identity: bytes, reason: str, final: bool = True) -> None:
        self.loop.counters["hellos_refused"] += 1
        self._send(identity, Refuse(reason, final))

    def _answer(self, peer: Peer) -> None:
        answer = self._welcome(peer.hello)
        if answer is None:
            return
        peer.welcomed = isinstance(answer, Welcome)
        self._send(peer.identity, answer)
        if isinstance(answer, Refuse):
            self.loop.counters["hellos_refused"] += 1
            self._drop(peer)

    def _drop(self, peer: Peer) -> None:
        if self.peers.pop(peer.identity, None) is None:
            return
        self.loop.unwatch(peer.pidfd)
        os.close(peer.pidfd)
        self._on_gone(peer)

    def _on_tick(self, now_ns: int) -> None:
        if now_ns >= self._beat_due_ns:
            self._beat_due_ns = now_ns + self.timing.beat_ns
            for peer in self.peers.values():
                if not peer.silent:
                    self._send(peer.identity, Beat())
        if now_ns >= self._look_due_ns:
            self._look_due_ns = now_ns + self.timing.beat_ns // 10
            for peer in list(self.peers.values()):
                heard_ns = max(peer.heard_ns, self.loop.woke_ns)
                if not peer.silent and now_ns - heard_ns > self.timing.silent_ns:
                    peer.silent = True
                    self._on_silent(peer)


class LinkClient:
    """Connects to an owner's socket and says hello until it is welcome, and again when the owner has restarted.

    A final Refuse raises AppError out of Loop.tick().
    """

    def __init__(
        self,
        loop: Loop,
        path: Path,
        hello: Hello,
        timing: Timing,
        on_welcome: Callable[[Welcome], None],
        on_message: Callable[[Message], None],
        on_lost: Callable[[], None],
    ):
        self.loop, self.path, self.hello, self.timing = loop, path, hello, timing
        self.welcome: Welcome | None = None
        self._on_welcome, self._on_message, self._on_lost = on_welcome, on_message, on_lost
        self._pidfd: int | None = None
        self._send_due_ns = 0
        self._heard_ns = 0
        self._socket = _socket(loop, zmq.DEALER)
        self._socket.setsockopt(zmq.IMMEDIATE, 1)  # no queue towards an owner that is not connected
        self._socket.setsockopt(zmq.ROUTING_ID, secrets.token_bytes(8).replace(b"\0", b"\1"))
        self._socket.connect(_endpoint(path))
        loop.watch(self._socket, self._receive)
        loop.every_tick(self._on_tick)

    @property
    def answers(self) -> bool:
        """True while the owner has welcomed this peer and is heard."""
        return self.welcome is not None and self.loop.now_ns() - self._heard_ns <= self.timing.silent_ns

    @property
    def owner_ended(self) -> bool:
        """True when the process that sent the Welcome has ended, even if on_lost was not called yet."""
        return self._pidfd is None or bool(select.select([self._pidfd], [], [], 0)[0])

    def send(self, message: Message) -> bool:
        """False when the owner is not connected or cannot take the message now."""
        if self._socket.closed:
            return False
        try:
            self._socket.send(encode(message), zmq.NOBLOCK)
            return True
        except zmq.Again:
            return False

    def close(self, bye: bool = True) -> None:
        """`bye=False`: this process fails, and the owner should notice."""
        self._lose()
        if not self._socket.closed:
            if bye:
                self.send(Bye())
            self.loop.unwatch(self._socket)
            self.loop.stop_calling(self._on_tick)
            self._socket.close()

    def _receive(self) -> None:
        while not self._socket.closed:
            try:
                frames = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                (data,) = frames
                message = decode(data)
            except (ValueError, msgspec.MsgspecError):
                self.loop.counters["messages_malformed"] += 1
                continue
            self._handle(message)

    def _handle(self, message: Message) -> None:
        before_ns, self._heard_ns = self._heard_ns, self.loop.now_ns()
        if self.welcome is not None and self._heard_ns - before_ns > self.timing.silent_ns:
            self._send_due_ns = 0  # the owner continues after a silence: beat before it takes us for silent
        if isinstance(message, Welcome):
            if self.welcome is None or self.welcome != message:
                self._lose()
                self._enter(message)
        elif isinstance(message, Refuse):
            self._lose()
            if message.final:
                raise AppError(f"{self.path.stem} refused {self.hello.service}: {message.reason}")
            self._send_due_ns = self.loop.now_ns() + self.timing.beat_ns // 10
        elif not isinstance(message, Beat) and self.welcome is not None:
            self._on_message(message)

    def _enter(self, welcome: Welcome) -> None:
        try:
            self._pidfd = os.pidfd_open(welcome.pid)
        except ProcessLookupError:
            return  # the owner has ended meanwhile; its successor will answer the next hello
        self.loop.watch(self._pidfd, self._lose)
        self.welcome = welcome
        self._on_welcome(welcome)

    def _lose(self) -> None:
        """The owner ended or has a new epoch: nothing of the old epoch is touched again."""
        if self._pidfd is not None:
            self.loop.unwatch(self._pidfd)
            with contextlib.suppress(OSError):
                os.close(self._pidfd)
            self._pidfd = None
        if self.welcome is not None:
            self.welcome = None
            self._on_lost()

    def _on_tick(self, now_ns: int) -> None:
        if now_ns >= self._send_due_ns:
            silent = self.welcome is not None and not self.answers
            interval_ns = self.timing.beat_ns * (10 if silent else 1)  # do not fill a frozen owner's queue
            sent = self.send(self.hello if self.welcome is None else Beat())
            waits = self.welcome is None and not sent  # for an owner, to be greeted as soon as it is there
            self._send_due_ns = now_ns + (RECONNECT_MS * 1_000_000 if waits else interval_ns)
