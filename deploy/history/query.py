"""Reads a history: sums by interval, and the rows themselves.

A row of an interval says how much of it was observed. What nobody saw is None, never 0.
"""

import json
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from zoneinfo import ZoneInfo

from sqlalchemy import Connection, Engine, Table, and_, func, select

from peoplecounter.common.errors import NO_INPUT, AppError
from peoplecounter.deploy.history.intervals import Interval, grid_minutes, intervals, local
from peoplecounter.services.history import tables

RAW = ("crossings", "visits", "corrections", "shapes", "gaps")  # tables that are shown as they are


@dataclass(frozen=True)
class Series:
    """A source, or SOURCE.NAME of a line or zone, or an area."""

    kind: str  # "source" | "line" | "zone" | "area"
    name: str


@dataclass
class Sum:
    """What a series amounts to in an interval."""

    observed_s: float = 0.0
    complete_s: float = 0.0
    ins: int = 0
    outs: int = 0
    person_s: float = 0.0
    people_max: int | None = None
    totals: tuple[int, int] | None = None  # of a line, in and out, at the end
    visits: int = 0
    dwell_s: float = 0.0

    def add(self, other: "Sum") -> None:
        self.observed_s += other.observed_s
        self.complete_s += other.complete_s
        self.ins += other.ins
        self.outs += other.outs
        self.person_s += other.person_s
        if other.totals:
            self.totals = max(self.totals, other.totals) if self.totals else other.totals
        if other.people_max is not None:
            self.people_max = max(self.people_max or 0, other.people_max)


@dataclass
class Question:
    """What is asked. Without any names: everything."""

    begin_s: float
    end_s: float
    step: str
    zone: ZoneInfo
    sources: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    zones: list[str] = field(default_factory=list)
    areas: list[str] = field(default_factory=list)

    def wants(self, series: Series) -> bool:
        chosen = {"source": self.sources, "line": self.lines, "zone": self.zones, "area": self.areas}
        if not any(chosen.values()):
            return True
        return series.name in chosen[series.kind]


def span(engine: Engine) -> tuple[int, int]:
    """(first, last) second of what is known. Raises AppError for an empty history."""
    start = tables.minutes.c.start_s
    with engine.connect() as connection:
        first, last = connection.execute(select(func.min(start), func.max(start))).one()
    if first is None:
        raise AppError("The history is empty: its first minute is written when it is over.", NO_INPUT)
    return first, last + 60


def rows(engine: Engine, question: Question) -> list[dict]:
    """One row for each interval and series, in order."""
    spans = intervals(question.begin_s, question.end_s, question.step, question.zone)
    begins = [one.begin_s for one in spans]
    sums: dict[Series, dict[int, Sum]] = {}
    with engine.connect() as connection:
        for series, at_s, part in _minutes(connection, spans[0].begin_s, spans[-1].end_s, grid_minutes(question.step)):
            sums.setdefault(series, {}).setdefault(bisect_right(begins, at_s) - 1, Sum()).add(part)
        for series, left_s, dwell_s in _visits(connection, spans[0].begin_s, spans[-1].end_s):
            one = sums.setdefault(series, {}).setdefault(bisect_right(begins, left_s) - 1, Sum())
            one.visits, one.dwell_s = one.visits + 1, one.dwell_s + dwell_s
        areas = _areas(connection)
        for name, area in areas.items():
            sums[Series("area", name)] = area.sums(sums, spans)
        wanted = [series for series in sorted(sums, key=lambda s: (s.name, s.kind)) if question.wants(series)]
        _check_names(question, sums)
        totals, answer = _Totals(connection, spans[0].begin_s), []
        for number, interval in enumerate(spans):
            totals.advance(number, sums)
            for series in wanted:
                row = _row(interval, question.zone, series, sums[series].get(number, Sum()))
                if series.kind == "area":
                    more = areas[series.name].at(interval, totals)
                    row |= more if row["observed_s"] else {**more, "occupancy": None}
                answer.append(row)
    return answer


