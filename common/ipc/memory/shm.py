"""Shared memory as a plain file, mapped by name, in the private run directory (which should be on a tmpfs).

No POSIX shm names and no multiprocessing resource tracker: nothing unlinks a ring behind its owner's back, and what a
killed owner leaves is swept by the next owner of the same name, which holds the lock that proves the other is dead.
"""

import errno
import mmap
import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

from peoplecounter.common.errors import SOFTWARE, Refused
from peoplecounter.common.ipc.loop import Loop
from peoplecounter.common.ipc.messages import RingSpec

_NAME = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[0-9a-f]+\.shm")
PAGE = mmap.PAGESIZE


class Work:
    """Work on shared memory is finished when its code is."""

    kind = "shm"

    def __init__(self, loop: Loop):
        self.on_stuck: list[Callable[[], None]] = []  # nobody gets stuck here

    def then(self, callback: Callable[[], None]) -> None:
        """Calls back at once."""
        callback()

    def finish(self) -> None:
        """It has."""

    def gauges(self) -> dict[str, int]:
        """What is shared is seen by whoever looks at the files."""
        return {}

    def close(self) -> None:
        """Nothing to give back."""


class _Slots:
    def __init__(self, fd: int, slots: int, slot_bytes: int, access: int):
        self._step = -(-slot_bytes // PAGE) * PAGE
        self._nbytes = slot_bytes
        self._map = mmap.mmap(fd, slots * self._step, access=access)

    def slot(self, index: int) -> np.ndarray:
        """uint8 [slot_bytes], page-aligned."""
        return np.frombuffer(self._map, np.uint8, self._nbytes, index * self._step)

    def close(self) -> None:
        self._map = None  # unmapped when the last array over it is gone


class Owned(_Slots):
    """Creates `<name>.<epoch>.shm`, all of it backed by memory now: no SIGBUS later. Raises Refused when it is full."""

    def __init__(self, work: Work, run_dir: Path, name: str, epoch: str, slots: int, slot_bytes: int):
        for stale in run_dir.glob(f"{name}.*.shm"):
            stale.unlink(missing_ok=True)
        self._path = run_dir / f"{name}.{epoch}.shm"
        self.handle = self._path.name.encode()
        total = slots * (-(-slot_bytes // PAGE) * PAGE)
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(fd, 0, total)
            super().__init__(fd, slots, slot_bytes, mmap.ACCESS_WRITE)
        except OSError as error:
            self._path.unlink()
            if error.errno != errno.ENOSPC:
                raise
            raise Refused(
                f"No room for {total >> 20} MB of shared memory in {run_dir}: enlarge it or take fewer slots.",
                SOFTWARE,
            ) from None
        finally:
            os.close(fd)

    def ready(self, index: int, generation: int) -> None:
        """Nothing to do: a store is visible to every process that learns of it through a socket."""

    def close(self) -> None:
        super().close()
        self._path.unlink(missing_ok=True)


class Mapped(_Slots):
    """Maps an owner's ring read-only. Raises FileNotFoundError when the owner has replaced it meanwhile."""

    def __init__(self, work: Work, run_dir: Path, spec: RingSpec):
        name = spec.handle.decode(errors="replace")
        if not _NAME.fullmatch(name):
            raise Refused(f"The ring handle {name!r} is not a shared memory name.")
        fd = os.open(run_dir / name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            needed = spec.slots * (-(-spec.slot_bytes // PAGE) * PAGE)
            if os.fstat(fd).st_size < needed:
                raise Refused(f"The ring {name} is {os.fstat(fd).st_size} bytes long, its owner said {needed}.")
            super().__init__(fd, spec.slots, spec.slot_bytes, mmap.ACCESS_READ)
        finally:
            os.close(fd)

    def wait(self, index: int, generation: int) -> None:
        """Nothing to wait for: the owner wrote the slot before it offered it."""

    def lift(self, index: int, generation: int) -> None:
        """Nothing to lift."""

    def close(self, then: Callable[[], None] = lambda: None) -> None:
        """Unmaps the ring, then calls `then`."""
        super().close()
        then()
