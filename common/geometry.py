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
    """The whole frame, scaled to fit an image of `size` (width, height) px; the rest is padding.

    It lies in the middle, or with `corner` at the top left.
    """

    width: int
    height: int
    size: tuple[int, int]
    corner: bool = False

    @property
    def scaled(self) -> tuple[int, int]:
        """(width, height) in px of the frame inside the image."""
        scale = min(self.size[0] / self.width, self.size[1] / self.height)
        return max(1, round(self.width * scale)), max(1, round(self.height * scale))

    @property
    def origin(self) -> tuple[int, int]:
        """(x, y) in px of the scaled frame's top-left corner inside the image."""
        width, height = self.scaled
        return (0, 0) if self.corner else ((self.size[0] - width) // 2, (self.size[1] - height) // 2)

    def to_frame(self, boxes: np.ndarray) -> np.ndarray:
        """Boxes [n, 4] x1, y1, x2, y2 in input pixels -> float32 [n, 4] in frame pixels, clipped to the frame."""
        (width, height), (x, y) = self.scaled, self.origin
        scale = np.array([self.width / width, self.height / height] * 2, np.float32)
        moved = (boxes - np.array([x, y, x, y], np.float32)) * scale
        return np.clip(moved, 0, np.array([self.width, self.height] * 2, np.float32))


@dataclass(frozen=True)
class TileGrid:
    """Tiles of `size` (width, height) px at the frame's own scale; neighbours overlap by a share `overlap` of a side.

    The last row and column are moved back to the frame's edge, so they overlap more. In a direction in which the frame
    is smaller than a tile there is one tile, padded on the right or at the bottom.
    """

    width: int
    height: int
    size: tuple[int, int]
    overlap: float = 0.2

    @property
    def columns(self) -> int:
        return _count(self.width, self.size[0], self.strides[0])

    @property
    def rows(self) -> int:
        return _count(self.height, self.size[1], self.strides[1])

    def __len__(self) -> int:
        return self.columns * self.rows

    @property
    def strides(self) -> tuple[int, int]:
        """(x, y) distance between the origins of neighbouring tiles, px; the last one may be closer."""
        across, down = (max(1, round(side * (1 - self.overlap))) for side in self.size)
        return across, down

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
        width, height = self.size
        cut = LEFT * ((x > 0) & (boxes[:, 0] <= edge_px))
        cut |= TOP * ((y > 0) & (boxes[:, 1] <= edge_px))
        cut |= RIGHT * ((x + width < self.width) & (boxes[:, 2] >= width - edge_px))
        cut |= BOTTOM * ((y + height < self.height) & (boxes[:, 3] >= height - edge_px))
        moved = boxes.astype(np.float32) + np.stack([x, y, x, y], axis=1)
        inside = np.clip(moved, 0, np.array([self.width, self.height] * 2, np.float32))
        return inside, cut.astype(np.uint8)


@cache
def _origins(grid: TileGrid) -> list[tuple[int, int]]:
    (width, height), (across, down) = grid.size, grid.strides
    return [(x, y) for y in _starts(grid.height, height, down) for x in _starts(grid.width, width, across)]


def _count(length: int, side: int, stride: int) -> int:
    return ceil(max(0, length - side) / stride) + 1


def _starts(length: int, side: int, stride: int) -> list[int]:
    return [min(i * stride, max(0, length - side)) for i in range(_count(length, side, stride))]
