"""Intervals of local time, and what UTC seconds they are: days of 23 and 25 hours, half-hour zones, years. Pure."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

from peoplecounter.common.errors import AppError

MINUTES = {"1m": 1, "5m": 5, "15m": 15, "30m": 30, "hour": 60}
GRID_MINUTES = 15  # every zone's offset, and so every boundary from 15 minutes on, is a multiple of it
GRID_MAX, INTERVALS_MAX = 4_000_000, 100_000  # a century of quarters of an hour; ten years of hours
STEPS = (*MINUTES, "day", "week", "month", "year", "total")


@dataclass(frozen=True)
class Interval:
    """From begin_s up to end_s, UTC."""

    begin_s: int
    end_s: int


def grid_minutes(step: str) -> int:
    """Minutes that never lie in two intervals."""
    return min(MINUTES.get(step, GRID_MINUTES), GRID_MINUTES)


def intervals(begin_s: float, end_s: float, step: str, zone: ZoneInfo) -> list[Interval]:
    """All intervals that overlap begin_s … end_s, whole, in order. An hour that is repeated in autumn is two intervals.

    Raises AppError for an unknown step.
    """
    if step not in STEPS:
        raise AppError(f"Unknown interval {step!r}: use one of {', '.join(STEPS)}.")
    grid_s = 60 * grid_minutes(step)
    if (end_s - begin_s) / grid_s > GRID_MAX or (end_s - begin_s) / (60 * MINUTES.get(step, 1440)) > INTERVALS_MAX:
        raise AppError(f"From --from to --to are too many intervals of {step}: ask for longer ones, or for less time.")
    begin, end = int(begin_s // grid_s) * grid_s, int(-(-end_s // grid_s)) * grid_s
    if step == "total":
        return [Interval(begin, end)]
    name = _names(step, zone)
    while name(begin - grid_s) == name(begin):
        begin -= grid_s
    bounds, current = [begin], name(begin)
    at_s = begin
    while at_s < end or name(at_s) == current:
        if name(at_s) != current:
            bounds.append(at_s)
            current = name(at_s)
        at_s += grid_s
    return [Interval(a, b) for a, b in zip(bounds, [*bounds[1:], at_s])]


def _names(step: str, zone: ZoneInfo) -> Callable[[int], object]:
    """What tells the interval of a moment from others."""

    def name(at_s: int) -> object:
        local = datetime.fromtimestamp(at_s, zone)
        if step in MINUTES:
            return local.date(), (60 * local.hour + local.minute) // MINUTES[step], local.utcoffset()
        if step == "week":
            return local.isocalendar()[:2]
        return {"day": local.date(), "month": (local.year, local.month), "year": local.year}[step]

    return name


def moment(text: str, zone: ZoneInfo, now_s: float) -> float:
    """UTC of a date, a date and time, or "now", "today", "yesterday", in a time zone. Raises AppError."""
    today = datetime.fromtimestamp(now_s, zone).date()
    days = {"today": today, "yesterday": today - timedelta(days=1)}
    if text == "now":
        return now_s
    try:
        parsed = datetime.combine(days[text], datetime.min.time()) if text in days else datetime.fromisoformat(text)
    except ValueError:
        raise AppError(f"{text!r} is no time: use 2026-11-26, 2026-11-26T08:00, today, yesterday or now.") from None
    if not 1970 < parsed.year < 2200:
        raise AppError(f"{text!r} lies outside of 1971 to 2199.")
    return (parsed if parsed.tzinfo else parsed.replace(tzinfo=zone)).timestamp()


def day_of(at_s: float, zone: ZoneInfo) -> float:
    """UTC at which the local day of a moment begins."""
    return datetime.fromtimestamp(at_s, zone).replace(hour=0, minute=0, second=0, microsecond=0, fold=0).timestamp()


def local(at_s: float, zone: ZoneInfo, precision: str = "minutes") -> str:
    """A moment with its offset, e.g. 2026-11-26T08:15+01:00."""
    return datetime.fromtimestamp(at_s, zone).isoformat(timespec=precision)
