"""Compares tracks with the truth: IDF1, identity switches and HOTA, with the definitions of TrackEval."""

import csv
import json
from pathlib import Path

import numpy as np

from peoplecounter.common.boxes import iou_matrix
from peoplecounter.common.errors import BAD_DATA, AppError
from peoplecounter.deploy.report.evaluate import read_boxes, read_true_boxes

Tracks = dict[int, tuple[np.ndarray, np.ndarray]]  # frame -> (ids str [n], boxes float [n, 4] x1, y1, x2, y2 in px)
Frame = tuple[np.ndarray, np.ndarray, np.ndarray]  # people int [n], tracks int [m], IoU float [n, m]

SAME_IOU = 0.5  # of a track's box and a person's, for IDF1 and the switches: as MOTChallenge has it
ALPHAS = np.arange(0.05, 0.99, 0.05)  # HOTA's IoU limits
KEEP = 1000  # added to the IoU of a pair that the frame before had: more than all IoUs of a frame together
ROUNDING = np.finfo(float).eps  # an IoU this little below a limit still reaches it


def read_true_tracks(path: Path) -> Tracks:
    """The tracks of a truth with the columns frame, person and EDGES; every frame 0..last is there, maybe empty.

    Raises AppError as read_true_boxes() does, and when a person is missing.
    """
    boxes = read_true_boxes(path)
    people: dict[int, list[str]] = {frame: [] for frame in boxes}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            if not row.get("person"):
                raise AppError(f"The truth {path} has no tracks: every row needs a `person`.", BAD_DATA)
            people[int(float(row["frame"]))].append(row["person"])
    return {frame: (np.array(people[frame], object), boxes[frame]) for frame in boxes}


def read_found_tracks(path: Path) -> Tracks:
    """Seq -> the boxes that have an id, from the JSON lines of `run --out --boxes` of one source.

    Raises AppError as read_boxes() does, and when a line has not one id, or null, per box.
    """
    boxes = read_boxes(path)
    tracks: Tracks = {}
    for line in map(json.loads, path.read_text().splitlines()):
        seq, ids = int(line["seq"]), line.get("ids")
        if not isinstance(ids, list) or len(ids) != len(line["boxes"]):
            raise AppError(
                f"Seq {seq} of {path} needs `ids`, one or null per box: write it by a run that tracks.", BAD_DATA
            )
        known = np.array([track is not None for track in ids], bool)
        tracks[seq] = (np.array([str(track) for track in ids if track is not None], object), boxes[seq][known, :4])
    return tracks


def compare_tracks(found: Tracks, true: Tracks) -> dict:
    """Scores over the frames that both have: {"frames", "idf1", "idp", "idr", "hota", "deta", "assa", "switches",
    "true_tracks", "found_tracks"}.

    They are those of TrackEval for MOTChallenge (github.com/JonathonLuiten/TrackEval: metrics/identity.py, hota.py
    and, for the switches, clear.py). HOTA, DetA and AssA are means over ALPHAS. Raises AppError when there are no
    frames, when a frame has an id twice, and for a box that is not a number.
    """
    both = sorted(found.keys() & true.keys())
    if not both:
        raise AppError("The tracks and the truth have no frame in common.", BAD_DATA)
    people, n_people = _numbered(true, both)
    tracks, n_tracks = _numbered(found, both)
    frames = [(p, t, iou_matrix(true[frame][1], found[frame][1])) for frame, p, t in zip(both, people, tracks)]
    for frame, (_, _, iou) in zip(both, frames):
        if not np.isfinite(iou).all():
            raise AppError(f"Frame {frame} has a box that is not a number.", BAD_DATA)
    lengths = np.bincount(np.concatenate(people), minlength=n_people)
    found_lengths = np.bincount(np.concatenate(tracks), minlength=n_tracks)
    scores = {**identity(frames, lengths, found_lengths), **hota(frames, lengths, found_lengths)}
    return {
        "frames": len(both),
        **{name: round(score, 4) for name, score in scores.items()},
        "switches": switches(frames, n_people),
        "true_tracks": n_people,
        "found_tracks": n_tracks,
    }


def identity(frames: list[Frame], lengths: np.ndarray, found_lengths: np.ndarray) -> dict[str, float]:
    """{"idf1", "idp", "idr"} of people with `lengths` int [P] and tracks with `found_lengths` int [T], in boxes.

    Each person gets at most one track, such that most boxes are right (Ristani et al. 2016).
    """
    together = np.zeros((len(lengths), len(found_lengths)))
    for people, tracks, iou in frames:
        rows, columns = np.nonzero(iou >= SAME_IOU)
        together[people[rows], tracks[columns]] += 1
    right = float(together[best_pairs(together)].sum())
    true, found = int(lengths.sum()), int(found_lengths.sum())
    return {"idf1": 2 * right / max(true + found, 1), "idp": right / max(found, 1), "idr": right / max(true, 1)}


