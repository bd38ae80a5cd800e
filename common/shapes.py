"""Plane geometry of lines and zones, in any units. Pure; points are (x, y)."""

from collections.abc import Sequence

import numpy as np

Points = Sequence[tuple[float, float]] | np.ndarray


def segments(points: Points) -> tuple[np.ndarray, np.ndarray]:
    """The segments of a line of n points: their begins and ends, float64 [n - 1, 2] each."""
    array = np.asarray(points, float)
    return array[:-1], array[1:]


def offsets(p: np.ndarray, points: Points) -> np.ndarray:
    """float64 [k, s, 2]: from the nearest point of each of the s segments of a line to each of the points p [k, 2]."""
    begin, end = segments(points)
    along = end - begin
    share = np.einsum("ksd,sd->ks", p[:, None] - begin, along) / (along**2).sum(axis=1)
    return p[:, None] - (begin + share.clip(0, 1)[..., None] * along)


def distance(p: np.ndarray, points: Points) -> np.ndarray:
    """float64 [k]: from each of the points p [k, 2] to a line."""
    return np.sqrt((offsets(p, points) ** 2).sum(axis=2).min(axis=1))


def side(points: Points, p: tuple[float, float]) -> int:
    """1 for a point to the right of a line's direction in a picture (y down), -1 to its left, 0 on it."""
    begin, end = segments(points)
    along, off = end - begin, offsets(np.array([p], float), points)[0]
    across = along[:, 0] * off[:, 1] - along[:, 1] * off[:, 0]
    # of the nearest segments, at a corner there are two, the one that sees the point at the largest angle decides
    nearest = (off**2).sum(axis=1) <= (off**2).sum(axis=1).min() + 1e-12
    angle = np.where(nearest, across / np.sqrt((along**2).sum(axis=1)), 0)
    widest = angle[np.argmax(np.abs(angle))]
    return 0 if abs(widest) < 1e-9 else int(np.sign(widest))


def crossings(before: np.ndarray, after: np.ndarray, begin: np.ndarray, end: np.ndarray) -> np.ndarray:
    """int [k]: how often each straight path before -> after [k, 2] passes a line's segments to its right, less to its
    left; the segments are begin -> end [s, 2].

    A path that ends on a segment has not passed it when it came from the right, and has when it came from the left. So
    the paths of one walk add up.
    """
    along, path, before, after = end - begin, (after - before)[:, None], before[:, None], after[:, None]
    was_right, is_right = _right(along, before - begin), _right(along, after - begin)
    passed = was_right != is_right
    if not passed.any():
        return np.zeros(len(before), int)
    passed &= _right(path, begin - before) != _right(path, end - before)
    return (passed * np.where(is_right, 1, -1)).sum(axis=1)


def inside(p: np.ndarray, corners: Points) -> np.ndarray:
    """bool [k]: which of the points p [k, 2] lie in a polygon, by the even-odd rule."""
    a = np.asarray(corners, float)
    b = np.roll(a, -1, axis=0)
    x, y = p[:, :1], p[:, 1:]
    spans = (a[:, 1] <= y) != (b[:, 1] <= y)
    height = np.where(a[:, 1] == b[:, 1], 1, b[:, 1] - a[:, 1])
    crossing_x = a[:, 0] + (y - a[:, 1]) / height * (b[:, 0] - a[:, 0])
    return (spans & (x < crossing_x)).sum(axis=1) % 2 == 1


def crosses_itself(corners: Points) -> bool:
    """True for a polygon of which two sides that are not neighbours meet."""
    a = np.asarray(corners, float)
    b = np.roll(a, -1, axis=0)
    for i in range(len(a)):
        for j in range(i + 2, len(a) - (i == 0)):
            around = _right(b[i] - a[i], a[j] - a[i]) != _right(b[i] - a[i], b[j] - a[i])
            if around and _right(b[j] - a[j], a[i] - a[j]) != _right(b[j] - a[j], b[i] - a[j]):
                return True
    return False


def area(corners: Points) -> float:
    """Of a polygon that does not cut itself."""
    x, y = np.asarray(corners, float).T
    return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2


def _right(direction: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """bool: which offsets lie to the right of a direction, or along it."""
    return direction[..., 0] * offset[..., 1] - direction[..., 1] * offset[..., 0] >= 0