def totals_before(engine: Engine, begin_s: float) -> dict[str, tuple[int, int]]:
    """SOURCE.LINE -> all of its crossings, in and out, before a moment."""
    with engine.connect() as connection:
        return _Totals(connection, int(begin_s)).of


def raw(engine: Engine, table: str, question: Question, limit: int = 0) -> list[dict]:
    """The rows of a table, oldest first, its times also as local time. `limit`: only so many, the newest ones."""
    columns: Table = tables.metadata.tables[table]
    time_s = columns.c.get("time_s", columns.c.get("left_s"))
    query = select(columns)
    if time_s is not None:
        query = query.where(and_(time_s >= question.begin_s, time_s < question.end_s)).order_by(time_s.desc())
    with engine.connect() as connection:
        rows = (dict(row) for row in connection.execution_options(yield_per=1000).execute(query).mappings())
        wanted = (row for row in rows if any(map(question.wants, _series_of(row))))
        found = list(islice(wanted, limit or None))
    if time_s is not None:
        found.reverse()
    if time_s is None:
        return found
    return [{"time": local(row[time_s.name], question.zone, "seconds"), **row} for row in found]


def _series_of(row: dict) -> Iterator[Series]:
    """Which series a row of a table belongs to."""
    if "area" in row:
        yield Series("area", row["area"])
        return
    yield Series("source", row["source"])
    for column, kinds in (("line", ("line",)), ("zone", ("zone",)), ("name", ("line", "zone"))):
        if column in row:
            yield from (Series(kind, f"{row['source']}.{row[column]}") for kind in kinds)


def _minutes(connection: Connection, begin_s: int, end_s: int, minutes: int) -> Iterator[tuple[Series, int, Sum]]:
    """(series, moment, sum) of the time between, in pieces of a few minutes."""
    m, piece = tables.minutes.c, tables.minutes.c.start_s // (60 * minutes)
    query = (
        select(
            m.source, m.kind, m.name, piece, func.sum(m.observed_s), func.sum(m.complete_s),
            func.coalesce(func.sum(m.ins), 0), func.coalesce(func.sum(m.outs), 0),
            func.sum(func.coalesce(m.people_mean, 0) * m.complete_s), func.max(m.people_max),
            func.max(m.total_ins), func.max(m.total_outs),
        )
        .where(m.start_s >= begin_s, m.start_s < end_s)
        .group_by(m.source, m.kind, m.name, piece)
    )  # fmt: skip
    for source, kind, name, number, *values, ins, outs in connection.execute(query):
        total = Sum(*values)
        total.totals = None if ins is None else (ins, outs)
        yield Series(kind, f"{source}.{name}" if name else source), number * 60 * minutes, total


def _visits(connection: Connection, begin_s: int, end_s: int) -> Iterator[tuple[Series, float, float]]:
    v = tables.visits.c
    query = select(v.source, v.zone, v.left_s, v.dwell_s).where(v.left_s >= begin_s, v.left_s < end_s)
    for source, zone, left_s, dwell_s in connection.execute(query):
        yield Series("zone", f"{source}.{zone}"), left_s, dwell_s


