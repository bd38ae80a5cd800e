"""What the dashboard knows of its group: what fusion published last, and the tracks of the last minutes.

The process' loop adds to it, threads that answer browsers read it.
"""

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

import msgspec
import numpy as np

from peoplecounter.common import shape_changes
from peoplecounter.common.counting import LineSettings
from peoplecounter.common.errors import AppError
from peoplecounter.common.settings import Settings
from peoplecounter.common.shape_changes import LineOrZone
from peoplecounter.common.sources import known_sources, redacted
from peoplecounter.deploy.dashboard.background import Background
from peoplecounter.deploy.dashboard.trail import EVERY_S, Trail

TOPICS = ("counts", "detections", "dropped", "status", "budgets", "crossings", "zones", "areas", "alerts", "raised")
HAPPENING = {"crossings": "crossing", "zones": "zone", "areas": "area", "alerts": "alert"}  # topic -> name of an event
RATE_S = 5.0  # frames/s are a mean over this time
LOSES_S = 5.0  # a source that dropped a frame within this time may drop the next
SILENT_S = 3.0  # fusion tells the state of each source once a second
REFRESH_S = 1.0  # how often sources, lines and zones are read

_decode = msgspec.json.decode


class FoundPeople(msgspec.Struct):
    """The part of `detections.SOURCE` that is needed."""

    seq: int
    time: str
    pts_s: float | None
    width: int
    height: int
    pixel_aspect: float
    boxes: list[list[float]]
    ids: list[str | None]

    @property
    def shares(self) -> np.ndarray:
        """float64 [n, 4]: the boxes, as shares of the frame's width and height."""
        boxes = np.array([box[:4] for box in self.boxes]).reshape(-1, 4)
        return boxes / [self.width, self.height, self.width, self.height]


@dataclass
class WatchedSource:
    """What is known of one source."""

    url: str
    shapes: dict[str, LineOrZone] = field(default_factory=dict)
    locked: frozenset[str] = frozenset()  # names of lines and zones of the settings file
    status: dict = field(default_factory=dict)
    status_s: float = 0.0  # when it came
    count_message: bytes = b"{}"  # the last one of counts
    people: FoundPeople | None = None  # the last message of detections that was read
    people_s: float = 0.0  # when
    counted_s: deque[float] = field(default_factory=deque)  # when a count came, of the last RATE_S
    dropped_s: float = -LOSES_S  # when a frame was dropped last
    trail: Trail = field(default_factory=Trail)
    background: Background = field(default_factory=Background)

    @property
    def loses_frames(self) -> bool:
        """True for a source of which not every frame is counted at the moment."""
        return time.monotonic() - self.dropped_s < LOSES_S

    def rate(self) -> float | None:
        """Counted frames a second."""
        self._forget(time.monotonic())
        times = self.counted_s
        return round((len(times) - 1) / (times[-1] - times[0]), 1) if len(times) > 2 else None

    @property
    def count(self) -> dict:
        """The last message of counts; empty before the first."""
        return _decode(self.count_message)

    def add_count(self, message: bytes) -> None:
        self.count_message = message
        self.counted_s.append(time.monotonic())
        self._forget(self.counted_s[-1])

    def _forget(self, now_s: float) -> None:
        while self.counted_s and self.counted_s[0] < now_s - RATE_S:
            self.counted_s.popleft()


