"""One list of persons from the boxes of all tiles and of the whole frame. Pure.

1. A box cut by an inner tile edge gives way: the neighbour's overlap, or the whole frame, shows that person uncut.
2. Best score first, a box goes when a better one covers it: by IoU, or by its share of the smaller box, which also
   removes a torso inside a person. Between any two boxes, those of one tile included.
3. Two thresholds (hysteresis, as edge detectors and ByteTrack use them): a weak box counts only where the frame before
   had a person, so one frame's noise is no person, and a person does not flicker.
"""

import numpy as np

from common.engine.heads import overlap

SCORE, CUT = 4, 5  # columns behind x1, y1, x2, y2
SAME_PLACE_IOU = 0.3  # with a person of the frame before: people move less than this between two frames


def merge(rows: np.ndarray, same_iou: float, same_ios: float) -> np.ndarray:
    """float32 [n, 7] (see messages.Detections) -> float32 [k, 5], each person once, best first."""
    whole = rows[rows[:, CUT] == 0]
    whole = whole[np.argsort(-whole[:, SCORE], kind="stable"), :5]
    iou, ios = overlap(whole[:, :4], whole[:, :4])
    same = (iou > same_iou) | (ios > same_ios)
    alive = np.ones(len(whole), bool)
    for i in range(len(whole)):
        if alive[i]:
            alive[i + 1 :] &= ~same[i, i + 1 :]
    return whole[alive]


def believe(persons: np.ndarray, before: np.ndarray, new_score: float) -> np.ndarray:
    """Of the merged persons [k, 5], those scored `new_score` or more, or seen where one of `before` [m, 5] was."""
    if not len(persons) or not len(before):
        return persons[persons[:, SCORE] >= new_score]
    seen = overlap(persons[:, :4], before[:, :4])[0].max(axis=1) > SAME_PLACE_IOU
    return persons[seen | (persons[:, SCORE] >= new_score)]
