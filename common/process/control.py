"""What every process answers on its private socket, control.<service>.<instance>.sock, and how it came by its name.

There is no other way in: no control from TCP, and who may open the socket may as well kill the process.
"""

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import msgspec

from peoplecounter.common import sources
from peoplecounter.common.errors import Refused
from peoplecounter.common.files import Lock
from peoplecounter.common.ipc.link import Listen, Peer
from peoplecounter.common.ipc.messages import Message, Welcome
from peoplecounter.common.process.journal import Journal
from peoplecounter.common.settings import Settings
from peoplecounter.common.topology import SERVICES

SUPERVISOR = "SUPERVISOR_OF_PEOPLECOUNTER"  # environment: who starts this process again
PREFIX = "control."


class Life(msgspec.Struct):
    """What a process' successor of the same name has to know."""

    starts: int = 0
    ended: str | None = None  # a decoder: by which change (see sources) the source came that has ended


class Control:
    """The process' end of its control socket: each type of message has one handler, which sends the answer."""

    def __init__(self, rt, lock: Lock):
        self.supervisor = os.environ.get(SUPERVISOR, "")
        self.began_s = time.monotonic()
        self._journal = Journal(life_path(rt.settings.run_dir, rt.name), Life)
        self._life = self._journal.read() or Life()
        self._life.starts += 1
        self._journal.write(self._life)
        self._handlers: dict[type, Callable[[Peer, Message], None]] = {}
        self.on_lost: list[Callable[[Peer], None]] = []  # called with who asked, when it has gone or gone silent
        self._loop, self._lock = rt.loop, lock
        welcome = Welcome(f"{rt.name}.{os.getpid()}", os.getpid())
        self._link = Listen(
            rt.loop, rt.settings.run_dir, PREFIX + rt.name, rt.timing,
            lambda hello: welcome, self._on_message, self._lost, self._lost, lock,
        )  # fmt: skip

    @property
    def starts(self) -> int:
        return self._life.starts

    def on(self, kind: type, handler: Callable[[Peer, Message], None]) -> None:
        self._handlers[kind] = handler

    def send(self, peer: Peer, message: Message) -> None:
        self._link.send(peer, message)

    def asks(self, peer: Peer) -> bool:
        """True while who asked is still there."""
        return peer.identity in self._link.peers

    def ended(self, change: str) -> None:
        """The source that came by this change needs no decoder any more."""
        self._life.ended = change
        self._journal.write(self._life)

    def close(self, orderly: bool) -> None:
        """`orderly`: nobody is to miss this process; else its pid stays in the lock file."""
        if orderly:
            self._lock.forget()
        self._link.close()
        self._journal.close()

    def _on_message(self, peer: Peer, message: Message) -> None:
        handler = self._handlers.get(type(message))
        if handler is None:
            self._loop.counters["messages_unexpected"] += 1
        else:
            handler(peer, message)

    def _lost(self, peer: Peer) -> None:
        for callback in self.on_lost:
            callback(peer)


def claim(settings: Settings, service: str, instance: str | None) -> tuple[str, Lock] | None:
    """The instance this process is, and the lock that keeps others from being it; None: nothing is free now.

    Without a name, a decoder takes a source that nobody decodes, a worker takes the lowest free number. Raises Refused
    when the instance that was asked for, or the only one there can be, is owned by another process.
    """
    each = next(row.each for row in SERVICES if row.name == service)
    if each == "group":
        instance = instance or "0"
    if instance is not None:
        return instance, _lock(settings.run_dir, f"{service}.{instance}")
    for name in sources_to_decode(settings) if each == "source" else map(str, count()):
        try:
            return name, _lock(settings.run_dir, f"{service}.{name}")
        except Refused:
            continue
    return None


def _lock(run_dir: Path, name: str) -> Lock:
    """Of the process `name`, "infer_tiles.0": while it runs it is locked and holds its pid."""
    return Lock(run_dir / f"{PREFIX}{name}.lock", name)


def life_path(run_dir: Path, name: str) -> Path:
    return run_dir / f"{PREFIX}{name}.journal"


def sources_to_decode(settings: Settings) -> Iterator[str]:
    """Names of the sources that are there and have not ended."""
    for name, change in sources.known(settings).items():
        if _ended(life_path(settings.run_dir, f"decoder.{name}")) != change.id:
            yield name


def _ended(path: Path) -> str | None:
    if not path.exists():
        return None
    with contextlib.closing(Journal(path, Life)) as journal:
        return (journal.read() or Life()).ended