@dataclass
class _AreaHistory:
    """The adjustments of an area, oldest first."""

    entries: list[dict]

    def until(self, end_s: float) -> dict:
        """The last adjustment before a moment, or the first one."""
        return next((e for e in reversed(self.entries) if e["time_s"] < end_s), self.entries[0])

    def sums(self, sums: dict[Series, dict[int, Sum]], spans: list[Interval]) -> dict[int, Sum]:
        """The sums of an area's lines; observed while all of their sources were."""
        area = {}
        for number, interval in enumerate(spans):
            lines = json.loads(self.until(interval.end_s)["lines"])
            crossed = [sums.get(Series("line", line), {}).get(number, Sum()) for line in lines]
            sources = {line.partition(".")[0] for line in lines}
            seen = [sums.get(Series("source", source), {}).get(number, Sum()) for source in sources]
            area[number] = Sum(
                min(one.observed_s for one in seen), min(one.complete_s for one in seen),
                sum(one.ins for one in crossed), sum(one.outs for one in crossed),
            )  # fmt: skip
        return area

    def at(self, interval: Interval, totals: "_Totals") -> dict:
        """Occupancy at the end of an interval, None where that is not known, and what was corrected in it."""
        within = [e for e in self.entries if interval.begin_s <= e["time_s"] < interval.end_s]
        last = self.until(interval.end_s)
        known = [totals.of.get(line) for line in json.loads(last["lines"])]
        occupancy = None
        if last["time_s"] < interval.end_s and any(known):
            ins, outs = (sum(one[way] for one in known if one) for way in (0, 1))
            occupancy = ins - last["base_ins"] - (outs - last["base_outs"]) + last["corrected"]
        return {
            "occupancy": occupancy,
            "drift": sum(e["drift"] for e in within if e["kind"] == "reset") or None,
            "corrected": sum(e["after"] - e["before"] for e in within if e["kind"] == "correct") or None,
        }


class _Totals:
    """All crossings of each line, in and out, up to a moment that moves on. They only grow."""

    def __init__(self, connection: Connection, begin_s: int):
        m = tables.minutes.c
        query = (
            select(m.source, m.name, func.max(m.total_ins), func.max(m.total_outs))
            .where(m.kind == "line", m.start_s < begin_s)
            .group_by(m.source, m.name)
        )
        found = connection.execute(query)
        self.of: dict[str, tuple[int, int]] = {f"{source}.{name}": (ins, outs) for source, name, ins, outs in found}

    def advance(self, number: int, sums: dict[Series, dict[int, Sum]]) -> None:
        """Up to the end of an interval."""
        for series, of in sums.items():
            totals = of[number].totals if number in of else None
            if series.kind == "line" and totals:
                self.of[series.name] = totals


def _areas(connection: Connection) -> dict[str, _AreaHistory]:
    c = tables.corrections.c
    areas: dict[str, _AreaHistory] = {}
    for row in connection.execute(select(tables.corrections).order_by(c.time_s, c.number)).mappings():
        areas.setdefault(row["area"], _AreaHistory([])).entries.append(dict(row))
    return areas


def _row(interval: Interval, zone: ZoneInfo, series: Series, total: Sum) -> dict:
    seen, counted = total.observed_s > 0, total.complete_s > 0
    row: dict = {
        "start": local(interval.begin_s, zone), "end": local(interval.end_s, zone),
        "kind": series.kind, "name": series.name, "in": None, "out": None, "people_mean": None, "people_max": None,
        "visits": None, "dwell_mean_s": None, "occupancy": None, "drift": None, "corrected": None,
        "observed_s": round(total.observed_s, 1), "complete_s": round(total.complete_s, 1),
        "seconds": interval.end_s - interval.begin_s,
    }  # fmt: skip
    if series.kind in ("line", "area") and (seen or total.ins or total.outs):
        row |= {"in": total.ins, "out": total.outs}
    if series.kind in ("source", "zone") and counted:
        row |= {"people_mean": round(total.person_s / total.complete_s, 2), "people_max": total.people_max}
    if series.kind == "zone" and (seen or total.visits):
        row |= {
            "visits": total.visits,
            "dwell_mean_s": round(total.dwell_s / total.visits, 1) if total.visits else None,
        }
    return row


def _check_names(question: Question, sums: dict[Series, dict[int, Sum]]) -> None:
    """Raises AppError for a name that the history does not know in this time."""
    for kind in ("source", "line", "zone", "area"):
        known = sorted(series.name for series in sums if series.kind == kind)
        for name in getattr(question, f"{kind}s"):
            if name not in known:
                raise AppError(
                    f"The history has no {kind} {name!r} in this time: it has {', '.join(known) or 'none'}.", NO_INPUT
                )
