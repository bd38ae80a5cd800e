"""What happened at a source or in an area, in logs on disk: fusion appends to them, the history reads them.

`events/SOURCE.log` in `data_dir`: one record a line, `CRC32 {"kind": …, "n": …}`, numbered by `n` without a gap. When
a file is full it becomes `SOURCE.N.log`, N being its last number, and the oldest files beyond the limit are deleted.
Each file begins with a Checkpoint, so its end tells the sums of a source. A torn last line is cut off.

`areas/NAME.log`: an Adjustment a line, all of them.
"""

import contextlib
import errno
import logging
import os
import secrets
import time
import zlib
from collections.abc import Iterator, Sequence
from fcntl import LOCK_EX, LOCK_NB, flock
from pathlib import Path

import msgspec
from msgspec import Struct

from peoplecounter.common.errors import SOFTWARE, AppError
from peoplecounter.common.files import make_private_folder

FOLDER, AREAS = "events", "areas"  # in data_dir
FILE_BYTES = 4 << 20


class Record(Struct, frozen=True, kw_only=True, tag_field="kind", omit_defaults=True):
    """One line of a log."""

    n: int  # 1, 2, 3 … in each log


class Crossing(Record, frozen=True, tag="crossing"):
    """A person crossed a line."""

    number: int  # of the source's crossings, without a gap
    line: str
    revision: int  # of the line
    direction: str  # "in" | "out"
    track: str
    time_s: float  # UTC, seconds since 1970
    complete: bool  # False: frames in which it happened were not counted completely


class ZoneChange(Record, frozen=True, tag="zone"):
    """A person entered or left a zone. One who has left it was there for `dwell_s`."""

    number: int  # of the source's zone changes, without a gap
    zone: str
    revision: int
    entered: bool
    track: str
    time_s: float
    dwell_s: float = 0.0


class MinuteOf(Struct, frozen=True, omit_defaults=True):
    """A line or zone within a minute: crossings; or people, as mean and max."""

    ins: int = 0
    outs: int = 0
    total_ins: int = 0  # of the line, up to the end of the minute
    total_outs: int = 0
    people_mean: float | None = None
    people_max: int | None = None


class Minute(Record, frozen=True, tag="minute"):
    """The sums of one minute, or of a part of it: then another record has the rest."""

    start_s: int  # UTC
    observed_s: float  # of the minute
    complete_s: float  # of that, counted completely
    people_mean: float | None  # None: no complete frame
    people_max: int | None
    lines: dict[str, MinuteOf] = {}
    zones: dict[str, MinuteOf] = {}


class ShapeChange(Record, frozen=True, tag="shape"):
    """A line or zone has a new geometry from now on; `settings` is empty when it was removed."""

    name: str
    revision: int
    time_s: float
    settings: dict


class Adjustment(Struct, frozen=True, kw_only=True):
    """One entry of an area's log. The occupancy is (ins - base_ins) - (outs - base_outs) + corrected."""

    number: int  # 1, 2, 3 …
    kind: str  # "begin" | "reset" | "correct" | "lines"
    time_s: float  # UTC
    before: int  # occupancy
    after: int
    base_ins: int  # of all its lines together, at the last reset
    base_outs: int
    corrected: int  # the sum of the corrections since then
    reset_s: float  # when it was
    drift: int  # what it took away
    lines: tuple[str, ...]
    note: str = ""


