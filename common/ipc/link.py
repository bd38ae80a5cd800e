"""The control plane's two ends: Listen (ROUTER, at the owner) and Dial (DEALER, at each of its peers).

Both know hello, welcome, refuse, beat and bye; what else is said goes to the `on_message` they were given. A message
that does not decode is counted and ignored. A peer that misses its beats is silent; a peer whose process ended is gone
(a pidfd says so at once, and cannot be fooled by a reused pid).
"""

import contextlib
import os
import secrets
import select
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import zmq

from peoplecounter.common.errors import Refused
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

MAX_PEERS = 64
BURST = 500  # messages handled before the loop gets its turn: a flood on one socket must not starve the others


@dataclass(frozen=True)
class Timing:
    """How often each end beats, and after how long without a beat a peer counts as silent."""

    beat_ns: int = 250_000_000
    silent_ns: int = 2_000_000_000

    @classmethod
    def of_ms(cls, beat_ms: int, silent_ms: int) -> "Timing":
        return cls(beat_ms * 1_000_000, silent_ms * 1_000_000)


@dataclass
class Peer:
    """One consumer as its owner sees it."""

    identity: bytes
    hello: Hello
    pidfd: int
    heard_ns: int
    turn: int = 0  # grows with every offer: the smallest is the least recently used
    welcomed: bool = False
    silent: bool = False
    left: bool = False  # it said bye


def _socket(loop: Loop, kind: int) -> zmq.Socket:
    socket = loop.context.socket(kind)
    socket.setsockopt(zmq.LINGER, 200)
    socket.setsockopt(zmq.MAXMSGSIZE, MAX_BYTES)
    socket.setsockopt(zmq.RECONNECT_IVL, 50)
    socket.setsockopt(zmq.RECONNECT_IVL_MAX, 500)
    return socket


def _endpoint(path: Path) -> str:
    if len(os.fsencode(path)) > IPC_PATH_MAX:
        raise Refused(f"The socket path {path} is longer than {IPC_PATH_MAX} bytes: use a shorter run_dir.")
    return f"ipc://{path}"


