"""The timing cache: the measurements of earlier builds, one file for each (GPU, TensorRT, CUDA).

A second build of the same network skips the measuring. The file is read and written under a lock and replaced as a
whole: concurrent builds add to it, a killed build leaves it unchanged, and a damaged file is replaced by a new one.
Standard library only: a builder's own Python imports this module.
"""

import contextlib
import fcntl
import hashlib
import json
import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from peoplecounter.common.errors import AppError
from peoplecounter.common.files import cache_folder, write_file

DIGEST = 32  # bytes of SHA-256 in front of the cache: TensorRT itself crashes on some damaged ones
LOG = logging.getLogger("engine")


def default_folder() -> Path:
    """The folder of the timing caches."""
    return cache_folder() / "timing"


def key(gpu: str, compute_capability: str, tensorrt: str, cuda: int) -> str:
    """ "nvidia-h200_sm90_trt10.15.1_cuda13.0": measurements are valid only if all of this is the same."""
    name = re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-")
    version = ".".join(tensorrt.split(".")[:3])
    return f"{name}_sm{compute_capability.replace('.', '')}_trt{version}_cuda{cuda // 1000}.{cuda % 1000 // 10}"


class TimingCache:
    """The cache of one key. Its errors are logged and never stop a build."""

    def __init__(self, folder: Path, name: str):
        self._folder, self._name = folder, name
        self._path, self._builds = folder / f"{name}.cache", folder / f"{name}.builds.json"

    def read(self) -> bytes:
        """The measurements so far; empty when there are none or they are damaged."""
        with self._locked("read") as free:
            return self._read() if free else b""

    def add(self, merge: Callable[[bytes], bytes]) -> None:
        """Replaces the cache by `merge(current measurements)`."""
        with self._locked("written") as free:
            if free:
                data = merge(self._read())
                write_file(self._path, hashlib.sha256(data).digest() + data)

    def ratio(self, build: str, seconds: float) -> float | None:
        """Seconds of this build relative to the first one of the same `build`; None: this is the first."""
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
            LOG.warning("The timing cache %s is damaged and is replaced.", self._path)
            return b""
        return data[DIGEST:]

    @contextlib.contextmanager
    def _locked(self, what: str) -> Iterator[bool]:
        """Holds the lock while the file is read or replaced; yields False when the folder cannot be used."""
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
            except (OSError, AppError) as error:
                LOG.warning("The timing cache in %s cannot be %s: %s", self._folder, what, error)
