"""Which part of the frame each input image of the network shows: the letterboxed frame, and a grid of tiles. Pure.

Coordinates are continuous: pixel i covers [i, i + 1), its centre is i + 0.5.
"""

from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from math import ceil

import numpy as np

LEFT, TOP, RIGHT, BOTTOM = 1, 2, 4, 8  # bits of `cut`: inner tile edges that a box touches


@dataclass(frozen=True)
class Letterbox:
    """The whole frame, scaled to fit a square of `size_px` and centred; the rest is padding."""

    width: int
    height: int
    size_px: int

    @property
    def scaled(self) -> tuple[int, int]:
        """(width, height) in px of the frame inside the square."""
        scale = min(self.size_px / self.width, self.size_px / self.height)
        return max(1, round(self.width * scale)), max(1, round(self.height * scale))

    @property
    def origin(self) -> tuple[int, int]:
        """(x, y) in px of the scaled frame's top-left corner inside the square."""
        width, height = self.scaled
        return (self.size_px - width) // 2, (self.size_px - height) // 2

    def to_frame(self, boxes: np.ndarray) -> np.ndarray:
        """Boxes [n, 4] x1, y1, x2, y2 in input pixels -> float32 [n, 4] in frame pixels, clipped to the frame."""
        (width, height), (x, y) = self.scaled, self.origin
        scale = np.array([self.width / width, self.height / height] * 2, np.float32)
        moved = (boxes - np.array([x, y, x, y], np.float32)) * scale
        return np.clip(moved, 0, np.array([self.width, self.height] * 2, np.float32))


@dataclass(frozen=True)
class TileGrid:
    """Square tiles of `size_px` at the frame's own scale; neighbours overlap by a share `overlap` of a side.

    The last row and column are moved back to the frame's edge, so they overlap more. In a direction in which the frame
    is smaller than a tile there is one tile, padded on the right or at the bottom.
    """

    width: int
    height: int
    size_px: int
    overlap: float = 0.2

    @property
    def columns(self) -> int:
        return self._count(self.width)

    @property
    def rows(self) -> int:
        return self._count(self.height)

    def __len__(self) -> int:
        return self.columns * self.rows

    def _count(self, length: int) -> int:
        return ceil(max(0, length - self.size_px) / self.stride) + 1

    @property
    def stride(self) -> int:
        """Distance between the origins of neighbouring tiles, px; the last one may be closer."""
        return max(1, round(self.size_px * (1 - self.overlap)))

    def _starts(self, length: int) -> list[int]:
        last = max(0, length - self.size_px)
        return [min(i * self.stride, last) for i in range(self._count(length))]

    def origins(self) -> list[tuple[int, int]]:
        """(x, y) in px of every tile's top-left corner, row by row."""
        return _origins(self)

    def groups(self, group_max: int) -> list[tuple[int, int]]:
        """(first tile, count) of the fewest groups of about equal size with at most `group_max` tiles each."""
        count = ceil(len(self) / group_max)
        cuts = [round(i * len(self) / count) for i in range(count + 1)]
        return [(first, end - first) for first, end in pairwise(cuts)]

    def to_frame(self, tiles: np.ndarray, boxes: np.ndarray, edge_px: float) -> tuple[np.ndarray, np.ndarray]:
        """Boxes [n, 4] in the pixels of their tiles [n] -> (float32 [n, 4] in frame pixels, uint8 [n] cut edges).

        An edge of a tile is inner when the frame continues behind it. A box is cut by it when it ends within `edge_px`.
        """
        x, y = np.array(self.origins(), np.float32)[tiles].T
        size = self.size_px
        cut = LEFT * ((x > 0) & (boxes[:, 0] <= edge_px))
        cut |= TOP * ((y > 0) & (boxes[:, 1] <= edge_px))
        cut |= RIGHT * ((x + size < self.width) & (boxes[:, 2] >= size - edge_px))
        cut |= BOTTOM * ((y + size < self.height) & (boxes[:, 3] >= size - edge_px))
        moved = boxes.astype(np.float32) + np.stack([x, y, x, y], axis=1)
        inside = np.clip(moved, 0, np.array([self.width, self.height] * 2, np.float32))
        return inside, cut.astype(np.uint8)


@cache
def _origins(grid: TileGrid) -> list[tuple[int, int]]:
    return [(x, y) for y in grid._starts(grid.height) for x in grid._starts(grid.width)]
