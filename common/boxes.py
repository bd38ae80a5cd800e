"""Boxes that overlap: pairs, intersection over union (IoU), and non-maximum suppression. Pure."""

import numpy as np

EPSILON = np.float32(1e-9)  # an engine may give inverted or flat boxes: they overlap nothing


def nms_keep(boxes: np.ndarray, iou: float) -> np.ndarray:
    """bool [n]: which boxes [n, 4 or more], best score first, greedy non-maximum suppression keeps."""
    first, second, pair_iou, _ = overlapping_pairs(boxes)
    same = pair_iou > iou
    return greedy_keep(len(boxes), first[same], second[same])


def overlapping_pairs(boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Every pair of boxes [n, 4 or more] that overlaps, as four arrays [pairs].

    They are the index of the first box, the index of the second (larger), the IoU, and the intersection over the
    smaller box (IoS); in the order of the first, then of the second. Few boxes overlap: from left to right, each is
    compared with those that begin before it ends.
    """
    order = boxes[:, 0].argsort(kind="stable")
    x1, y1, x2, y2 = np.ascontiguousarray(boxes[order, :4].T)
    after = np.arange(1, len(boxes) + 1)
    counts = np.maximum(x1.searchsorted(x2) - after, 0)
    left = (after - 1).repeat(counts)
    right = np.arange(len(left)) + (after - counts.cumsum() + counts).repeat(counts)
    meet = (y1[left] < y2[right]) & (y1[right] < y2[left])
    left, right = left[meet], right[meet]
    one, other = order[left], order[right]
    first, second = np.minimum(one, other), np.maximum(one, other)
    by_first = (first * len(boxes) + second).argsort()
    left, right = left[by_first], right[by_first]
    width = np.minimum(x2[left], x2[right]) - x1[right]
    height = np.minimum(y2[left], y2[right]) - np.maximum(y1[left], y1[right])
    inter, area = np.maximum(width, 0) * np.maximum(height, 0), (x2 - x1) * (y2 - y1)
    union, smaller = area[left] + area[right] - inter, np.minimum(area[left], area[right])
    shares = inter / np.maximum(union, EPSILON), inter / np.maximum(smaller, EPSILON)
    return first[by_first], second[by_first], *shares


def greedy_keep(n: int, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """bool [n]: which boxes are kept when each kept one, best first, removes its `second` partners."""
    keep = [True] * n
    for i, j in zip(first.tolist(), second.tolist()):
        if keep[i]:
            keep[j] = False
    return np.array(keep, bool)


def iou_matrix(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Boxes [n, 4] against [m, 4] -> IoU [n, m]."""
    (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) = (column[:, None] for column in a.T[:4]), b.T[:4]
    width = np.minimum(ax2, bx2) - np.maximum(ax1, bx1)
    height = np.minimum(ay2, by2) - np.maximum(ay1, by1)
    inter = np.maximum(width, 0) * np.maximum(height, 0)
    area_a, area_b = (ax2 - ax1) * (ay2 - ay1), (bx2 - bx1) * (by2 - by1)
    return inter / np.maximum(area_a + area_b - inter, EPSILON)
