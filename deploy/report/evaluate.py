"""Compares counts with the truth."""

import csv
import json
from collections import Counter
from pathlib import Path

import numpy as np

from peoplecounter.common.errors import BAD_DATA, NO_INPUT, AppError


def read_truth(path: Path) -> dict[int, int]:
    """Frame -> true count, from a CSV with one row per person and a `frame` column; frames without a row have 0.

    Raises AppError for a file that cannot be read or has another format.
    """
    try:
        with path.open(newline="") as file:
            frames = Counter(int(float(row["frame"])) for row in csv.DictReader(file))
    except OSError as error:
        raise AppError(f"The truth {path} cannot be read: {error.strerror}.", NO_INPUT) from None
    except (KeyError, ValueError, TypeError, UnicodeDecodeError):
        raise AppError(f"The truth {path} is not a CSV with a `frame` column of numbers.", BAD_DATA) from None
    return {frame: frames[frame] for frame in range(max(frames, default=-1) + 1)}


def read_counts(path: Path) -> dict[int, int]:
    """Seq -> counted people, from the JSON lines of `run --out` of one source.

    Raises AppError for a file that cannot be read or has another format.
    """
    counts: dict[int, int] = {}
    sources: set[str] = set()
    try:
        for line in path.read_text().splitlines():
            record = json.loads(line)
            sources.add(record["source"])
            counts[int(record["seq"])] = int(record["count"])
    except OSError as error:
        raise AppError(f"The counts {path} cannot be read: {error.strerror}.", NO_INPUT) from None
    except (ValueError, KeyError, TypeError):
        raise AppError(
            f"Line {len(counts) + 1} of {path} is not a count: expected the JSON lines of `run --out`.", BAD_DATA
        ) from None
    if len(sources) > 1:
        raise AppError(f"{path} contains counts of several sources: {', '.join(sorted(sources))}.", BAD_DATA)
    return counts


def compare(counts: dict[int, int], truth: dict[int, int]) -> dict:
    """{"frames", "mae", "rmse", "bias"} over the frames that both have. Raises AppError when there are none."""
    both = sorted(counts.keys() & truth.keys())
    if not both:
        raise AppError("The counts and the truth have no frame in common.", BAD_DATA)
    error = np.array([counts[f] - truth[f] for f in both], float)
    return {
        "frames": len(both),
        "mae": round(float(np.abs(error).mean()), 4),
        "rmse": round(float(np.sqrt((error**2).mean())), 4),
        "bias": round(float(error.mean()), 4),
    }
