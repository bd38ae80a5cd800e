"""Files as the rest of the project needs them: replaced whole, locked by one process, in a private directory.

Standard library only: a builder's own Python imports this module.
"""

import contextlib
import hashlib
import os
import tempfile
from fcntl import LOCK_EX, LOCK_NB, LOCK_UN, flock
from pathlib import Path

from peoplecounter.common.errors import NO_INPUT, SOFTWARE, AppError

IPC_PATH_MAX = 107  # bytes: sun_path of a unix socket
RUN_DIR_MAX = IPC_PATH_MAX - 40  # bytes: leaves room for the names of sockets


def cache_folder() -> Path:
    """This user's cache folder; systemd's CacheDirectory under systemd. Raises AppError for a user without a home."""
    if os.environ.get("CACHE_DIRECTORY"):
        return Path(os.environ["CACHE_DIRECTORY"].split(":")[0])
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "peoplecounter"
    except RuntimeError:
        raise AppError("This user has no home folder: set XDG_CACHE_HOME to a folder for caches.") from None


def sha256(data: bytes) -> str:
    """The SHA-256 of some bytes, in hex."""
    return hashlib.sha256(data).hexdigest()


class Replacement:
    """A new content of a file, which appears under the file's name whole, with `commit()`, or not at all."""

    def __init__(self, path: Path):
        self.path, self.nbytes, self._hash = path, 0, hashlib.sha256()
        try:
            number, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        except OSError as error:
            raise AppError(f"{path} cannot be written: {error.strerror}.", NO_INPUT) from None
        self._file, self._temporary = os.fdopen(number, "wb"), Path(name)

    @property
    def sha256(self) -> str:
        """The SHA-256, in hex, of what was written so far."""
        return self._hash.hexdigest()

    def write(self, data) -> None:
        """Appends bytes. Raises OSError when the disk is full."""
        self._file.write(data)
        self._hash.update(data)
        self.nbytes += len(data)

    def commit(self, mode: int = 0o644) -> None:
        """Gives the file its name. Raises OSError when the disk is full."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._temporary.chmod(mode)
        self._temporary.replace(self.path)

    def __enter__(self) -> "Replacement":
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):  # the rest of an uncommitted file is not needed
            self._file.close()
        self._temporary.unlink(missing_ok=True)


def write_file(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Writes the whole file or nothing. Raises AppError when it cannot be written."""
    with Replacement(path) as file:
        try:
            file.write(data)
            file.commit(mode)
        except OSError as error:
            raise AppError(f"{path} cannot be written: {error.strerror}.", SOFTWARE) from None


_held: "set[Lock]" = set()  # by this process


class Lock:
    """Exclusive ownership of a name in the run directory. The kernel releases it when the process ends.

    Raises AppError, with the owner's pid, when another process holds it.
    """

    def __init__(self, path: Path, name: str = "", instead: str = "run directory"):
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            flock(self._fd, LOCK_EX | LOCK_NB)
        except OSError:
            pid = os.read(self._fd, 32).decode(errors="replace").strip() or "unknown"
            os.close(self._fd)
            raise AppError(
                f"{name or path.stem!r} is already owned by process {pid} (lock {path}): "
                f"stop that process or use another {instead}."
            ) from None
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, str(os.getpid()).encode(), 0)
        _held.add(self)

    def forget(self) -> None:
        """Removes the owner's pid from the file: this process ends as intended, so it is not reported as lost."""
        os.ftruncate(self._fd, 0)

    def close(self) -> None:
        _held.discard(self)
        os.close(self._fd)


def release_locks() -> None:
    """All locks of this process, which does nothing any more but end: its successor need not wait until it has."""
    for lock in _held:
        flock(lock._fd, LOCK_UN)


def make_private(run_dir: Path) -> None:
    """Creates the run directory, mode 0700. Raises AppError for one that another user owns or can read."""
    if len(os.fsencode(run_dir)) > RUN_DIR_MAX:
        raise AppError(f"The run_dir {run_dir} is too long for socket names: use a shorter run_dir.")
    make_private_folder(run_dir, "run_dir")


def make_private_folder(path: Path, what: str) -> None:
    """The same for any directory; `what` it is, for errors."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = path.stat()
    except OSError as error:
        raise AppError(f"The {what} {path} cannot be used: {error.strerror}.") from None
    if status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise AppError(f"The {what} {path} must be private: run chmod 700 as its owner, or use another directory.")
