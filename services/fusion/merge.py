"""One list of persons from the boxes of all tiles and of the letterboxed frame. Pure.

1. A box that is cut by an inner tile edge is removed: the neighbour's overlap, or the letterboxed frame, shows that
   person uncut.
2. Best score first, a box removes weaker boxes that it overlaps: by intersection over union (IoU), or over the smaller
   box (IoS). Between two views of one place the thresholds are low, because their boxes disagree. Within one view the
   network has separated overlapping people itself, so only near copies are removed, and a torso inside a person.
3. Two thresholds (hysteresis, as in edge detectors and ByteTrack): a weak box counts only where the previous frame
   had a person. So the noise of one frame is not counted, and a person does not flicker.
"""

import numpy as np

from peoplecounter.common.boxes import greedy_keep, iou_matrix, overlapping_pairs

SCORE, CUT, VIEW = 4, 5, 6  # columns after x1, y1, x2, y2; a view is a tile, or -1: the letterboxed frame
BOXES_MAX = 3000  # the best boxes that are compared with each other: memory grows with the square
COPY_IOU, COPY_IOS = 0.7, 0.9  # within one view
SAME_PLACE_IOU = 0.3  # with a person of the previous frame: people move little between two frames


def merge(rows: np.ndarray, same_iou: float, same_ios: float) -> np.ndarray:
    """float32 [n, 7] (see messages.Detections) -> float32 [k, 5], each person once, best first."""
    uncut = rows[rows[:, CUT] == 0]
    uncut = uncut[np.argsort(-uncut[:, SCORE], kind="stable")][:BOXES_MAX]
    first, second, iou, ios = overlapping_pairs(uncut)
    one_view = uncut[first, VIEW] == uncut[second, VIEW]
    same = np.where(one_view, (iou > COPY_IOU) | (ios > COPY_IOS), (iou > same_iou) | (ios > same_ios))
    return uncut[greedy_keep(len(uncut), first[same], second[same]), :5]


def hysteresis(persons: np.ndarray, previous: np.ndarray, new_score: float) -> np.ndarray:
    """The merged persons [k, 5] with a score of at least `new_score`, or where the previous frame [m, 5] had one."""
    if not len(persons) or not len(previous):
        return persons[persons[:, SCORE] >= new_score]
    seen = iou_matrix(persons[:, :4], previous[:, :4]).max(axis=1) > SAME_PLACE_IOU
    return persons[seen | (persons[:, SCORE] >= new_score)]
