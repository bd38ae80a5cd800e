"""The timing cache: what TensorRT measured in earlier builds, one file for each (GPU, TensorRT, CUDA).

A second build of the same network skips the measuring. The file is read and written under a lock and replaced whole:
builds side by side add to each other's, a killed one leaves it as it was, a damaged one is begun anew. Standard library
only, see common/files.py.
"""

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from peoplecounter.common.errors import Refused
from peoplecounter.common.files import write_file

DIGEST = 32  # bytes of SHA-256 in front of the cache: TensorRT itself crashes on some damaged ones
LOG = logging.getLogger("engine")


def cache_folder() -> Path:
    """This user's, for what may be made again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "peoplecounter"


def default_folder() -> Path:
    return cache_folder() / "timing"


def key(gpu: str, compute_capability: str, tensorrt: str, cuda: int) -> str:
    """ "nvidia-h200_sm90_trt10.15.1_cuda13.0": what must be the same for measurements to mean the same."""
    name = re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-")
    version = ".".join(tensorrt.split(".")[:3])
    return f"{name}_sm{compute_capability.replace('.', '')}_trt{version}_cuda{cuda // 1000}.{cuda % 1000 // 10}"


class TimingCache:
    """The cache of one key. What goes wrong with it is said and never stops a build."""

    def __init__(self, folder: Path, name: str):
        self._folder, self._name = folder, name
        self._path, self._builds = folder / f"{name}.cache", folder / f"{name}.builds.json"

    def read(self) -> bytes:
        """What TensorRT measured so far; empty when there is nothing, or nothing usable."""
        with self._locked("read") as free:
            return self._read() if free else b""

    def add(self, merge: Callable[[bytes], bytes]) -> None:
        """Replaces the cache by `merge(what is there now)`."""
        with self._locked("written") as free:
            if free:
                data = merge(self._read())
                write_file(self._path, hashlib.sha256(data).digest() + data)

    def ratio(self, build: str, seconds: float) -> float | None:
        """Seconds of this build over those of the first one of the same `build`; None: this is the first."""
        with self._locked("written") as free:
            if not free:
                return None
            try:
                first = {name: float(s) for name, s in json.loads(self._builds.read_text()).items()}
            except (OSError, ValueError, TypeError, AttributeError):
                first = {}
            if first.get(build):
                return seconds / first[build]
            write_file(self._builds, json.dumps({**first, build: seconds}).encode())
            return None

    def _read(self) -> bytes:
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            return b""
        if hashlib.sha256(data[DIGEST:]).digest() != data[:DIGEST]:
            LOG.warning("The timing cache %s is damaged: it is begun anew.", self._path)
            return b""
        return data[DIGEST:]

    @contextlib.contextmanager
    def _locked(self, what: str) -> Iterator[bool]:
        """Exclusive while the file is read or replaced; False when the folder cannot be used, which is said."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            lock = (self._folder / f"{self._name}.lock").open("w")
        except OSError as error:
            LOG.warning("The timing cache in %s cannot be %s: %s.", self._folder, what, error.strerror)
            yield False
            return
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            try:
                yield True
            except (OSError, Refused) as error:
                LOG.warning("The timing cache in %s cannot be %s: %s", self._folder, what, error)
