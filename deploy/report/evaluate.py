"""Compares counts, and boxes, with the truth."""

import csv
import json
from collections import Counter
from pathlib import Path

import numpy as np

from peoplecounter.common.boxes import iou_matrix
from peoplecounter.common.errors import BAD_DATA, NO_INPUT, AppError

MATCHED_IOU = 0.4  # of a box and a true box of the same person
PART_SHARE = 0.7  # of a box that lies within a true box: it shows a part of that person
EDGES = ("bodyL", "bodyT", "bodyR", "bodyB")  # columns of a truth with boxes


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


def read_true_boxes(path: Path) -> dict[int, np.ndarray]:
    """Frame -> float [n, 4] left, top, right, bottom of its people in px, from the columns EDGES of the truth.

    Raises AppError as read_truth() does.
    """
    boxes: dict[int, list] = {frame: [] for frame in read_truth(path)}
    try:
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                boxes[int(float(row["frame"]))].append([float(row[edge]) for edge in EDGES])
    except (KeyError, ValueError, TypeError):
        raise AppError(f"The truth {path} has no boxes: it needs the columns {', '.join(EDGES)}.", BAD_DATA) from None
    return {frame: np.array(rows).reshape(-1, 4) for frame, rows in boxes.items()}


def read_boxes(path: Path) -> dict[int, np.ndarray]:
    """Seq -> float [n, 5] x1, y1, x2, y2, score, from the JSON lines of `run --out --boxes`. Raises AppError."""
    read_counts(path)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    try:
        return {int(line["seq"]): np.array(line["boxes"], float).reshape(-1, 5) for line in lines}
    except (KeyError, ValueError, TypeError):
        raise AppError(f"{path} has no boxes: write it by `run --out FILE --boxes`.", BAD_DATA) from None


def compare_boxes(found: dict[int, np.ndarray], true: dict[int, np.ndarray]) -> dict:
    """Means per frame over the frames that both have: {"frames", "people", "matched", "missed", "duplicate", "part",
    "without_truth"}.

    A box and a true box match, the best pairs first, at an IoU of MATCHED_IOU. Another box that would match is a
    duplicate, one that lies within a true box a part of a person. Raises AppError when there are no frames.
    """
    both = sorted(found.keys() & true.keys())
    if not both:
        raise AppError("The counts and the truth have no frame in common.", BAD_DATA)
    rows = np.array([_kinds(found[frame], true[frame]) for frame in both], float)
    names = ("people", "matched", "missed", "duplicate", "part", "without_truth")
    return {"frames": len(both), **dict(zip(names, rows.mean(axis=0).round(3).tolist()))}


def match(found: np.ndarray, true: np.ndarray) -> np.ndarray:
    """int [n]: of each box [n, 4 or more] the index of its true box [m, 4 or more], or -1."""
    of = np.full(len(found), -1)
    if len(found) and len(true):
        iou = iou_matrix(found[:, :4], true[:, :4])
        for pair in np.argsort(-iou, axis=None):
            box, person = divmod(int(pair), len(true))
            if iou[box, person] < MATCHED_IOU:
                break
            if of[box] < 0 and person not in of:
                of[box] = person
    return of


def _kinds(found: np.ndarray, true: np.ndarray) -> tuple[int, ...]:
    """(people, matched, missed, duplicate, part, without truth) of one frame."""
    of = match(found, true)
    others, duplicate, part = found[of < 0], 0, 0
    for box in others if len(true) else ():
        low, high = np.maximum(box[:2], true[:, :2]), np.minimum(box[2:4], true[:, 2:4])
        within = (high - low).clip(0).prod(axis=1).max() / max(float((box[2:4] - box[:2]).prod()), 1e-9)
        again = iou_matrix(box[None, :4], true).max() >= MATCHED_IOU
        duplicate, part = duplicate + again, part + (not again and within >= PART_SHARE)
    matched = int((of >= 0).sum())
    return len(true), matched, len(true) - matched, duplicate, part, len(others) - duplicate - part


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
