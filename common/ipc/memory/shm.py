"""Shared memory as a plain file, mapped by name, in the private run directory (which should be on a tmpfs).

No POSIX shm names and no multiprocessing resource tracker: nothing unlinks a ring behind its owner's back. Files of a
killed owner are removed by the next owner of the same name, which holds the lock that proves that the first is dead.
"""

import contextlib
import errno
import mmap
import os
import queue
import re
import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from pathlib import Path

import numpy as np

from peoplecounter.common.errors import SOFTWARE, AppError
from peoplecounter.common.ipc.loop import Loop
from peoplecounter.common.ipc.memory.interface import MemoryKind, Result
from peoplecounter.common.ipc.messages import RingSpec

_FILE_NAME = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[0-9a-f]+\.shm")
PAGE_BYTES = mmap.PAGESIZE


class CpuWorkQueue:
    """Work on shared memory is finished when its code has run. What may take long runs in a thread of its own.

    So a process that works goes on beating, while one whose loop is stuck does not.
    """

    kind = "shm"
    stream = 0

    def __init__(self, loop: Loop, device: int = 0):
        self.on_stuck: list[Callable[[], None]] = []  # never called: nothing gets stuck here
        self._loop = loop
        self._calls: queue.SimpleQueue[tuple[Future, Callable] | None] = queue.SimpleQueue()
        self._wake_fd: int | None = None  # None: nothing was called yet

    def call(self, work: Callable[[], Result], tick: Callable[[], None]) -> Result:
        if self._wake_fd is None:
            self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            self._loop.watch(self._wake_fd, partial(_reset, self._wake_fd))
            threading.Thread(target=self._work, args=(self._wake_fd,), daemon=True, name="work").start()
        future: Future[Result] = Future()
        self._calls.put((future, work))
        while not future.done():
            tick()
        return future.result()

    def on_done(self, callback: Callable[[], None]) -> None:
        callback()

    def poll(self) -> None:
        pass

    def finish(self) -> None:
        pass

    def gauges(self) -> dict[str, int]:
        return {}

    def close(self) -> None:
        self._calls.put(None)

    def _work(self, wake_fd: int) -> None:
        for future, work in iter(self._calls.get, None):
            try:
                result = work()
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(result)
            os.eventfd_write(wake_fd, 1)


class _ShmSlots:
    def __init__(self, fd: int, slots: int, slot_bytes: int, access: int):
        self._step_bytes = _in_pages(slot_bytes)
        self._slot_bytes = slot_bytes
        self._map: mmap.mmap | None = mmap.mmap(fd, slots * self._step_bytes, access=access)

    def slot(self, index: int) -> np.ndarray:
        """uint8 [slot_bytes], page-aligned."""
        assert self._map is not None
        return np.frombuffer(self._map, np.uint8, self._slot_bytes, index * self._step_bytes)

    def _unmap(self) -> None:
        self._map = None  # unmapped when the last array over it is gone


class ShmOwnedMemory(_ShmSlots):
    """Creates `<name>.<epoch>.shm`, backed by memory at once so that no write raises SIGBUS.

    Raises AppError when the file system is full.
    """

    def __init__(self, work: CpuWorkQueue, run_dir: Path, name: str, epoch: str, slots: int, slot_bytes: int):
        for stale in run_dir.glob(f"{name}.*.shm"):
            stale.unlink(missing_ok=True)
        self._path = run_dir / f"{name}.{epoch}.shm"
        self.handle = self._path.name.encode()
        total_bytes = slots * _in_pages(slot_bytes)
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(fd, 0, total_bytes)
            super().__init__(fd, slots, slot_bytes, mmap.ACCESS_WRITE)
        except OSError as error:
            self._path.unlink()
            if error.errno != errno.ENOSPC:
                raise
            raise AppError(
                f"No room for {total_bytes >> 20} MB of shared memory in {run_dir}: enlarge it or use fewer slots.",
                SOFTWARE,
            ) from None
        finally:
            os.close(fd)

    def ready(self, index: int, generation: int) -> None:
        """Nothing to do: a store is visible to every process that learns of it through a socket."""

    def close(self) -> None:
        self._unmap()
        self._path.unlink(missing_ok=True)


class ShmMappedMemory(_ShmSlots):
    """Maps an owner's ring read-only. Raises FileNotFoundError when the owner has replaced it meanwhile."""

    def __init__(self, work: CpuWorkQueue, run_dir: Path, spec: RingSpec):
        name = spec.handle.decode(errors="replace")
        if not _FILE_NAME.fullmatch(name):
            raise AppError(f"The ring handle {name!r} is not a shared memory name.")
        fd = os.open(run_dir / name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            needed_bytes, file_bytes = spec.slots * _in_pages(spec.slot_bytes), os.fstat(fd).st_size
            if file_bytes < needed_bytes:
                raise AppError(f"The ring {name} has {file_bytes} bytes, its owner announced {needed_bytes}.")
            super().__init__(fd, spec.slots, spec.slot_bytes, mmap.ACCESS_READ)
        finally:
            os.close(fd)

    def wait(self, index: int, generation: int) -> None:
        """Nothing to wait for: the owner wrote the slot before it offered it."""

    def abort_wait(self, index: int, generation: int) -> None:
        """There is no wait to end."""

    def close(self, on_done: Callable[[], None] = lambda: None) -> None:
        self._unmap()
        on_done()


def _reset(wake_fd: int) -> None:
    with contextlib.suppress(BlockingIOError):
        os.eventfd_read(wake_fd)


def _in_pages(nbytes: int) -> int:
    """The bytes of as many whole pages."""
    return -(-nbytes // PAGE_BYTES) * PAGE_BYTES


SHM = MemoryKind(CpuWorkQueue, ShmOwnedMemory, ShmMappedMemory)
