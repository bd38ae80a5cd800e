"""Which part of the frame each input image of the network shows: the table of views. Pure.

A level is the frame at one scale, a view is one image of it: a tile, or the whole frame. Levels go from the finest down
by halves, and the whole frame is the last of them. So a person who is too tall for the overlap of one level's tiles is
whole in a tile of the next, at half the size.

Coordinates are continuous: pixel i covers [i, i + 1), its centre is i + 0.5.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import pairwise
from math import ceil, floor, log2
from typing import Annotated

import numpy as np
from msgspec import Meta, Struct

LEFT, TOP, RIGHT, BOTTOM = 1, 2, 4, 8  # bits of `cut`: inner edges of a view that a box touches
CUTS = np.array([LEFT, TOP, RIGHT, BOTTOM], np.uint8)
INWARD = np.array([1, 1, -1, -1], np.float32)  # of a box' sides: which way its image's inside lies
STARTS, ENLARGED, CUT_AT, SCALE = slice(0, 4), slice(4, 8), slice(8, 12), 12  # columns of placements()
SMALLEST_SEEN_PX = 32  # height of a person in a view that a network still finds
OVERLAP, OVERLAP_MIN_PX = 0.2, 128  # of neighbouring tiles, where no overlap is set: of the longer side, and at least

Side = Annotated[int, Meta(ge=1, le=65_535)]
Offset = Annotated[int, Meta(ge=-65_535, le=65_535)]


class View(Struct, frozen=True, array_like=True):
    """One image. Its level is the frame scaled to `width` x `height` px, in which its top left corner lies at x, y.

    Where the scaled frame does not reach, the image is padding; x or y is negative where that is on the left or above.
    """

    width: Side
    height: Side
    x: Offset
    y: Offset

    @property
    def level(self) -> tuple[int, int]:
        """(width, height) of the scaled frame, px."""
        return self.width, self.height

    def window(self, size: tuple[int, int]) -> tuple[slice, slice, slice, slice]:
        """(rows, columns) of the scaled frame that an image of `size` (width, height) shows, (rows, columns) of the
        image where they are."""
        (rows, into_rows), (columns, into_columns) = (
            _shown(start, length, side)
            for start, length, side in ((self.y, self.height, size[1]), (self.x, self.width, size[0]))
        )
        return rows, columns, into_rows, into_columns


@lru_cache(maxsize=256)
def table(
    width: int,
    height: int,
    size: tuple[int, int],
    overlap: float | None = None,
    smallest_person_px: float | None = None,
    levels: tuple[float, ...] | None = None,
    corner: bool = False,
) -> tuple[View, ...]:
    """The views of a frame of width x height px for images of `size` (width, height): the whole first, then each level,
    coarse to fine, row by row.

    `overlap`: of neighbouring tiles, a share of the longer side of `size`; None: OVERLAP, at least OVERLAP_MIN_PX.
    `smallest_person_px`: the finest level is the coarsest in which such a person is SMALLEST_SEEN_PX tall, at most the
    frame's own scale; None: its own scale. `levels`: scales of the levels beside the whole frame instead. Scales at
    which the frame is smaller than the whole in its image are left out, unless the frame itself is: then its own pixels
    are seen, too. `corner`: the whole lies at the top left, not in the middle.
    """
    fit = min(size[0] / width, size[1] / height)
    whole = _scaled(width, height, fit)
    x, y = (0, 0) if corner else (-((side - length) // 2) for side, length in zip(size, whole))
    views = [View(*whole, x, y)]
    longest = overlap_px(size, overlap)
    for scale in sorted(levels) if levels is not None else _halves(fit, smallest_person_px):
        level = _scaled(width, height, scale)
        if level != whole and (scale > fit or fit > 1):
            across, down = (_starts(length, side, side - longest) for length, side in zip(level, size))
            views += [View(*level, x, y) for y in down for x in across]
    return tuple(views)


def by_level(views: Sequence[View]) -> Iterator[tuple[tuple[int, int], list[tuple[int, View]]]]:
    """Each level, (width, height) in px, with its views and their places in the list."""
    for level in dict.fromkeys(view.level for view in views):
        yield level, [(i, view) for i, view in enumerate(views) if view.level == level]


def overlap_px(size: tuple[int, int], overlap: float | None = None) -> int:
    """Overlap of neighbouring tiles, px, at most half of a side: a box that is no longer is whole in one of them."""
    asked = max(OVERLAP * max(size), OVERLAP_MIN_PX) if overlap is None else overlap * max(size)
    return min(round(asked), min(size) // 2)


def groups(count: int, group_max: int, workers: int = 1) -> list[tuple[int, int]]:
    """(first, count) of the groups of about equal size that hold `count` views, at most `group_max` each.

    They are the fewest of which every one of `workers` gets as many.
    """
    number = min(count, workers * ceil(count / group_max / workers))
    cuts = [i * count // number for i in range(number + 1)] if count else []
    return [(first, end - first) for first, end in pairwise(cuts)]


def to_frame(
    views: Sequence[View],
    images: np.ndarray,
    boxes: np.ndarray,
    size: tuple[int, int],
    frame: tuple[int, int],
    edge_px: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes [n, 4] in px of their images, int [n] of `views` -> in the frame: (float32 [n, 4] px, clipped to it,
    uint8 [n] cut edges, float32 [n] px of the image for one of the frame).

    `size`, `frame`: (width, height) of an image and of the frame. An edge of a view is inner when the frame continues
    behind it. A box is cut by it when it ends within `edge_px`.
    """
    of = placements(tuple(views), size, frame, edge_px)[images]
    cut = (boxes * INWARD <= of[:, CUT_AT]) @ CUTS
    placed = (boxes + of[:, STARTS]) * of[:, ENLARGED]
    return np.minimum(np.maximum(placed, 0), np.array([*frame, *frame], np.float32)), cut, of[:, SCALE]


