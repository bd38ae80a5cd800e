"""Reads the logs of a data_dir into a database: each record once, whatever is killed in between.

A transaction holds the rows of some records and the position behind them. Before it, the log is written to its disk, so
that a database never knows more than a log that a power failure has torn.
"""

import json
import logging
import os
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import Engine, delete, select

from peoplecounter.common import events
from peoplecounter.common.counting import HistorySettings
from peoplecounter.common.events import (
    AREAS,
    Adjustment,
    AnyRecord,
    Checkpoint,
    Crossing,
    Minute,
    MinuteOf,
    ShapeChange,
    ZoneChange,
    read_adjustments,
)
from peoplecounter.services.history import tables

BATCH = 2000  # records of one transaction
DAY_S = 86_400
Rows = dict[str, list[dict]]  # table -> rows


@dataclass
class _Place:
    """How far one log has been read."""

    log: str = ""
    n: int = 0  # of the last record
    offsets: dict[bytes, int] = field(default_factory=dict)  # begin of a file -> where its next line begins


class LogFollower:
    """Everything in `data` on its way into the database. Its methods raise SQLAlchemyError when that is away."""

    def __init__(self, data: Path, engine: Engine, settings: HistorySettings):
        self._data, self._engine, self._settings = data, engine, settings
        self._places: dict[str, _Place] = {}
        self._sizes: dict[Path, int] = {}  # of the areas' logs
        self._log = logging.getLogger("history")

    def step(self) -> int:
        """Reads what is new; returns the number of records."""
        done = 0
        for source in sorted({path.name.partition(".")[0] for path in (self._data / events.FOLDER).glob("*.log")}):
            while count := self._read(source):
                done += count
        return done + self._read_areas()

    def forget(self, now_s: float) -> None:
        """Deletes rows that are older than the settings say."""
        with self._engine.begin() as connection:
            for name, time_s in tables.RETENTION.items():
                if days := getattr(self._settings, f"{name}_days"):
                    connection.execute(delete(time_s.table).where(time_s < now_s - days * DAY_S))

    def _read(self, source: str) -> int:
        """Stores up to BATCH records of a log in one transaction; returns their number."""
        place, count = self._place(source), 0
        rows: Rows = defaultdict(list)
        for path in events.files(self._data / events.FOLDER, source):
            with path.open("rb") as file:
                name, began = file.read(8), count  # the checksum of its checkpoint: an inode may be used again
                if name not in place.offsets and _was_read(path, source, place):
                    place.offsets[name] = path.stat().st_size
                for record, end in events.read(path, place.offsets.get(name, 0)):
                    place.offsets[name] = end
                    if record is not None and self._take(source, place, record, rows):
                        count += 1
                    if count == BATCH:
                        break
                if count > began:
                    os.fdatasync(file.fileno())
            if count == BATCH:
                break
        if count:
            self._store(source, place, rows)
        self._places[source] = place
        return count

    def _place(self, source: str) -> _Place:
        """A copy: what a failed transaction has read is read again."""
        known = self._places.get(source)
        if known:
            return _Place(known.log, known.n, dict(known.offsets))
        with self._engine.connect() as connection:
            position = tables.positions
            row = connection.execute(select(position).where(position.c.source == source)).mappings().first()
        return _Place(row["log"], row["n"]) if row else _Place()

    def _take(self, source: str, place: _Place, record: AnyRecord, rows: Rows) -> bool:
        """Adds the rows of a record; False for one that is known."""
        if isinstance(record, Checkpoint) and record.sums.log != place.log:
            place.log, place.n = record.sums.log, 0
        if record.n <= place.n:
            return False
        lost_to = record.n if isinstance(record, Checkpoint) else record.n - 1
        if lost_to > place.n:
            self._log.error("%s: records %d to %d of its log are lost", source, place.n + 1, lost_to)
            rows["gaps"].append({"source": source, "log": place.log, "first": place.n + 1, "last": lost_to})
        place.n = record.n
        for table, row in _rows(record):
            rows[table].append({"source": source, "log": place.log, **row})
        return True

    def _store(self, source: str, place: _Place, rows: Rows) -> None:
        position = tables.positions
        with self._engine.begin() as connection:
            for name, of in rows.items():
                tables.add(connection, tables.metadata.tables[name], of)
            connection.execute(delete(position).where(position.c.source == source))
            tables.add(connection, position, [{"source": source, "log": place.log, "n": place.n}])

    def _read_areas(self) -> int:
        """Stores what is new in the logs of areas, which are small and always read whole."""
        done = 0
        for path in sorted((self._data / AREAS).glob("*.log")):
            size = path.stat().st_size
            if self._sizes.get(path) == size:
                continue
            rows = [_adjustment(path.stem, entry) for entry in read_adjustments(path)]
            with self._engine.begin() as connection:
                tables.add(connection, tables.corrections, rows)
            self._sizes[path] = size
            done += len(rows)
        return done


def _was_read(path: Path, source: str, place: _Place) -> bool:
    """True for a full file of the same log whose last record is known."""
    last = path.stem.removeprefix(f"{source}.")
    if not last.isdigit() or int(last) > place.n:
        return False
    first = next(events.read(path), (None, 0))[0]
    return isinstance(first, Checkpoint) and first.sums.log == place.log


def _rows(record: AnyRecord) -> Iterator[tuple[str, dict]]:
    """(table, row without the source) of what a record tells."""
    if isinstance(record, Crossing):
        names = ("number", "line", "revision", "direction", "track", "time_s", "complete")
        yield "crossings", {name: getattr(record, name) for name in names}
    elif isinstance(record, ZoneChange) and not record.entered:
        times = {"entered_s": record.time_s - record.dwell_s, "left_s": record.time_s}
        same = {name: getattr(record, name) for name in ("number", "zone", "revision", "track", "dwell_s")}
        yield "visits", same | times
    elif isinstance(record, Minute):
        people = MinuteOf(people_mean=record.people_mean, people_max=record.people_max)
        yield "minutes", _minute(record, "source", "", people)
        for kind, shapes in (("line", record.lines), ("zone", record.zones)):
            for name, of in shapes.items():
                yield "minutes", _minute(record, kind, name, of)
    elif isinstance(record, ShapeChange):
        settings = json.dumps(record.settings)
        yield "shapes", {
            "n": record.n, "name": record.name, "revision": record.revision, "time_s": record.time_s,
            "settings": settings,
        }  # fmt: skip


def _minute(record: Minute, kind: str, name: str, of: MinuteOf) -> dict:
    return {
        "n": record.n, "kind": kind, "name": name, "start_s": record.start_s, "observed_s": record.observed_s,
        "complete_s": record.complete_s, "people_mean": of.people_mean, "people_max": of.people_max,
        **{name: getattr(of, name) if kind == "line" else None for name in ("ins", "outs", "total_ins", "total_outs")},
    }  # fmt: skip


def _adjustment(area: str, entry: Adjustment) -> dict:
    names = ("number", "time_s", "kind", "before", "after", "drift", "base_ins", "base_outs", "corrected", "note")
    return {"area": area, **{name: getattr(entry, name) for name in names}, "lines": json.dumps(entry.lines)}
