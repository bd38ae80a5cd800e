"""One list of persons from the boxes of all tiles and of the whole frame. Pure.

1. A box cut by an inner tile edge gives way: the neighbour's overlap, or the whole frame, shows that person uncut.
2. Best score first, a box goes when a better one covers it: by intersection over union (IoU), or over the smaller box
   (IoS). Between two views of a place that happens soon, their edges disagree. Within one view the network has told
   overlapping people apart itself, so there only near copies go, and a torso inside a person.
3. Two thresholds (hysteresis, as edge detectors and ByteTrack use them): a weak box counts only where the frame before
   had a person, so one frame's noise is no person, and a person does not flicker.
"""

import numpy as np

from peoplecounter.common.boxes import greedy_keep, iou_matrix, overlapping_pairs

SCORE, CUT, VIEW = 4, 5, 6  # columns behind x1, y1, x2, y2; a view is a tile or the whole frame
MOST = 3000  # boxes are compared with each other, the best if there are more: memory grows with the square
COPY_IOU, COPY_IOS = 0.7, 0.9  # within one view
SAME_PLACE_IOU = 0.3  # with a person of the frame before: people move less than this between two frames


def merge(rows: np.ndarray, same_iou: float, same_ios: float) -> np.ndarray:
    """float32 [n, 7] (see messages.Detections) -> float32 [k, 5], each person once, best first."""
    whole = rows[rows[:, CUT] == 0]
    whole = whole[np.argsort(-whole[:, SCORE], kind="stable")][:MOST]
    first, second, iou, ios = overlapping_pairs(whole)
    one_view = whole[first, VIEW] == whole[second, VIEW]
    same = np.where(one_view, (iou > COPY_IOU) | (ios > COPY_IOS), (iou > same_iou) | (ios > same_ios))
    return whole[greedy_keep(len(whole), first[same], second[same]), :5]


def believe(persons: np.ndarray, before: np.ndarray, new_score: float) -> np.ndarray:
    """Of the merged persons [k, 5], those scored `new_score` or more, or seen where one of `before` [m, 5] was."""
    if not len(persons) or not len(before):
        return persons[persons[:, SCORE] >= new_score]
    seen = iou_matrix(persons[:, :4], before[:, :4]).max(axis=1) > SAME_PLACE_IOU
    return persons[seen | (persons[:, SCORE] >= new_score)]
