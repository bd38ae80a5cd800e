"""How many people are in an area: who went in at its lines, less those who went out. Never clamped: it may be negative.

Lines count, and an area only adds them up, so that both always agree. What a line cannot know is in the area's own log,
`areas/NAME.log` in `data_dir`, one JSON object a line: the daily reset, a correction, a change of its lines. Each entry
says what the area showed before and after; what a reset takes away is the drift since the one before.
"""

import time
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import msgspec

from peoplecounter.common.counting import AreaSettings
from peoplecounter.common.errors import SOFTWARE, AppError
from peoplecounter.common.events import AREAS, Adjustment, LineTotals, append_line, read_adjustments
from peoplecounter.common.files import make_private_folder
from peoplecounter.services.fusion.publish import utc


class Area:
    """One area. `totals` gives the sums of a line, SOURCE.LINE. Raises AppError when its log cannot be used."""

    def __init__(
        self, data: Path, name: str, settings: AreaSettings, timezone: str, totals: Callable[[str], LineTotals]
    ):
        self.name, self._settings, self._zone, self._totals = name, settings, ZoneInfo(timezone), totals
        make_private_folder(data, "data_dir")
        make_private_folder(data / AREAS, "folder of areas")
        self._path = data / AREAS / f"{name}.log"
        now_s, entries = time.time(), read_adjustments(self._path)
        if not entries:
            ins, outs = self._sums(settings.lines)
            entries = [self._append(Adjustment(
                number=1, kind="begin", time_s=now_s, before=0, after=0, base_ins=ins, base_outs=outs, corrected=0,
                reset_s=now_s, drift=0, lines=settings.lines,
            ))]  # fmt: skip
        self._last = entries[-1]
        if self._last.lines != settings.lines:  # the occupancy stays as it was
            (ins, outs), (was_ins, was_outs) = self._sums(settings.lines), self._since_reset()
            self._adjust(
                "lines", now_s, lines=settings.lines, base_ins=ins - was_ins, base_outs=outs - was_outs,
                after=self.occupancy(),
            )  # fmt: skip

    @property
    def lines(self) -> tuple[str, ...]:
        return self._last.lines

    @property
    def drift(self) -> int:
        """What the last reset took away."""
        return self._last.drift

    def occupancy(self) -> int:
        """How many people are inside, as far as the lines and corrections tell."""
        ins, outs = self._since_reset()
        return ins - outs + self._last.corrected

    def correct(self, people: int, now_s: float, note: str = "") -> tuple[int, int]:
        """Somebody counted: this many people are inside. Returns the occupancy (before, after)."""
        before = self.occupancy()
        self._adjust("correct", now_s, corrected=self._last.corrected + people - before, after=people, note=note)
        return before, people

    def reset_if_due(self, now_s: float) -> bool:
        """Empties the area once a day, at its time of reset, or later when fusion was away then."""
        if not self._settings.reset or self._last.reset_s >= latest(self._settings.reset, self._zone, now_s):
            return False
        ins, outs = self._sums(self._last.lines)
        self._adjust(
            "reset", now_s, base_ins=ins, base_outs=outs, corrected=0, after=0, reset_s=now_s, drift=self.occupancy()
        )
        return True

    def public(self, now_s: float) -> dict:
        """The area as subscribers get it."""
        (ins, outs), (all_ins, all_outs) = self._since_reset(), self._sums(self._last.lines)
        return {
            "area": self.name, "time": utc(now_s), "occupancy": self.occupancy(), "in": ins, "out": outs,
            "since": utc(self._last.reset_s), "corrected": self._last.corrected, "drift": self._last.drift,
            "number": all_ins + all_outs + self._last.number, "totals": {"in": all_ins, "out": all_outs},
        }  # fmt: skip

    def _sums(self, lines: tuple[str, ...]) -> tuple[int, int]:
        totals = [self._totals(line) for line in lines]
        return sum(total.ins for total in totals), sum(total.outs for total in totals)

    def _since_reset(self) -> tuple[int, int]:
        ins, outs = self._sums(self._last.lines)
        return ins - self._last.base_ins, outs - self._last.base_outs

    def _adjust(self, kind: str, now_s: float, **changes) -> None:
        before = self.occupancy()
        self._last = self._append(
            msgspec.structs.replace(
                self._last, number=self._last.number + 1, kind=kind, time_s=now_s, before=before,
                **{"note": "", **changes},
            )
        )  # fmt: skip

    def _append(self, entry: Adjustment) -> Adjustment:
        try:
            append_line(self._path, msgspec.json.encode(entry))
        except OSError as error:
            raise AppError(f"{self._path} cannot be written: {error.strerror}.", SOFTWARE) from None
        return entry


def latest(clock: str, zone: ZoneInfo, now_s: float) -> float:
    """UTC of the last time that it was HH:MM in a time zone."""
    hour, minute = map(int, clock.split(":"))
    now = datetime.fromtimestamp(now_s, zone)
    due = now.replace(hour=hour, minute=minute, second=0, microsecond=0, fold=0)
    if due.timestamp() > now_s:
        due = (now - timedelta(days=1)).replace(hour=hour, minute=minute, second=0, microsecond=0, fold=0)
    return due.timestamp()