@lru_cache(maxsize=1024)
def placements(views: tuple[View, ...], size: tuple[int, int], frame: tuple[int, int], edge_px: float) -> np.ndarray:
    """What to_frame() needs of each view, computed once, float32 [n, 13]: what to add to the four sides of a box and to
    multiply them by, from where on they are cut, counted inwards, and px of the view for one of the frame."""
    table = np.array([(v.width, v.height, v.x, v.y) for v in views], np.float32)
    length, start, side = table[:, :2], table[:, 2:], np.array(size, np.float32)
    never = np.float32(-np.inf)
    low = np.where(start > 0, np.float32(edge_px), never)
    high = np.where(start + side < length, edge_px - side, never)
    whole = np.array(frame, np.float32)
    enlarged = whole / length
    return np.hstack([start, start, enlarged, enlarged, low, high, length[:, 1:] / whole[1]])


def _halves(fit: float, smallest_person_px: float | None) -> list[float]:
    """The scales from just above `fit`, at which the frame fits one image, up to the finest."""
    halvings = max(0, floor(log2(smallest_person_px / SMALLEST_SEEN_PX))) if smallest_person_px else 0
    scales = [0.5**halvings]
    while scales[-1] > 2 * fit:
        scales.append(scales[-1] / 2)
    return scales[::-1]


def _scaled(width: int, height: int, scale: float) -> tuple[int, int]:
    return max(1, round(width * scale)), max(1, round(height * scale))


def _starts(length: int, side: int, stride: int) -> list[int]:
    """Where tiles of `side` begin in `length`; the last is moved back to the end, so it overlaps more."""
    count = ceil(max(0, length - side) / stride) + 1
    return [min(i * stride, max(0, length - side)) for i in range(count)]


def _shown(start: int, length: int, side: int) -> tuple[slice, slice]:
    """Of one axis: (what is shown of `length`, where in the image of `side` it is)."""
    first, end = max(0, start), min(length, start + side)
    return slice(first, end), slice(first - start, end - start)