class Listen:
    """Binds `<run_dir>/<name>.sock` as its only owner; keeps the list of peers that said a proper hello.

    `welcome(hello)` answers a Hello with Welcome, Refuse, or None for "not yet" (ask `invite()` later). `lock`: of the
    name, when it is held already.
    Raises Refused when another process owns the name.
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
        self._lock = lock or Lock(run_dir / f"{name}.lock")
        self._path = run_dir / f"{name}.sock"
        self._path.unlink(missing_ok=True)  # a second bind would steal it silently: the lock is what protects it
        self._socket = _socket(loop, zmq.ROUTER)
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._socket.bind(_endpoint(self._path))
        self._beat_ns = 0
        loop.watch(self._socket, self._receive)
        loop.every_tick(self._keep_house)

    def send(self, peer: Peer, message: Message) -> bool:
        """False when the peer cannot take it now; a peer that left is noticed by its pidfd."""
        return self._send(peer.identity, message)

    def invite(self) -> None:
        """Answers every peer that still waits for its Welcome, or (after a new epoch) gives all of them the new one."""
        for peer in list(self.peers.values()):
            self._answer(peer)

    def close(self) -> None:
        for peer in list(self.peers.values()):
            self._drop(peer)
        self.loop.unwatch(self._socket)
        self.loop.leave(self._keep_house)
        self._socket.close()
        self._path.unlink(missing_ok=True)
        self._lock.close()

    def _send(self, identity: bytes, message: Message) -> bool:
        try:
            self._socket.send_multipart([identity, encode(message)], zmq.NOBLOCK)
            return True
        except zmq.ZMQError:  # EAGAIN: its queue is full; EHOSTUNREACH: it has gone
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
            self.loop.counters["hellos_refused"] += 1
            ours = f"schema {SCHEMA} is spoken here, {hello.service} speaks {hello.schema}"
            self._send(identity, Refuse(f"{ours}: run the same version of peoplecounter everywhere."))
            return
        peer = self.peers.get(identity)
        if peer is None:
            if len(self.peers) >= MAX_PEERS:
                self.loop.counters["hellos_refused"] += 1
                self._send(identity, Refuse(f"{MAX_PEERS} consumers are connected already.", final=False))
                return
            try:
                if hello.namespaces[0] != namespaces()[0]:
                    raise ProcessLookupError
                pidfd = os.pidfd_open(hello.pid)
            except OSError:
                self.loop.counters["hellos_refused"] += 1
                there = f"process {hello.pid} of {hello.service} is not visible here"
                self._send(identity, Refuse(f"{there}: run all services in one PID namespace."))
                return
            peer = self.peers[identity] = Peer(identity, hello, pidfd, self.loop.now_ns())
            self.loop.watch(pidfd, lambda: self._drop(peer))
        self._answer(peer)

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

    def _keep_house(self, now_ns: int) -> None:
        if now_ns >= self._beat_ns:
            self._beat_ns = now_ns + self.timing.beat_ns
            for peer in self.peers.values():
                if not peer.silent:
                    self._send(peer.identity, Beat())
        for peer in list(self.peers.values()):
            heard = max(peer.heard_ns, self.loop.woke_ns)
            if not peer.silent and now_ns - heard > self.timing.silent_ns:
                peer.silent = True
                self._on_silent(peer)


class Dial:
    """Connects to an owner's socket, says hello until it is welcome, and again whenever the owner has restarted.

    A final Refuse raises Refused out of Loop.tick().
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
        self._next_ns = 0
        self._heard_ns = 0
        self._socket = _socket(loop, zmq.DEALER)
        self._socket.setsockopt(zmq.IMMEDIATE, 1)  # no queue towards an owner that is not there
        self._socket.setsockopt(zmq.ROUTING_ID, secrets.token_bytes(8).replace(b"\0", b"\1"))
        self._socket.connect(_endpoint(path))
        loop.watch(self._socket, self._receive)
        loop.every_tick(self._keep_house)

    @property
    def owner_ended(self) -> bool:
        """True when the process that gave the Welcome has ended, whether or not we have been told."""
        return self._pidfd is None or bool(select.select([self._pidfd], [], [], 0)[0])

    def send(self, message: Message) -> bool:
        """False when the owner is not there or takes nothing now."""
        if self._socket.closed:
            return False
        try:
            self._socket.send(encode(message), zmq.NOBLOCK)
            return True
        except zmq.Again:
            return False

    def close(self, bye: bool = True) -> None:
        """`bye=False`: the owner shall notice an end that nobody wanted."""
        self._lose()
        if not self._socket.closed:
            if bye:
                self.send(Bye())
            self.loop.unwatch(self._socket)
            self.loop.leave(self._keep_house)
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
            self._next_ns = 0  # it goes on after a silence, and shall hear from us before it takes us for silent
        if isinstance(message, Welcome):
            if self.welcome is None or self.welcome != message:
                self._lose()
                self._enter(message)
        elif isinstance(message, Refuse):
            self._lose()
            if message.final:
                raise Refused(f"{self.path.stem} refused {self.hello.service}: {message.reason}")
            self._next_ns = self.loop.now_ns() + self.timing.beat_ns // 10
        elif not isinstance(message, Beat) and self.welcome is not None:
            self._on_message(message)

    def _enter(self, welcome: Welcome) -> None:
        try:
            self._pidfd = os.pidfd_open(welcome.pid)
        except ProcessLookupError:
            return  # it ended meanwhile; its successor will answer the next hello
        self.loop.watch(self._pidfd, self._lose)
        self.welcome = welcome
        self._on_welcome(welcome)

    def _lose(self) -> None:
        """The owner ended or has a new epoch: nothing of the old one is touched again."""
        if self._pidfd is not None:
            self.loop.unwatch(self._pidfd)
            with contextlib.suppress(OSError):
                os.close(self._pidfd)
            self._pidfd = None
        if self.welcome is not None:
            self.welcome = None
            self._on_lost()

    def _keep_house(self, now_ns: int) -> None:
        if now_ns >= self._next_ns:
            silent = self.welcome and now_ns - self._heard_ns > self.timing.silent_ns
            self._next_ns = now_ns + self.timing.beat_ns * (10 if silent else 1)  # do not fill a frozen owner's queue
            self.send(Beat() if self.welcome else self.hello)
