"""One list of persons from the boxes of all views of a frame. Pure.

1. A box that is cut by an inner edge of its view is removed: another view, of this level or of a coarser one,
   shows that person whole.
2. A group that a coarse view took for one person is removed when a finer view shows the people in it.
3. The best seen first, a box removes the others that it overlaps: by intersection over union (IoU), or over the smaller
   box (IoS). Best seen means by score, and by size in the view: the network's scores of small figures are worth less.
   Between two views of one place the thresholds are low, because their boxes disagree, and a torso that is whole in one
   view is the person of another. Within one view the network has separated overlapping people itself, so only near
   copies are removed, and a torso inside a person.
4. Two thresholds (hysteresis, as in edge detectors and ByteTrack): a weak box counts only where the previous frame had
   a person. So the noise of one frame is not counted, and a person does not flicker. A figure that is large in its view
   needs more of a score than a small one: it would have more, were it a person.
"""

import numpy as np

from peoplecounter.common.boxes import greedy_keep, iou_matrix, overlapping_pairs

SCORE, CUT, VIEW, SCALE = 4, 5, 6, 7  # columns after x1, y1, x2, y2, see messages.Detections
KEPT_COLUMNS = [0, 1, 2, 3, SCORE, SCALE]
BOXES_MAX = 3000  # the best boxes that are compared with each other: memory grows with the square
COPY_IOU, COPY_IOS = 0.7, 0.9  # within one view
SAME_PLACE_IOU = 0.3  # with a person of the previous frame: people move little between two frames
FULL_PX = 104  # height in a view from which a score is worth all of itself
SMALL_SHARE = 0.65  # what it is worth at least
KEPT_SHARE = 0.7  # of the score of a new person: what one needs who was there in the previous frame
# people are about as tall as their group, and their middles lie apart by this share of the widest of them
GROUP_HEIGHT, APART = 0.6, 0.55


def merge(rows: np.ndarray, same_iou: float, same_ios: float) -> np.ndarray:
    """float32 [n, 8] (see messages.Detections) -> float32 [k, 6], each person once, best seen first.

    A row is x1, y1, x2, y2 in px of the frame, score, px of its view for one of the frame.
    """
    uncut = rows[rows[:, CUT] == 0]
    if not len(uncut):
        return uncut[:, KEPT_COLUMNS]
    worth = uncut[:, SCORE] * _share(uncut, uncut[:, SCALE])
    uncut = uncut[(-worth).argsort(kind="stable")][:BOXES_MAX]
    first, second, iou, ios = overlapping_pairs(uncut)
    one_view = uncut[first, VIEW] == uncut[second, VIEW]
    same = np.where(one_view, (iou > COPY_IOU) | (ios > COPY_IOS), (iou > same_iou) | (ios > same_ios))
    group = _groups(uncut, first, second, ~one_view & (ios > same_ios))
    same &= ~(group[first] | group[second])
    kept = greedy_keep(len(uncut), first[same], second[same]) & ~group
    return uncut[kept][:, KEPT_COLUMNS]


def hysteresis(persons: np.ndarray, previous: np.ndarray, new_score: float) -> tuple[np.ndarray, np.ndarray]:
    """bool [k] twice: which merged persons [k, 6] have a score of at least `new_score`, and which are counted: those
    with KEPT_SHARE of it, too, where the previous frame [m, 6] had one. People who are small in their view need less.
    """
    needed = new_score * _share(persons, persons[:, 5])
    strong, counted = persons[:, SCORE] >= needed, persons[:, SCORE] >= KEPT_SHARE * needed
    weak = (strong < counted).nonzero()[0]
    if len(weak) and len(previous):
        counted[weak] = iou_matrix(persons[weak, :4], previous[:, :4]).max(axis=1) > SAME_PLACE_IOU
        return strong, counted
    return strong, strong


def _share(boxes: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """What a score is worth, 0..1: less for boxes [n, 4 or more] that are small in views of these scales [n]."""
    return np.minimum(np.maximum((boxes[:, 3] - boxes[:, 1]) * scale / FULL_PX, SMALL_SHARE), 1)


def _groups(boxes: np.ndarray, first: np.ndarray, second: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """bool [n]: which boxes hold two people side by side, as a finer view shows. `inside` [pairs]: one of the pair
    first, second lies within the other."""
    height, scale = boxes[:, 3] - boxes[:, 1], boxes[:, SCALE]
    swap = scale[first] > scale[second]
    coarse, fine = np.where(swap, second, first), np.where(swap, first, second)
    member = inside & (scale[coarse] < scale[fine]) & (height[fine] > GROUP_HEIGHT * height[coarse])
    coarse, fine = coarse[member], fine[member]
    groups = np.zeros(len(boxes), bool)
    if len(coarse):
        by_group = coarse.argsort(kind="stable")
        coarse, fine = coarse[by_group], fine[by_group]
        begins = np.concatenate([[0], (coarse[1:] != coarse[:-1]).nonzero()[0] + 1])
        middle, width = (boxes[fine, 0] + boxes[fine, 2]) / 2, boxes[fine, 2] - boxes[fine, 0]
        apart = np.maximum.reduceat(middle, begins) - np.minimum.reduceat(middle, begins)
        groups[coarse[begins]] = apart > APART * np.maximum.reduceat(width, begins)
    return groups