class Known:
    """All of a group. `on_event(name, data)` is called for what happens at lines, zones and areas, and for alerts."""

    def __init__(self, settings: Settings, on_event: Callable[[str, bytes], None] = lambda name, data: None):
        self.settings, self._on_event = settings, on_event
        self.lock = threading.RLock()
        self.sources: dict[str, WatchedSource] = {}
        self.areas: dict[str, dict] = {}
        self.raised: dict[str, dict] = {}  # alerts that are raised now
        self.budgets: dict[str, dict] = {}
        self.at_midnight: dict[str, tuple[int, int]] | None = None  # SOURCE.LINE -> in, out; None: without a history
        self._refresh_due_s = 0.0
        self.refresh()

    def refresh(self) -> None:
        """Reads which sources, lines and zones there are, once in REFRESH_S. Errors of their files are fusion's."""
        now_s = time.monotonic()
        if now_s < self._refresh_due_s:
            return
        self._refresh_due_s = now_s + REFRESH_S
        with self.lock, contextlib.suppress(AppError):
            changes = known_sources(self.settings)
            for name in self.sources.keys() - changes.keys():
                del self.sources[name]
            for name, change in changes.items():
                if change.source is None:
                    continue
                url = redacted(change.source.url)
                known = self.sources.get(name)
                if known is None or known.url != url:  # another one of this name is not continued
                    known = self.sources[name] = WatchedSource(url)
                own = self.settings.sources.get(name)
                known.locked = frozenset({**own.lines, **own.zones}) if own else frozenset()
                known.shapes = shape_changes.known_shapes(self.settings, name, change.source)

    def refresh_now(self) -> None:
        """Reads them at once, after a change."""
        self._refresh_due_s = 0.0
        self.refresh()

    def add(self, kind: str, name: str, body: bytes, seldom: bool = False) -> FoundPeople | None:
        """A message; returns the people of one of detections. `seldom`: of those, only as many as a trail needs."""
        if kind == "detections":
            return self._add_people(name, body, seldom)
        if kind == "counts":
            with self.lock:
                if source := self.sources.get(name):
                    source.add_count(body)
            return None
        content = _decode(body)
        with self.lock:
            source = self.sources.get(name)
            if kind == "areas":
                before, self.areas[name] = self.areas.get(name), content
                if before is not None and before | {"time": content["time"]} == content:
                    return None  # it is published each second, and this is nothing new
            elif kind == "raised":
                self.raised = content
            elif kind == "budgets":
                self.budgets = content
            elif source and kind == "status":
                source.status, source.status_s = content, time.monotonic()
            elif source and kind == "dropped":
                source.dropped_s = time.monotonic()
        if kind in HAPPENING:
            self._on_event(HAPPENING[kind], body)
        return None

    def _add_people(self, name: str, body: bytes, seldom: bool) -> FoundPeople | None:
        now_s = time.monotonic()
        with self.lock:
            source = self.sources.get(name)
            if source is None or (seldom and now_s - source.people_s < EVERY_S):
                return None
            people = _decode(body, type=FoundPeople)
            source.people, source.people_s = people, now_s
            of_clip = people.pts_s is not None and not source.status.get("live", True)
            time_s = people.pts_s if of_clip else datetime.fromisoformat(people.time).timestamp()
            if time_s is not None and source.trail.is_due(time_s):
                aspect = people.pixel_aspect
                size = round(people.width * max(aspect, 1.0)), round(people.height / min(aspect, 1.0))
                source.trail.add(time_s, people.shares, tuple(people.ids), size, time.time())
        return people

    def public(self, name: str) -> dict | None:
        """A source as the API shows it; None: there is none of this name."""
        with self.lock:
            source = self.sources.get(name)
            if source is None:
                return None
            status, count, people = source.status, source.count, source.people
            silent_s = time.monotonic() - source.status_s if status else 0.0
            since_frame_s = status.get("seconds_since_frame") if count else None
            if silent_s > SILENT_S:  # what was published last is not the state of now
                status = {**status, "state": "stale", "detail": "Fusion does not say anything: see Health."}
                since_frame_s = None if since_frame_s is None else round(since_frame_s + silent_s, 3)
            lines, zones = self.shapes(name)
            today = [(line["in_today"], line["out_today"]) for line in lines.values()]
            known = bool(today) and all(ins is not None for ins, _ in today)
            return {
                "name": name,
                "state": status.get("state", "waiting"),
                "detail": status.get("detail", ""),
                "live": status.get("live", False),
                "url": source.url,
                "count": count.get("count"),
                "complete": count.get("complete"),
                "seq": count.get("seq"),
                "time": count.get("time"),
                "fps": source.rate(),
                "end_to_end_ms": count.get("end_to_end_ms"),
                "seconds_since_frame": since_frame_s,
                "width": people.width if people else None,
                "height": people.height if people else None,
                "pixel_aspect": people.pixel_aspect if people else 1.0,
                "totals": status.get("totals") or {"frames": 0, "counted": 0, "incomplete": 0, "dropped": {}},
                "warning": status.get("warning", ""),
                "in_today": sum(ins for ins, _ in today) if known else None,
                "out_today": sum(outs for _, outs in today) if known else None,
                "lines": lines,
                "zones": zones,
            }

    def shapes(self, name: str) -> tuple[dict[str, dict], dict[str, dict]]:
        """(lines, zones) of a source as the API shows them: their geometry, and what they have counted."""
        source = self.sources[name]
        lines: dict[str, dict] = {}
        zones: dict[str, dict] = {}
        for shape_name, shape in source.shapes.items():
            content = {**shape.model_dump(mode="json"), "locked": shape_name in source.locked}
            if isinstance(shape, LineSettings):
                totals = source.status.get("lines", {}).get(shape_name, {"in": None, "out": None})
                lines[shape_name] = {**content, **totals, **self._today(f"{name}.{shape_name}", totals)}
            else:
                none = {"people": 0, "entered": 0, "left": 0}
                zones[shape_name] = {**content, **none, **source.status.get("zones", {}).get(shape_name, {})}
        return lines, zones

    def _today(self, line: str, totals: dict) -> dict:
        if self.at_midnight is None or totals["in"] is None:
            return {"in_today": None, "out_today": None}
        ins, outs = self.at_midnight.get(line, (0, 0))
        return {"in_today": totals["in"] - ins, "out_today": totals["out"] - outs}
