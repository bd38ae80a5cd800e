"""What every process answers on its private socket, control.<service>.<instance>.sock, and how it gets its name.

There is no control over TCP: a user who can open this socket could kill the process anyway.
"""

import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator
from fcntl import LOCK_EX, LOCK_NB, LOCK_SH, LOCK_UN, flock
from itertools import count
from pathlib import Path
from typing import Any

import msgspec

from peoplecounter.common import sources
from peoplecounter.common.errors import AppError
from peoplecounter.common.files import Lock
from peoplecounter.common.ipc.link import LinkServer, Peer, Timing
from peoplecounter.common.ipc.loop import Loop
from peoplecounter.common.ipc.messages import Message, Welcome
from peoplecounter.common.process import gpus
from peoplecounter.common.process.journal import Journal
from peoplecounter.common.settings import Settings
from peoplecounter.common.topology import BY_NAME

AGREE_S = 12.0  # longer than supervisors let a process end
SUPERVISOR = "SUPERVISOR_OF_PEOPLECOUNTER"  # environment variable: what starts this process again
PREFIX = "control."


class ProcessRecord(msgspec.Struct):
    """What the successor of a process must know."""

    starts: int = 0
    ended: str | None = None  # a decoder: the SourceChange.id of the source that has ended


class ControlServer:
    """The control socket of a process `name`, "infer_tiles.0". Each type of message has one handler, which answers."""

    def __init__(self, loop: Loop, run_dir: Path, name: str, timing: Timing, lock: Lock):
        self.supervisor = os.environ.get(SUPERVISOR, "")
        self.began_s = time.monotonic()
        self._journal = Journal(record_path(run_dir, name), ProcessRecord)
        self._record = self._journal.read() or ProcessRecord()
        self._record.starts += 1
        self._journal.write(self._record)
        self._handlers: dict[type, Callable[[Peer, Any], None]] = {}
        self.on_lost: list[Callable[[Peer], None]] = []  # called when a peer has gone or gone silent
        self._loop, self._lock = loop, lock
        welcome = Welcome(f"{name}.{os.getpid()}", os.getpid())
        self._link = LinkServer(
            loop, run_dir, PREFIX + name, timing,
            lambda hello: welcome, self._on_message, self._on_lost, self._on_lost, lock,
        )  # fmt: skip

    @property
    def starts(self) -> int:
        """How many processes of this name were started in this run directory."""
        return self._record.starts

    def on(self, kind: type, handler: Callable[[Peer, Any], None]) -> None:
        """Handles messages of one type."""
        self._handlers[kind] = handler

    def send(self, peer: Peer, message: Message) -> None:
        self._link.send(peer, message)

    def is_connected(self, peer: Peer) -> bool:
        return peer.identity in self._link.peers

    def source_ended(self, change_id: str) -> None:
        """The source of this change needs no decoder any more."""
        self._record.ended = change_id
        self._journal.write(self._record)

    def close(self, orderly: bool) -> None:
        """`orderly`: the process ends as intended; otherwise its pid stays in the lock file."""
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

    def _on_lost(self, peer: Peer) -> None:
        for callback in self.on_lost:
            callback(peer)


def agree_on_fusions(settings: Settings) -> None:
    """Makes sure that all processes of the group know the same number of fusions, which decides who counts a source.

    Processes that know another number may be about to end, so this waits for them. Raises AppError when they do not.
    """
    number = str(settings.workers.fusion)
    lock = os.open(settings.run_dir / "fusions.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    until_s, waits = time.monotonic() + AGREE_S, False
    while True:
        with contextlib.suppress(BlockingIOError):  # each process holds it shared, until it ends
            flock(lock, LOCK_EX | LOCK_NB)  # there is no other one
            os.ftruncate(lock, 0)
            os.pwrite(lock, number.encode(), 0)
        with contextlib.suppress(BlockingIOError):
            flock(lock, LOCK_SH | LOCK_NB)
            known = os.pread(lock, 16, 0).decode()
            if known == number:
                return
            flock(lock, LOCK_UN)
            problem = f"workers.fusion is {number}, but this group runs with {known}"
            if time.monotonic() > until_s:
                raise AppError(f"{problem}: stop all its processes, then start them again.")
            if not waits:
                logging.getLogger("fusions").warning("%s: this process waits for the others to end", problem)
                waits = True
        time.sleep(0.05)


def claim_instance(settings: Settings, service: str, instance: str | None) -> tuple[str, Lock] | None:
    """The instance this process is, and the lock that keeps other processes from being it; None: none is free now.

    Without an instance, a decoder takes a source that has no decoder, a worker takes the lowest free number; a worker
    whose GPU was just lost waits. Raises AppError when the requested instance does not exist, or when it, or every
    possible one, is owned by another process.
    """
    row = BY_NAME[service]
    if row.each == "group":
        instance = instance or "0"
    free = sources_to_decode(settings) if row.each == "source" else map(str, count())
    if row.fixed:
        number = getattr(settings.workers, service)
        free = iter(numbers := [str(i) for i in range(number)])
        if instance is not None and instance not in numbers:
            raise AppError(
                f"There is no {service}.{instance} in this group: workers.{service} is {number}, and its first is 0."
            )
    taken: AppError | None = None
    waits = False  # for a lost GPU: then only a number that was used before is free, there are no more workers
    for name in free if instance is None else [instance]:
        if waits and not (settings.run_dir / f"{PREFIX}{service}.{name}.lock").exists():
            break
        try:
            lock = _lock(settings.run_dir, f"{service}.{name}")
        except AppError as error:
            taken = error
            if instance is None:
                continue
            raise
        if instance is None and row.each == "source" and name not in sources_to_decode(settings):
            lock.forget()  # it has ended, or was removed, since its name was read
            lock.close()
            continue
        if gpus.may_start(settings, row, name):
            return name, lock
        lock.forget()
        lock.close()
        waits = True
    if row.fixed and taken:
        raise taken
    return None


def _lock(run_dir: Path, name: str) -> Lock:
    """The lock of the process `name`; while the process runs it holds the process' pid."""
    return Lock(run_dir / f"{PREFIX}{name}.lock", name)


def record_path(run_dir: Path, name: str) -> Path:
    """The journal of a process' ProcessRecord."""
    return run_dir / f"{PREFIX}{name}.journal"


def sources_to_decode(settings: Settings) -> Iterator[str]:
    """Names of the sources that have not ended."""
    for name, change in sources.known_sources(settings).items():
        if _ended_change(record_path(settings.run_dir, f"decoder.{name}")) != change.id:
            yield name


def _ended_change(path: Path) -> str | None:
    if not path.exists():
        return None
    with contextlib.closing(Journal(path, ProcessRecord)) as journal:
        return (journal.read() or ProcessRecord()).ended
