"""What tracks do at a line and in a zone. Pure: positions and times are passed in.

A **crossing**: the path of a person's anchor point (feet, centre or head) passes through the line's segments, and then
the point leaves the band around it, whose width is a share of the person's height. Passages within the band add up, so
one who stands on the line and sways crosses it once or not at all, whatever side the person was first seen on. A path
around the end of a line crosses nothing.

A **visit**: a person's point stays in a zone for `enter_s`, then is outside for `leave_s`, or the track ends.

Lines and zones lie in shares of the frame, so a resolution may change. Row i of a counter belongs to track i.
"""

from dataclasses import dataclass, field

import numpy as np

from peoplecounter.common import shapes
from peoplecounter.common.counting import LineSettings, ZoneSettings

COLUMNS = 4
ROW_BYTES = 8 * COLUMNS
ANCHORS = {"feet": 1.0, "centre": 0.5, "head": 0.0}  # share of the height, from the top


@dataclass(frozen=True)
class People:
    """The tracks of one frame, k rows."""

    boxes: np.ndarray  # float64 [k, 4]: x1, y1, x2, y2, px of the frame
    size: tuple[int, int]  # width and height of the frame, px
    confirmed: np.ndarray  # bool [k]: tentative tracks are followed, and counted when they are confirmed
    seen: np.ndarray  # bool [k]: the others are where they were seen last
    time_s: float

    _points: dict[str, np.ndarray] = field(default_factory=dict)

    def points(self, anchor: str) -> np.ndarray:
        """float64 [k, 2]: their anchor points, shares of the frame."""
        if anchor not in self._points:  # many lines have one anchor
            x1, y1, x2, y2 = self.boxes.T
            points = np.stack([(x1 + x2) / 2, y1 + ANCHORS[anchor] * (y2 - y1)], axis=1)
            self._points[anchor] = points / self.size
        return self._points[anchor]


class LineCounter:
    """Who crosses one line. `rows` float64 [k, 4]: the last point (shares), passages since the last crossing, crossings
    to the inside less those to the outside."""

    def __init__(self, line: LineSettings, rows: bytes = b""):
        self.line, self.segments = line, shapes.segments(line.points)
        self.inward = shapes.side(line.points, line.inside)
        self.rows = _table(rows)

    def update(self, people: People) -> list[tuple[int, int]]:
        """(row, 1 for in or -1 for out) of each crossing in a frame. New people have new rows at the end."""
        point, known = people.points(self.line.anchor), len(self.rows)
        before = self.rows[:, :2]
        after = np.where(people.seen[:known, None], point[:known], before)
        self.rows[:, 2] += self.inward * shapes.crossings(before, after, *self.segments)
        self.rows[:, :2] = after
        if len(point) > known:
            new = np.zeros((len(point) - known, COLUMNS))
            new[:, :2] = point[known:]
            self.rows = np.concatenate([self.rows, new])
        if not self.rows[:, 2].any():
            return []
        passing = ((self.rows[:, 2] != 0) & people.confirmed & people.seen).nonzero()[0]
        height = people.boxes[passing, 3] - people.boxes[passing, 1]
        away = shapes.distance(self.rows[passing, :2] * people.size, np.array(self.line.points) * people.size)
        crossed = passing[away > self.line.band * height]
        net = self.rows[crossed, 2].astype(int)
        self.rows[crossed, 2] = 0
        self.rows[crossed, 3] += net
        if self.line.count == "persons":
            return []
        return [(int(row), int(np.sign(n))) for row, n in zip(crossed, net) for _ in range(abs(n))]

    def end(self, row: int) -> list[int]:
        """The directions that are counted when a track ends."""
        net = int(self.rows[row, 3]) if row < len(self.rows) else 0
        return [int(np.sign(net))] if self.line.count == "persons" and net else []


@dataclass(frozen=True)
class Visit:
    """A person entered a zone, or has left it. `dwell_s` is 0 for one who enters."""

    row: int
    entered: bool
    since_s: float  # when the point crossed the edge
    dwell_s: float = 0.0


class ZoneCounter:
    """Who is in one zone. `rows` float64 [k, 4]: whether the person has entered, since when, since when the person's
    point says otherwise (nan: it does not), when it was last seen."""

    def __init__(self, zone: ZoneSettings, rows: bytes = b""):
        self.zone, self.points = zone, np.array(zone.points, float)
        self.rows = _table(rows)

    @property
    def people(self) -> int:
        """How many are in the zone."""
        return int(self.rows[:, 0].sum())

    def update(self, people: People) -> list[Visit]:
        """Who enters and leaves in a frame. New people have new rows at the end."""
        if more := len(people.boxes) - len(self.rows):
            self.rows = np.concatenate([self.rows, [[0, 0, np.nan, people.time_s]] * more])
        rows, seen, now_s = self.rows, people.seen, people.time_s
        is_inside = shapes.inside(people.points(self.zone.anchor), self.points)
        differs = is_inside != (rows[:, 0] == 1)
        rows[seen, 3] = now_s
        rows[seen & ~differs, 2] = np.nan
        if not differs.any():
            return []
        rows[seen & differs & np.isnan(rows[:, 2]), 2] = now_s
        wait_s = np.where(is_inside, self.zone.enter_s, self.zone.leave_s)
        changed = seen & differs & people.confirmed & (now_s - rows[:, 2] >= wait_s)
        return [self._change(row) for row in changed.nonzero()[0].tolist()]

    def end(self, row: int) -> list[Visit]:
        """The visit that ends with a track, when it was last seen."""
        if row >= len(self.rows) or not self.rows[row, 0]:
            return []
        if np.isnan(self.rows[row, 2]):
            self.rows[row, 2] = self.rows[row, 3]
        return [self._change(row)]

    def _change(self, row: int) -> Visit:
        was_inside, entered_s, changed_s, _ = self.rows[row]
        self.rows[row, :3] = (1 - was_inside, changed_s, np.nan)
        return Visit(row, not was_inside, float(changed_s), float(changed_s - entered_s) if was_inside else 0.0)


def _table(rows: bytes) -> np.ndarray:
    return np.frombuffer(rows).reshape(-1, COLUMNS).copy()
