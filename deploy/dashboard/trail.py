"""Where the people of a source were in the last minutes: for drafts of lines, and as a heat map. Pure."""

from collections import deque
from dataclasses import dataclass

import numpy as np

from peoplecounter.common.counting import LineSettings, ZoneSettings
from peoplecounter.deploy.report.crossings import true_crossings
from peoplecounter.services.fusion.lines import People, ZoneCounter

KEPT_S = 180.0  # of positions
EVERY_S = 0.095  # positions are kept this often
JUMP_S = 5.0  # a clock that jumps so far has been set, or a file has started again
COLUMNS, ROWS = 64, 36  # of the heat map
HEAT_S, HEAT_PARTS = 300.0, 12  # it is summed up in parts of this length, and knows so many of them


@dataclass(frozen=True)
class Sighting:
    """The people of one frame: their boxes float32 [n, 4] in shares of the frame, and their tracks."""

    at_s: float
    boxes: np.ndarray
    tracks: tuple[str, ...]


class Trail:
    """What was seen of one source. Its clock goes on where that of the pictures jumps."""

    def __init__(self) -> None:
        self.size = (0, 0)  # of the upright frame with square pixels, px
        self._seen: deque[Sighting] = deque()
        self._clock_s = self._last_s = 0.0
        self._heat: deque[tuple[float, np.ndarray]] = deque(maxlen=HEAT_PARTS)  # UTC at which a part began, its sums

    def is_due(self, time_s: float) -> bool:
        """True when a frame of this time is to be kept."""
        return not EVERY_S > time_s - self._last_s >= 0

    def add(
        self, time_s: float, boxes: np.ndarray, tracks: tuple[str | None, ...], size: tuple[int, int], utc_s: float
    ) -> None:
        """A frame: boxes [n, 4] in shares of it, and the track of each, or None."""
        passed_s = time_s - self._last_s
        if not self._last_s or not 0 <= passed_s < JUMP_S:
            passed_s = EVERY_S
        self._last_s, self.size = time_s, size
        self._clock_s += passed_s
        known = [i for i, track in enumerate(tracks) if track]
        sighting = Sighting(self._clock_s, boxes[known].astype(np.float32), tuple(str(tracks[i]) for i in known))
        self._seen.append(sighting)
        while self._seen[0].at_s < self._clock_s - KEPT_S:
            self._seen.popleft()
        self._warm(boxes, passed_s, utc_s)

    def copy(self) -> "Trail":
        """What is known now."""
        other = Trail()
        other.size, other._seen, other._heat = self.size, self._seen.copy(), self._heat.copy()
        return other

    @property
    def seconds(self) -> float:
        """How much time is known."""
        return self._seen[-1].at_s - self._seen[0].at_s if self._seen else 0.0

    def try_line(self, line: LineSettings) -> dict:
        """{"in", "out", "seconds"}: what the line would have counted."""
        scale = [*self.size, *self.size]
        seen = list(self._seen)
        tracks = {number: (np.array(one.tracks), one.boxes * scale) for number, one in enumerate(seen)}
        crossings = true_crossings(tracks, {"draft": line}, self.size, lambda number: seen[number].at_s)
        ways = [crossing.direction for crossing in crossings]
        return {"in": ways.count("in"), "out": ways.count("out"), "seconds": round(self.seconds, 1)}

    def try_zone(self, zone: ZoneSettings) -> dict:
        """{"entered", "people_max", "seconds"}: what the zone would have counted."""
        counter, entered, most = ZoneCounter(zone), 0, 0
        rows: dict[str, int] = {}
        boxes = np.zeros((0, 4))
        for one in list(self._seen):
            row = [rows.setdefault(track, len(rows)) for track in one.tracks]
            boxes = np.vstack([boxes, np.zeros((len(rows) - len(boxes), 4))])
            boxes[row] = one.boxes * [*self.size, *self.size]
            seen = np.isin(np.arange(len(rows)), row)
            visits = counter.update(People(boxes, self.size, np.ones(len(rows), bool), seen, one.at_s))
            entered += sum(visit.entered for visit in visits)
            most = max(most, int((counter.rows[:, 0].astype(bool) & seen).sum()))
        return {"entered": entered, "people_max": most, "seconds": round(self.seconds, 1)}

    def heat(self) -> tuple[np.ndarray, float | None]:
        """(person-seconds of feet, float32 [ROWS, COLUMNS]; UTC since when, None before the first frame)."""
        if not self._heat:
            return np.zeros((ROWS, COLUMNS), np.float32), None
        return np.sum([part for _, part in self._heat], axis=0), self._heat[0][0]

    def _warm(self, boxes: np.ndarray, seconds: float, utc_s: float) -> None:
        while self._heat and self._heat[0][0] <= utc_s - HEAT_S * HEAT_PARTS:
            self._heat.popleft()
        if not self._heat or utc_s - self._heat[-1][0] >= HEAT_S:
            self._heat.append((utc_s, np.zeros((ROWS, COLUMNS), np.float32)))
        x = ((boxes[:, 0] + boxes[:, 2]) / 2 * COLUMNS).astype(int).clip(0, COLUMNS - 1)
        y = (boxes[:, 3] * ROWS).astype(int).clip(0, ROWS - 1)
        np.add.at(self._heat[-1][1], (y, x), seconds)
