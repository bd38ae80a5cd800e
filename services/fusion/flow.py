"""What moves at one source: tracks, crossings, visits, minutes, and the log of them.

Nothing is lost or counted twice when fusion is killed at any moment:

1. the ledger counts a frame: one record in its journal has the frame's seq, what the frame shows (`SeenFrame`), and all
   that was known before it (`FlowRecord`). Then the count is published: it does not wait for tracks.
2. frame() follows the people; the record then has the new FlowRecord, with the events that the log lacks. A fusion that
   is started in between does this first: the same frame gives the same events.
3. log() appends the events to the log, each n once; after that they are published.

A new machine, or one that was rebooted, has no journal: then the sums come from the log, and tracks begin anew.
"""

import copy
import logging
import secrets
import time
from collections import deque
from collections.abc import Mapping

import msgspec
import numpy as np
from msgspec import Struct

from peoplecounter.common.counting import LineSettings, ZoneSettings
from peoplecounter.common.events import (
    AnyRecord,
    Crossing,
    EventLog,
    LineTotals,
    Minute,
    MinuteOf,
    ShapeChange,
    Sums,
    ZoneChange,
    ZoneTotals,
)
from peoplecounter.common.ipc.messages import FrameHeader
from peoplecounter.services.fusion.clock import SourceClock
from peoplecounter.services.fusion.lines import ROW_BYTES, LineCounter, People, Visit, ZoneCounter
from peoplecounter.services.fusion.minutes import MINUTE_S, MinuteSums, Watched
from peoplecounter.services.fusion.publish import utc
from peoplecounter.services.fusion.track import COLUMNS, GAP_S, Tracker

UNLOGGED_BYTES, RETRY_S = 2 << 20, 1.0  # of events that wait while the disk is full; then the oldest are lost
FPS_MIN, FPS_OVER_S = 5.0, 10.0  # with fewer frames a second, tracks and so lines cannot be trusted

Event = tuple[str, dict]  # topic without the source, content


class FlowRecord(Struct):
    """Everything that fusion must know of a source's people after a restart."""

    sums: Sums
    unlogged: list[AnyRecord] = []
    run: str = ""
    change: str = ""  # another source of the same name has another one
    tracks: bytes = b""  # float64 [k, COLUMNS]
    rows: dict[str, bytes] = {}  # line or zone -> float64 [k, 4]
    time_s: float = -1.0
    last_number: int = 0
    last_seq: int = -1  # of the last complete frame
    size: tuple[int, int] | None = None  # of that frame
    interrupted: bool = False
    clock: SourceClock = msgspec.field(default_factory=SourceClock)
    minute: MinuteSums = msgspec.field(default_factory=MinuteSums)


class SeenFrame(Struct, frozen=True):
    """A counted frame and its n merged persons."""

    header: FrameHeader
    boxes: bytes  # float32 [n, 6], see merge()
    sure: bytes  # bool [n]: scores that a new person needs
    counted: bytes  # bool [n]: the others are weak, but may continue a track
    complete: bool
    captured_s: float  # UTC at which its packet arrived
    start_s: float | None  # UTC at which a file begins, if its user said so

    @property
    def people(self) -> int:
        """How many were counted."""
        return self.counted.count(1)


