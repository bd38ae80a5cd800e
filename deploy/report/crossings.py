"""Compares the crossings of lines with the truth: precision, recall, and how sure they are."""

import csv
import json
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from math import ceil, isfinite, sqrt
from pathlib import Path

import numpy as np

from peoplecounter.common.counting import LineSettings
from peoplecounter.common.errors import BAD_DATA, NO_INPUT, AppError
from peoplecounter.deploy.report.track_scores import Tracks
from peoplecounter.services.fusion.lines import LineCounter, People

COLUMNS = ("line", "direction", "at_s")
DIRECTIONS = ("in", "out")
TOLERANCE_S = 1.0  # between a crossing and its mark
Z = 1.959964  # of a normal distribution: 95 % lie within so many standard deviations
CLAIM = 0.95  # what the text says how many crossings are needed for
CONFIRMED_FRAMES = 3  # that show a person before the person counts, as in services/fusion/track.py
ROUNDING_S = 1e-6


@dataclass(frozen=True)
class CrossingAt:
    """A person crosses a line. `direction` is one of DIRECTIONS, `at_s` the time in the clip."""

    line: str
    direction: str
    at_s: float

    def __str__(self) -> str:
        return f"{self.at_s:9.2f} s  {self.line} {self.direction}"


def read_crossings(path: Path) -> list[CrossingAt]:
    """The crossings of one source, from the JSON lines of `run --events` or from a CSV with COLUMNS.

    An empty file has none. Raises AppError for a file that cannot be read or has another format.
    """
    try:
        text = path.read_text("utf-8-sig")
    except OSError as error:
        raise AppError(f"The crossings {path} cannot be read: {error.strerror}.", NO_INPUT) from None
    except UnicodeDecodeError:
        raise _unreadable(path, 1) from None
    return _of_json(path, text) if text.lstrip().startswith("{") else _of_csv(path, text)


def write_crossings(crossings: Iterable[CrossingAt]) -> str:
    """The CSV that read_crossings() reads."""
    rows = (f"{crossing.line},{crossing.direction},{round(crossing.at_s, 3)}" for crossing in crossings)
    return "\n".join([",".join(COLUMNS), *rows, ""])


def compare_crossings(found: list[CrossingAt], true: list[CrossingAt], tolerance_s: float = TOLERANCE_S) -> dict:
    """{"tolerance_s", "found", "true", "matched", "precision", "recall", "precision_interval", "recall_interval",
    "in", "out", "lines", "only_found", "only_true"}.

    A pair has one line, one direction and at most `tolerance_s` between its times; the nearest ones are paired first,
    each crossing once. "in" and "out" have "found", "true" and "matched"; "lines" has the same as the whole for each
    line. The intervals are Wilson's at 95 %. What nothing can be divided by is None.
    """
    pairs = _pairs(found, true, tolerance_s)
    of_found, of_true = {i for i, _ in pairs}, {j for _, j in pairs}
    rest = [c for i, c in enumerate(found) if i not in of_found], [c for j, c in enumerate(true) if j not in of_true]
    kinds = [[(c.line, c.direction) for c in crossings] for crossings in (found, true, [found[i] for i, _ in pairs])]
    lines = sorted({line for line, _ in kinds[0] + kinds[1]})
    return {
        "tolerance_s": tolerance_s,
        **_scores(kinds),
        "lines": {name: _scores([[kind for kind in of if kind[0] == name] for of in kinds]) for name in lines},
        "only_found": [asdict(crossing) for crossing in sorted(rest[0], key=lambda c: c.at_s)],
        "only_true": [asdict(crossing) for crossing in sorted(rest[1], key=lambda c: c.at_s)],
    }


def wilson(right: int, of: int) -> list[float] | None:
    """[low, high] of the share that `right` of `of` tell at 95 % (Wilson 1927, equation 5); None for 0 of 0."""
    if not of:
        return None
    share, z2 = right / of, Z**2 / of
    middle, half = share + z2 / 2, sqrt(z2 * (share * (1 - share) + z2 / 4))
    return [round(max(0.0, middle - half) / (1 + z2), 4), round(min(1.0, (middle + half) / (1 + z2)), 4)]


def crossings_needed(claim: float) -> int:
    """How many crossings without an error it takes until Wilson's lower bound, n / (n + Z²), is `claim`, below 1."""
    return ceil(claim * Z**2 / (1 - claim))


def comparison_lines(result: dict) -> list[str]:
    """What compare_crossings() found, for people."""
    lines = ["crossings: {found} found, {true} true, {matched} match within {tolerance_s:g} s".format(**result)]
    for name, of in result["lines"].items():
        lines += [
            f"{name} {way}: {{found}} found, {{true}} true, {{matched}} match".format(**of[way]) for way in DIRECTIONS
        ]
    for name, of, what in (("precision", "found", "found ones are true"), ("recall", "true", "true ones are found")):
        if result[of]:
            low, high = result[f"{name}_interval"]
            shares = f"{_percent(result[name])} of {result[of]}: between {_percent(low)} and {_percent(high)}"
            lines.append(f"{name} ({what}): {shares}, with 95 % confidence")
    if any(interval and interval[0] < CLAIM for interval in (result["precision_interval"], result["recall_interval"])):
        lines.append(f"To claim {_percent(CLAIM)} you need {crossings_needed(CLAIM)} crossings without an error.")
    return lines


def disagreement_lines(result: dict) -> list[str]:
    """The crossings without a match, for people, in order of time."""
    alone = [(CrossingAt(**row), "counted, not marked") for row in result["only_found"]]
    alone += [(CrossingAt(**row), "marked, not counted") for row in result["only_true"]]
    return [f"{crossing}  {what}" for crossing, what in sorted(alone, key=lambda one: one[0].at_s)]