def hota(frames: list[Frame], lengths: np.ndarray, found_lengths: np.ndarray) -> dict[str, float]:
    """{"hota", "deta", "assa"} of people with `lengths` int [P] and tracks with `found_lengths` int [T], in boxes.

    Frames are matched once, by IoU times how well the whole tracks agree (Luiten et al. 2021, section 4.3).
    """
    either, agreement = lengths[:, None] + found_lengths, _agreement(frames, len(lengths), len(found_lengths))
    matches = np.zeros((len(ALPHAS), len(lengths), len(found_lengths)))
    for people, tracks, iou in frames:
        rows, columns = best_pairs(iou * (agreement / (either - agreement))[people[:, None], tracks])
        matches[:, people[rows], tracks[columns]] += iou[rows, columns] >= ALPHAS[:, None] - ROUNDING
    matched = matches.sum(axis=(1, 2))
    deta = matched / np.maximum(lengths.sum() + found_lengths.sum() - matched, 1)
    assa = (matches**2 / np.maximum(either - matches, 1)).sum(axis=(1, 2)) / np.maximum(matched, 1)
    means = (np.sqrt(deta * assa).mean(), deta.mean(), assa.mean())
    return dict(zip(("hota", "deta", "assa"), map(float, means)))


def switches(frames: list[Frame], n_people: int) -> int:
    """How often a person's track is not the one that they had when last matched (CLEAR MOT's identity switches).

    A pair of the frame before stays while it reaches SAME_IOU. A frame without people or tracks is no such frame.
    """
    last, before, count = np.full(n_people, -1), np.full(n_people, -1), 0
    for people, tracks, iou in frames:
        if not iou.size:
            continue
        stays = before[people][:, None] == tracks
        score = np.where(iou >= SAME_IOU - ROUNDING, iou + KEEP * stays, 0)
        rows, columns = best_pairs(score)
        matched = score[rows, columns] > 0
        who, track = people[rows[matched]], tracks[columns[matched]]
        count += int(((last[who] >= 0) & (last[who] != track)).sum())
        before[:] = -1
        last[who] = before[who] = track
    return count


def best_pairs(score: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(rows, columns) int [min(n, m)] each: the pairs of the largest total of score [n, m], finite; each used once.

    Every row is added by the shortest augmenting path (Jonker and Volgenant 1987, as in scipy's
    linear_sum_assignment). The prices keep the cost of every edge, less its row's and column's, at 0 or more.
    """
    if score.shape[0] > score.shape[1]:
        columns, rows = best_pairs(score.T)
        return rows, columns
    n, m = score.shape
    row_price, column_price, row_of = np.zeros(n), np.zeros(m), np.full(m, -1)
    for start in range(n):
        distance, previous, unseen = np.full(m, np.inf), np.full(m, -1), np.ones(m, bool)
        row, column, length = start, -1, 0.0
        while row >= 0:  # until the nearest column is free
            through = length - score[row] - row_price[row] - column_price
            nearer = unseen & (through < distance)
            distance[nearer], previous[nearer] = through[nearer], column
            column = int(np.where(unseen, distance, np.inf).argmin())
            unseen[column], length, row = False, distance[column], row_of[column]
        passed = np.flatnonzero(~unseen & (row_of >= 0))
        row_price[start] += length
        row_price[row_of[passed]] += length - distance[passed]
        column_price[passed] -= length - distance[passed]
        while column >= 0:  # back along the path: each column takes over the row of the one before
            row_of[column] = row_of[previous[column]] if previous[column] >= 0 else start
            column = previous[column]
    columns = np.flatnonzero(row_of >= 0)
    return row_of[columns], columns


def _agreement(frames: list[Frame], n_people: int, n_tracks: int) -> np.ndarray:
    """float [P, T]: in how many frames person and track are together, each frame by their share of all overlaps."""
    total = np.zeros((n_people, n_tracks))
    for people, tracks, iou in frames:
        overlaps = iou.sum(axis=0) + iou.sum(axis=1)[:, None] - iou
        total[people[:, None], tracks] += np.where(overlaps > ROUNDING, iou / np.maximum(overlaps, ROUNDING), 0)
    return total


def _numbered(tracks: Tracks, frames: list[int]) -> tuple[list[np.ndarray], int]:
    """(int [n] per frame, how many): the ids as 0, 1, … in order of appearance. Raises AppError for an id twice."""
    numbers: dict[str, int] = {}
    lists = [np.array([numbers.setdefault(i, len(numbers)) for i in tracks[frame][0]], int) for frame in frames]
    for frame, ids in zip(frames, lists):
        if len(set(ids.tolist())) < len(ids):
            raise AppError(f"Frame {frame} has an id twice: {', '.join(map(str, tracks[frame][0]))}.", BAD_DATA)
    return lists, len(numbers)