class Flow:
    """One source. `kept` is what keep() gave in an earlier run of fusion, or empty; `change` names what is played."""

    def __init__(self, source: str, log: EventLog, kept: bytes = b"", change: str = ""):
        self._source, self._log = source, log
        self._complain = logging.getLogger("fusion.events")
        self.tracker = Tracker()
        self._lines: dict[str, LineCounter] = {}
        self._zones: dict[str, ZoneCounter] = {}
        self._rows: dict[str, bytes] = {}
        record = self._decoded(kept, change)
        if record is None or record.sums.log != log.sums.log or record.sums.n < log.n:
            if record is not None and record.sums.n and not log.n:  # the log was deleted, but not the journal
                log.begin(copy.deepcopy(record.sums))
            else:
                record = FlowRecord(copy.deepcopy(log.sums), run=secrets.token_hex(4), change=change)
        self.record = record
        self._restore(record)
        self._at: dict = {"seq": None, "pts_s": None}  # of the last frame
        self._frames_s: deque[float] = deque()  # times of the complete frames of the last FPS_OVER_S
        self.events_lost, self._retry_s = 0, 0.0
        if self.sums.minute and not record.minute.start_s:  # the journal was lost in the middle of a minute
            self._note_minute(MinuteSums(self.sums.minute_s))
        self.log()

    def _decoded(self, kept: bytes, change: str) -> FlowRecord | None:
        try:
            record = msgspec.msgpack.decode(kept, type=FlowRecord) if kept else None
            if record and len(record.tracks) % (8 * COLUMNS):
                raise msgspec.DecodeError
        except msgspec.MsgspecError:  # of another version
            self._complain.warning("the tracks of %s cannot be continued", self._source)
            return None
        if record and record.change != change:  # another source of this name: its pictures and times are others
            record.tracks, record.rows, record.clock, record.change = b"", {}, SourceClock(), change
        return record

    def _restore(self, record: FlowRecord) -> None:
        self.tracker.state = np.frombuffer(record.tracks).reshape(-1, COLUMNS).copy()
        self.tracker.time_s, self.tracker.last_number = record.time_s, record.last_number
        self._rows = dict(record.rows)

    @property
    def sums(self) -> Sums:
        return self.record.sums

    def set_shapes(self, shapes: Mapping[str, LineSettings | ZoneSettings], utc_s: float) -> bool:
        """The lines and zones from now on. One with another geometry is a new revision, and sees everybody anew.

        Returns whether anything has changed.
        """
        before = self.sums.n
        for name in self._counters().keys() - shapes.keys():
            self._forget(name)
        for name in self.sums.shapes.keys() - shapes.keys():
            if self.sums.shapes[name].settings:
                self._note(ShapeChange, name=name, revision=self.sums.shapes[name].revision, time_s=utc_s, settings={})
        for name, shape in shapes.items():
            settings, known = shape.model_dump(mode="json"), self.sums.shapes.get(name)
            if known is None or known.settings != settings:
                revision = known.revision + 1 if known else 1
                self._note(ShapeChange, name=name, revision=revision, time_s=utc_s, settings=settings)
                self._forget(name)
            if name in self._counters():
                continue
            rows = self._rows.pop(name, b"")
            if len(rows) != len(self.tracker.state) * ROW_BYTES:
                rows = b""
            if isinstance(shape, LineSettings):
                self._lines[name] = LineCounter(shape, rows)
            else:
                self._zones[name] = ZoneCounter(shape, rows)
        return self.sums.n > before

    def _counters(self) -> dict[str, LineCounter | ZoneCounter]:
        return {**self._lines, **self._zones}

    def _forget(self, name: str) -> None:
        """Of a line or zone, who is where."""
        for of in (self._lines, self._zones, self._rows):
            of.pop(name, None)

    def frame(self, frame: SeenFrame) -> tuple[list[str], list[Event]]:
        """A counted frame: (the track of each of its counted persons, "" for none; what to publish)."""
        header = frame.header
        time_s, utc_s, anew = self.record.clock.of(header, frame.captured_s, frame.start_s)
        if anew or time_s - self.tracker.time_s >= GAP_S:
            events = self.cut()
        else:
            events = []
        self._at = {"seq": header.seq, "pts_s": header.pts_s}
        self._watch(utc_s, frame.people if frame.complete else None)
        if not frame.complete:
            self.record.interrupted = True
            return [""] * frame.people, events
        size = (header.width, header.height)
        if self.record.size not in (None, size):
            self.tracker.scale(size[0] / self.record.size[0], size[1] / self.record.size[1])
        self.record.size = size
        boxes = np.frombuffer(frame.boxes, np.float32).reshape(-1, 6)
        sure, counted = (np.frombuffer(mask, bool) for mask in (frame.sure, frame.counted))
        share = 1 / max(1, header.seq - self.record.last_seq) if self.record.last_seq >= 0 else 1.0
        numbers = self.tracker.update(boxes, sure, time_s, share)
        seen = People(self.tracker.boxes, size, self.tracker.confirmed, self.tracker.seen, time_s)
        for name, line in self._lines.items():
            events += [self._crossing(name, row, direction, utc_s) for row, direction in line.update(seen)]
        for name, zone in self._zones.items():
            events += [self._zone_change(name, visit, utc_s - time_s) for visit in zone.update(seen)]
        events += self._end(self.tracker.ended(), utc_s, utc_s - time_s)
        self.record.last_seq, self.record.interrupted = header.seq, False
        self._frames_s.append(time_s)
        while self._frames_s[0] < time_s - FPS_OVER_S:
            self._frames_s.popleft()
        return [self._id(number) for number in numbers[counted].tolist()], events

    def interrupt(self) -> None:
        """A frame was lost: what happens until the next one was not seen completely."""
        self.record.interrupted = True

    def cut(self) -> list[Event]:
        """The pictures do not go on from the last one: all tracks end. Returns what to publish."""
        last_s = self.record.minute.last_s
        self._frames_s.clear()
        return self._end(np.ones(len(self.tracker.state), bool), last_s, last_s - self.tracker.time_s)

    def forget_tracks(self) -> None:
        """After an error: nothing that the tracks have done is certain."""
        self.tracker.drop(np.ones(len(self.tracker.state), bool))
        for counter in self._counters().values():
            counter.rows = counter.rows[:0]

    def begin_anew(self, change: str) -> list[Event]:
        """The source was replaced by another one of its name."""
        events = self.cut()
        self.record.clock, self.record.change = SourceClock(), change
        return events

    def tick(self, utc_s: float) -> bool:
        """Ends the current minute when it is over and no frame has come since. Returns whether it did."""
        minute = self.record.minute
        if not minute.start_s or utc_s < minute.start_s + MINUTE_S + 2 * GAP_S:
            return False
        self.end_minute()
        minute.start_s = 0
        return True

    def end_minute(self) -> None:
        """Notes what is known of the current minute; the rest of it becomes another record."""
        self._note_minute(self.record.minute.take())

    def keep(self) -> bytes:
        """The FlowRecord that the next start continues with."""
        record, tracker = self.record, self.tracker
        record.tracks, record.last_number, record.time_s = tracker.state.tobytes(), tracker.last_number, tracker.time_s
        record.rows = {**self._rows, **{name: counter.rows.tobytes() for name, counter in self._counters().items()}}
        return msgspec.msgpack.encode(record)

    def log(self) -> None:
        """Appends what the log does not contain yet. A full disk is reported; the events wait."""
        unlogged, now_s = self.record.unlogged, time.monotonic()
        if not unlogged or now_s < self._retry_s:
            return
        try:
            self._log.append(unlogged)
        except OSError as error:
            if not self._retry_s:
                self._complain.error("the events of %s cannot be logged: %s; they wait", self._source, error.strerror)
            self._retry_s = now_s + RETRY_S
            while len(msgspec.msgpack.encode(unlogged)) > UNLOGGED_BYTES:
                oldest = unlogged[: len(unlogged) // 10 + 1]
                self.events_lost += len(oldest)
                del unlogged[: len(oldest)]
            return
        if self._retry_s:
            self._complain.warning("the events of %s are logged again", self._source)
        self._retry_s = 0.0
        unlogged.clear()

    def close(self) -> None:
        self._log.close()

    def public(self) -> dict:
        """Lines and zones as subscribers get them with the status of the source."""
        content: dict = {}
        if self._lines:
            content["lines"] = {name: self.line_totals(name).public() for name in self._lines}
        if self._zones:
            content["zones"] = {
                name: {"people": zone.people, **self.zone_totals(name).public()} for name, zone in self._zones.items()
            }
        if content and (warning := self.warning()):
            content["warning"] = warning
        return content

    def warning(self) -> str:
        """Why lines and zones cannot be trusted now; empty: they can."""
        frames = self._frames_s
        if len(frames) < 2 or self.tracker.time_s - frames[0] < FPS_OVER_S / 2:
            return ""
        rate = (len(frames) - 1) / (frames[-1] - frames[0])
        if rate >= FPS_MIN:
            return ""
        return f"only {int(10 * rate) / 10} frames/s are counted: lines and zones need {FPS_MIN:.0f}"

    def line_totals(self, name: str) -> LineTotals:
        return self.sums.lines.get(name) or LineTotals()

    def zone_totals(self, name: str) -> ZoneTotals:
        return self.sums.zones.get(name) or ZoneTotals()

    def zone_people(self, name: str) -> int | None:
        """How many are in a zone; None: there is no such zone."""
        return self._zones[name].people if name in self._zones else None

    @property
    def lines(self) -> list[str]:
        """Names of the lines that are there now."""
        return list(self._lines)

    @property
    def zones(self) -> list[str]:
        return list(self._zones)

    def _watch(self, utc_s: float, people: int | None) -> None:
        ended = self.record.minute.add(utc_s, people, {name: zone.people for name, zone in self._zones.items()})
        if ended:
            self._note_minute(ended)

    def _end(self, which: np.ndarray, utc_s: float, to_utc_s: float) -> list[Event]:
        events: list[Event] = []
        for row in np.flatnonzero(which).tolist():
            for name, line in self._lines.items():
                events += [self._crossing(name, row, direction, utc_s) for direction in line.end(row)]
            for name, zone in self._zones.items():
                events += [self._zone_change(name, visit, to_utc_s) for visit in zone.end(row)]
        for counter in self._counters().values():
            counter.rows = counter.rows[~which[: len(counter.rows)]]
        self.tracker.drop(which)
        return events

    def _crossing(self, name: str, row: int, direction: int, utc_s: float) -> Event:
        """Notes a crossing of a line by the track of a row; returns what to publish."""
        crossing = self._note(
            Crossing, number=self.sums.crossings + 1, line=name, revision=self.sums.shapes[name].revision,
            direction="in" if direction > 0 else "out", track=self._id(int(self.tracker.numbers[row])),
            time_s=round(utc_s, 3), complete=not self.record.interrupted,
        )  # fmt: skip
        return "crossings", {
            "source": self._source, "line": name, "direction": crossing.direction, "track": crossing.track,
            "time": utc(utc_s), **self._at, "complete": crossing.complete, "number": crossing.number,
            "revision": crossing.revision, "totals": self.line_totals(name).public(),
        }  # fmt: skip

    def _zone_change(self, name: str, visit: Visit, to_utc_s: float) -> Event:
        """Notes that somebody entered or left a zone; returns what to publish."""
        change = self._note(
            ZoneChange, number=self.sums.zone_changes + 1, zone=name, revision=self.sums.shapes[name].revision,
            entered=visit.entered, track=self._id(int(self.tracker.numbers[visit.row])),
            time_s=round(visit.since_s + to_utc_s, 3), dwell_s=round(visit.dwell_s, 3),
        )  # fmt: skip
        return "zones", {
            "source": self._source, "zone": name, "event": "enter" if visit.entered else "leave",
            "track": change.track, "time": utc(change.time_s), **self._at, "people": self.zone_people(name),
            **({} if visit.entered else {"dwell_s": change.dwell_s}),
            "number": change.number, "revision": change.revision, "totals": self.zone_totals(name).public(),
        }  # fmt: skip

    def _note_minute(self, ended: MinuteSums) -> None:
        crossed, none = self.sums.minute, LineTotals()
        if not ended.observed_s and not crossed:
            return
        lines = {}
        for name in {**self._lines, **crossed}:
            ins, outs = crossed.get(name, none).ins, crossed.get(name, none).outs
            totals = self.line_totals(name)
            lines[name] = MinuteOf(ins=ins, outs=outs, total_ins=totals.ins, total_outs=totals.outs)
        mean, most = _people(ended.source)
        zones = {}
        for name, watched in ended.zones.items():
            zone_mean, zone_most = _people(watched)
            zones[name] = MinuteOf(people_mean=zone_mean, people_max=zone_most)
        self._note(
            Minute, start_s=ended.start_s, observed_s=round(ended.observed_s, 3), complete_s=round(ended.complete_s, 3),
            people_mean=mean, people_max=most, lines=lines, zones=zones,
        )  # fmt: skip

    def _note(self, kind: type, **fields):
        record = kind(n=self.sums.n + 1, **fields)
        self.sums.apply(record)
        self.record.unlogged.append(record)
        return record

    def _id(self, number: int) -> str:
        """SOURCE/run/number, never used again; empty for no track."""
        return f"{self._source}/{self.record.run}/{number}" if number else ""


def _people(watched: Watched) -> tuple[float | None, int | None]:
    """(mean, max); None when nobody looked."""
    return (round(watched.person_s / watched.seconds, 3), watched.people_max) if watched.seconds else (None, None)
