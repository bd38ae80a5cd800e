"""A small record that outlives its process: what a service must still know after it was killed and started again."""

import os
from pathlib import Path
from typing import Generic, TypeVar

import msgspec

Record = TypeVar("Record", bound=msgspec.Struct)
SIZE = 4096  # bytes: one page, written by one system call, so a kill leaves the old record or the new one


class Journal(Generic[Record]):
    """One msgspec struct in a file of the run directory."""

    def __init__(self, path: Path, kind: type[Record]):
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        self._kind = kind

    def read(self) -> Record | None:
        """The record written last; None when the file holds none that can be read."""
        data = os.pread(self._fd, SIZE, 0)
        try:
            return msgspec.msgpack.decode(data[4 : 4 + int.from_bytes(data[:4], "little")], type=self._kind)
        except msgspec.MsgspecError:
            return None

    def write(self, record: Record) -> None:
        """Replaces the record."""
        body = msgspec.msgpack.encode(record)
        if len(body) > SIZE - 4:
            raise ValueError(f"a journal record of {len(body)} bytes is too long")
        os.pwrite(self._fd, len(body).to_bytes(4, "little") + body, 0)

    def close(self) -> None:
        os.close(self._fd)
