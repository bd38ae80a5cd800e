"""How much of each minute a source was observed, and how many people it showed. Pure.

A frame stands for the time since the one before it, unless that is GAP_S or more: then nobody looked.
"""

import msgspec
from msgspec import Struct

GAP_S = 2.5
MINUTE_S = 60


class Watched(Struct):
    """People in a source or a zone, within a minute."""

    seconds: float = 0.0
    person_s: float = 0.0  # the sum over time
    people_max: int = 0


class MinuteSums(Struct):
    """The current minute of a source, UTC."""

    start_s: int = 0  # 0: no frame has come yet
    last_s: float = 0.0  # time of the last frame
    observed_s: float = 0.0
    complete_s: float = 0.0
    source: Watched = msgspec.field(default_factory=Watched)
    zones: dict[str, Watched] = {}

    def add(self, time_s: float, people: int | None, zones: dict[str, int]) -> "MinuteSums | None":
        """Adds a frame; `people` None: it was counted incompletely. Returns the minute that has ended with it."""
        elapsed_s, ended = time_s - self.last_s, None
        if not self.start_s or not 0 <= elapsed_s < GAP_S:
            elapsed_s = 0.0
        if not self.start_s <= time_s < self.start_s + MINUTE_S:  # or the machine's clock was set back
            if self.start_s:
                before_s = max(0.0, self.start_s + MINUTE_S - self.last_s) if elapsed_s else 0.0
                self._add(before_s, people, zones)
                elapsed_s -= before_s
                ended = self.take()
            self.start_s = int(time_s // MINUTE_S) * MINUTE_S
        self._add(elapsed_s, people, zones)
        self.last_s = time_s
        return ended

    def take(self) -> "MinuteSums":
        """What was added so far; from now on it adds up the rest."""
        taken = msgspec.structs.replace(self)
        self.observed_s = self.complete_s = 0.0
        self.source, self.zones = Watched(), {}
        return taken

    def _add(self, seconds: float, people: int | None, zones: dict[str, int]) -> None:
        self.observed_s += seconds
        if people is None:
            return
        self.complete_s += seconds
        _add(self.source, seconds, people)
        for name, number in zones.items():
            _add(self.zones.setdefault(name, Watched()), seconds, number)


def _add(watched: Watched, seconds: float, people: int) -> None:
    watched.seconds += seconds
    watched.person_s += people * seconds
    watched.people_max = max(watched.people_max, people)