def true_crossings(
    tracks: Tracks, lines: Mapping[str, LineSettings], size: tuple[int, int], times_s: Callable[[int], float]
) -> list[CrossingAt]:
    """What true tracks do at lines by the product's own rule, in order of time. Raises AppError for an id twice.

    `size`: width and height of the frames, px. `times_s`: of a frame. A person is a track from the first box to the
    last, seen in the frames where it has one. A line that counts persons does so in a person's last frame; the product
    does some seconds later.
    """
    counters = {name: LineCounter(line) for name, line in lines.items()}
    last = {person: frame for frame in sorted(tracks) for person in tracks[frame][0]}
    rows: dict[str, int] = {}
    boxes, frames_seen = np.zeros((0, 4)), np.zeros(0, int)
    crossings: list[CrossingAt] = []
    for frame in sorted(tracks):
        people, at = tracks[frame]
        row = [rows.setdefault(person, len(rows)) for person in people]
        if len(set(row)) < len(row):
            raise AppError(f"Frame {frame} of the truth has a person twice: {', '.join(map(str, people))}.", BAD_DATA)
        new = len(rows) - len(boxes)
        boxes, frames_seen = np.vstack([boxes, np.zeros((new, 4))]), np.append(frames_seen, np.zeros(new, int))
        boxes[row] = at
        frames_seen[row] += 1
        seen = np.isin(np.arange(len(rows)), row)
        now = People(boxes, size, frames_seen >= CONFIRMED_FRAMES, seen, times_s(frame))
        gone = [rows[person] for person in people if last[person] == frame]
        for name, counter in counters.items():
            signs = [sign for _, sign in counter.update(now)] + [sign for one in gone for sign in counter.end(one)]
            crossings += [CrossingAt(name, "in" if sign > 0 else "out", now.time_s) for sign in signs]
    return crossings


def _of_json(path: Path, text: str) -> list[CrossingAt]:
    crossings, sources = [], set()
    for number, line in enumerate(text.splitlines(), 1):
        try:
            record = json.loads(line)
            if record["kind"] == "zones":
                continue
            if record["kind"] == "crossings" and record["pts_s"] is None:
                raise AppError(f"Line {number} of {path} has no pts_s: its source has no timestamps.", BAD_DATA)
            crossings.append(_crossing(record["line"], record["direction"], record["pts_s"]))
            sources.add(record["source"])
        except (ValueError, KeyError, TypeError):
            raise _unreadable(path, number) from None
    if len(sources) > 1:
        raise AppError(f"{path} contains crossings of several sources: {', '.join(sorted(sources))}.", BAD_DATA)
    return crossings


def _of_csv(path: Path, text: str) -> list[CrossingAt]:
    if not text.strip():
        return []
    rows, crossings = csv.DictReader(text.splitlines()), []
    try:
        if not set(COLUMNS) <= set(rows.fieldnames or ()):
            raise ValueError
        crossings += [_crossing(*(row[column] for column in COLUMNS)) for row in rows]
    except (ValueError, TypeError, csv.Error):
        raise _unreadable(path, rows.line_num) from None
    return crossings


def _crossing(line: object, direction: object, at_s) -> CrossingAt:
    """Raises ValueError or TypeError for what is no crossing."""
    if not line or not isinstance(line, str) or direction not in DIRECTIONS or not isfinite(float(at_s)):
        raise ValueError
    return CrossingAt(line, str(direction), float(at_s))


def _unreadable(path: Path, number: int) -> AppError:
    expected = "the JSON lines of `run --events`, or a CSV with the columns line, direction (in or out) and at_s"
    return AppError(f"Line {number} of {path} is not a crossing: expected {expected}.", BAD_DATA)


def _pairs(found: list[CrossingAt], true: list[CrossingAt], tolerance_s: float) -> list[tuple[int, int]]:
    """Indices of the crossings that belong together, the nearest in time first."""
    order = sorted(range(len(found)), key=lambda i: found[i].at_s)
    times_s, candidates = [found[i].at_s for i in order], []
    for j, crossing in enumerate(true):
        for i in order[bisect_left(times_s, crossing.at_s - tolerance_s - ROUNDING_S) :]:
            apart_s = abs(found[i].at_s - crossing.at_s)
            if found[i].at_s > crossing.at_s and apart_s > tolerance_s + ROUNDING_S:
                break
            if (found[i].line, found[i].direction) == (crossing.line, crossing.direction):
                candidates.append((apart_s, i, j))
    pairs: dict[int, int] = {}
    taken: set[int] = set()
    for _, i, j in sorted(candidates):
        if i not in pairs and j not in taken:
            pairs[i] = j
            taken.add(j)
    return list(pairs.items())


def _scores(kinds: list[list[tuple[str, str]]]) -> dict:
    """The numbers of (line, direction) of what was found, is true, and matches."""
    found, true, matched = map(len, kinds)
    names = ("found", "true", "matched")
    return {
        **dict(zip(names, (found, true, matched))),
        "precision": round(matched / found, 4) if found else None,
        "recall": round(matched / true, 4) if true else None,
        "precision_interval": wilson(matched, found),
        "recall_interval": wilson(matched, true),
        **{way: dict(zip(names, (sum(d == way for _, d in of) for of in kinds))) for way in DIRECTIONS},
    }


def _percent(share: float) -> str:
    """Whole percents; 100 % is all of them."""
    return f"{min(round(100 * share), 99) if share < 1 else 100} %"
