"""What the benchmarks share."""

import os
import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np

TRACING = "Tracing of 1 % and metrics"
TRACED = {"telemetry__exporter": "file", "telemetry__file": "/dev/null", "telemetry__prometheus": "127.0.0.1:9466"}
SHARES = np.linspace(0, 1, 41)  # of a distribution that is kept


def cpu_s(pid: int) -> float:
    """Seconds of processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and 99th percentile."""
    p50, p99 = np.percentile(values, [50, 99])
    return {"p50": round(float(p50), 4), "p99": round(float(p99), 4)}


def distribution(values: Sequence[float]) -> list[float]:
    """Values at SHARES."""
    return np.quantile(values, SHARES).round(4).tolist()


def gain(
    optimization: str, what: str, unit: str, off: Sequence[Sequence[float]], on: Sequence[Sequence[float]]
) -> dict:
    """A row of the gains report: off and on were measured in turns, a sequence of values each time.

    `before` and `after` are medians of the medians of the turns, `spread` their least and largest.
    """
    rows = {}
    for key, turns in (("before", off), ("after", on)):
        medians = [float(np.median(turn)) for turn in turns]
        rows[key] = round(statistics.median(medians), 4)
        rows[f"{key}_spread"] = [round(min(medians), 4), round(max(medians), 4)]
    ratio = round(rows["before"] / rows["after"], 3) if rows["after"] else None
    return {"optimization": optimization, "what": what, "unit": unit, **rows, "ratio": ratio, "turns": len(on)}


def of_checkout(tree: Path, folder: Path) -> dict[str, str]:
    """The environment in which Python imports `peoplecounter` from a checkout, by links in `folder`."""
    rooms = folder / "peoplecounter"
    rooms.mkdir(parents=True, exist_ok=True)
    for room in ("common", "services", "deploy"):
        (rooms / room).unlink(missing_ok=True)
        (rooms / room).symlink_to(tree / room)
    paths = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
