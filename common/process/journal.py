"""A record that outlives its process: what a service must still know after it was killed and started again."""

import contextlib
import os
import struct
import zlib
from pathlib import Path
from typing import Generic, TypeVar

import msgspec

Record = TypeVar("Record", bound=msgspec.Struct)
SLOTS = 3
SLOT_BYTES = 8 << 20  # room for one record; what is not written takes no memory
HEADER = struct.Struct("<QII")  # generation, length and CRC32 of the record that follows


class Journal(Generic[Record]):
    """One msgspec struct in a file of the run directory.

    The file has SLOTS slots, which are written in turn: a process that is killed while it writes leaves the last two
    records.
    """

    def __init__(self, path: Path, kind: type[Record]):
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        self._kind = kind
        self._generation = max((generation for generation, _ in self._bodies()), default=0)

    def read(self) -> Record | None:
        """The record written last; None when the file holds none that can be read."""
        return next(iter(self.read_all()), None)

    def read_all(self) -> list[Record]:
        """The records of the slots, the newest first."""
        records = []
        for _, body in sorted(self._bodies(), reverse=True):
            with contextlib.suppress(msgspec.MsgspecError):
                records.append(msgspec.msgpack.decode(body, type=self._kind))
        return records

    def write(self, record: Record) -> None:
        """Replaces the record."""
        body = msgspec.msgpack.encode(record)
        if len(body) > SLOT_BYTES - HEADER.size:
            raise ValueError(f"a journal record of {len(body)} bytes is too long")
        self._generation += 1
        data = HEADER.pack(self._generation, len(body), zlib.crc32(body)) + body
        os.pwrite(self._fd, data, self._generation % SLOTS * SLOT_BYTES)

    def close(self) -> None:
        os.close(self._fd)

    def _bodies(self) -> list[tuple[int, bytes]]:
        """(generation, record) of each slot whose record is whole."""
        found = []
        for offset in range(0, SLOTS * SLOT_BYTES, SLOT_BYTES):
            head = os.pread(self._fd, HEADER.size, offset)
            if len(head) == HEADER.size:
                generation, length, checksum = HEADER.unpack(head)
                body = os.pread(self._fd, length, offset + HEADER.size) if length < SLOT_BYTES else b""
                if len(body) == length and zlib.crc32(body) == checksum and generation:
                    found.append((generation, body))
        return found