def append_line(path: Path, line: bytes) -> None:
    """Adds a line to a small log, on its disk at once, and cuts off a torn one before it. Raises OSError."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_APPEND, 0o600)
    try:
        whole = path.read_bytes().rfind(b"\n") + 1
        os.ftruncate(fd, whole)
        if os.write(fd, line + b"\n") <= len(line):
            os.ftruncate(fd, whole)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(fd)
    finally:
        os.close(fd)


class LineTotals(Struct):
    """All crossings of a line, whatever its revision."""

    ins: int = 0
    outs: int = 0

    def public(self) -> dict:
        return {"in": self.ins, "out": self.outs}


class ZoneTotals(Struct):
    """All visits to a zone."""

    entered: int = 0
    left: int = 0
    dwell_s: float = 0.0

    def public(self) -> dict:
        return {"entered": self.entered, "left": self.left, "dwell_s": round(self.dwell_s, 1)}


class Shape(Struct):
    """A line or zone as it is, or was last."""

    revision: int
    settings: dict


class Sums(Struct):
    """What all records of a log amount to."""

    log: str = ""  # a log that is begun anew has another one: its numbers start again
    n: int = 0
    crossings: int = 0
    zone_changes: int = 0
    lines: dict[str, LineTotals] = {}
    zones: dict[str, ZoneTotals] = {}
    shapes: dict[str, Shape] = {}
    minute: dict[str, LineTotals] = {}  # crossings that no Minute contains yet
    minute_s: int = 0  # the minute in which they happened

    def apply(self, record: "AnyRecord") -> None:
        """Adds a record. One that is already contained, or a checkpoint of it, changes nothing."""
        if record.n <= self.n:
            return
        self.n = record.n
        if isinstance(record, Crossing):
            self.crossings = record.number
            for totals in (self.lines, self.minute):
                line = totals.setdefault(record.line, LineTotals())
                line.ins += record.direction == "in"
                line.outs += record.direction == "out"
            self.minute_s = int(record.time_s // 60) * 60
        elif isinstance(record, ZoneChange):
            self.zone_changes = record.number
            zone = self.zones.setdefault(record.zone, ZoneTotals())
            zone.entered += record.entered
            zone.left += not record.entered
            zone.dwell_s += record.dwell_s
        elif isinstance(record, ShapeChange):
            self.shapes[record.name] = Shape(record.revision, record.settings)
        elif isinstance(record, Minute):
            self.minute = {}


class Checkpoint(Record, frozen=True, tag="checkpoint"):
    """The first line of a file: the sums of everything before it."""

    source: str
    sums: Sums


AnyRecord = Crossing | ZoneChange | Minute | ShapeChange | Checkpoint
_decoder = msgspec.json.Decoder(AnyRecord)


def encode(record: AnyRecord) -> bytes:
    """A line of a log."""
    body = msgspec.json.encode(record)
    return b"%08x %s\n" % (zlib.crc32(body), body)


def decode(line: bytes) -> AnyRecord | None:
    """The record of a line without its end; None for a damaged one."""
    checksum, _, body = line.partition(b" ")
    try:
        return _decoder.decode(body) if int(checksum, 16) == zlib.crc32(body) else None
    except (ValueError, msgspec.MsgspecError):
        return None


def read(path: Path, offset: int = 0) -> Iterator[tuple[AnyRecord | None, int]]:
    """Each whole line of a file from a byte on: (record, or None for a damaged one; where the next line begins)."""
    with path.open("rb") as file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            yield decode(line[:-1]), offset


def files(folder: Path, source: str) -> list[Path]:
    """The files of a log, oldest first, the current one last (if it exists)."""
    numbered = [path for path in folder.glob(f"{source}.*.log") if path.stem.removeprefix(f"{source}.").isdigit()]
    full = sorted(numbered, key=lambda path: int(path.stem.rpartition(".")[2]))
    return [*full, *(path for path in [folder / f"{source}.log"] if path.exists())]


def sums_of(data: Path, source: str) -> Sums | None:
    """The sums of the newest file that begins with a checkpoint, and of all that follows it; None without such a file.

    Raises OSError.
    """
    paths = files(data / FOLDER, source)
    for start in reversed(range(len(paths))):
        first = next(read(paths[start]), (None, 0))[0]
        if isinstance(first, Checkpoint):
            sums = first.sums
            for path in paths[start:]:
                for record, _ in read(path):
                    if record is not None:
                        sums.apply(record)
            return sums
    return None


class EventLog:
    """The log of one source, opened by its only writer; `sums` is what it contains now.

    Raises AppError when it cannot be opened.
    """

    def __init__(self, data: Path, source: str, limit_bytes: int):
        self._folder, self._source, self._limit_bytes = data / FOLDER, source, limit_bytes
        self._path = self._folder / f"{source}.log"
        make_private_folder(data, "data_dir")
        make_private_folder(self._folder, "folder of event logs")
        try:
            self._open()
            sums = sums_of(data, source)
            self.sums = sums or Sums(log=secrets.token_hex(4))
            if sums is None and self._size:  # its first line is damaged: what the rest adds up to is unknown
                damaged = self._path.with_suffix(f".{int(time.time())}.damaged")
                logging.getLogger("events").error("%s has no begin and is kept as %s", self._path, damaged.name)
                self._path.rename(damaged)
                os.close(self._fd)
                self._open()
            if not self._size:
                self._begin(self.sums)
        except BlockingIOError:
            raise AppError(
                f"The event log {self._path} is written by another process: stop its group, or use another data_dir."
            ) from None
        except OSError as error:
            raise AppError(f"The event log {self._path} cannot be used: {error.strerror}.", SOFTWARE) from None

    @property
    def n(self) -> int:
        """Of its last record."""
        return self.sums.n

    def append(self, records: Sequence[AnyRecord]) -> None:
        """Writes the records that it does not contain yet. Raises OSError; then none of them was written."""
        new = [record for record in records if record.n > self.n]
        if not new:
            return
        self._write(b"".join(map(encode, new)))
        for record in new:
            self.sums.apply(record)
        if self._size >= FILE_BYTES:
            with contextlib.suppress(OSError):  # a full disk: the file grows on
                self._rotate()

    def begin(self, sums: Sums) -> None:
        """Goes on from these sums, although the log ends elsewhere. Raises OSError."""
        self.sums = sums
        self._rotate()

    def close(self) -> None:
        os.close(self._fd)

    def _open(self) -> None:
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_APPEND, 0o600)
        flock(self._fd, LOCK_EX | LOCK_NB)
        self._size = 0
        for record, end in read(self._path):
            if record is not None:
                self._size = end
        os.ftruncate(self._fd, self._size)  # cuts off what a power failure or a full disk has torn

    def _begin(self, sums: Sums) -> None:
        self._write(encode(Checkpoint(n=sums.n, source=self._source, sums=sums)))

    def _rotate(self) -> None:
        before = self._fd
        self._path.rename(self._folder / f"{self._source}.{self.n}.log")
        self._open()
        os.close(before)
        self._begin(self.sums)
        paths = files(self._folder, self._source)
        for path in paths[: max(0, len(paths) - self._limit_bytes // FILE_BYTES)]:
            path.unlink(missing_ok=True)

    def _write(self, data: bytes) -> None:
        written = 0
        try:
            while written < len(data):
                written += os.write(self._fd, data[written:])
        except OSError:
            os.ftruncate(self._fd, self._size)
            raise
        self._size += len(data)


def read_adjustments(path: Path) -> list[Adjustment]:
    """The entries of an area's log, oldest first; lines that a power failure has torn are left out."""
    entries = []
    try:
        lines = path.read_bytes().splitlines() if path.exists() else []
    except OSError as error:
        raise AppError(f"{path} cannot be read: {error.strerror}.", SOFTWARE) from None
    for line in lines:
        with contextlib.suppress(msgspec.MsgspecError):
            entries.append(msgspec.json.decode(line, type=Adjustment))
    return entries
