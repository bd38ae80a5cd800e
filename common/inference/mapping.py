"""From persons in a part's images to boxes in frame pixels. Pure."""

import numpy as np

from peoplecounter.common.engine.base import Persons
from peoplecounter.common.geometry import Letterbox, TileGrid
from peoplecounter.common.ipc.messages import FrameHeader, Part, TensorLayout


def letterbox_to_frame(
    layout: TensorLayout, header: FrameHeader, part: Part, persons: Persons, edge_px: float
) -> np.ndarray:
    """Persons in the letterboxed frame -> float32 [n, 7], see Detections; no edge cuts them, they have no tile."""
    boxes = Letterbox(header.width, header.height, layout.input.size, layout.input.corner).to_frame(persons[:, 1:5])
    whole = np.tile(np.array([0, -1], np.float32), (len(persons), 1))
    return np.hstack([boxes, persons[:, 5:6], whole])


def tiles_to_frame(
    layout: TensorLayout, header: FrameHeader, part: Part, persons: Persons, edge_px: float
) -> np.ndarray:
    """Persons in each tile -> float32 [n, 7], see Detections, with their tile and which of its inner edges cut them.

    A box that ends within `edge_px` of an inner edge counts as cut by it.
    """
    grid = TileGrid(header.width, header.height, layout.input.size, layout.overlap)
    tiles = persons[:, 0].astype(np.intp) + part.first - 1  # image 0 of the slot is the letterboxed frame
    boxes, cut = grid.to_frame(tiles, persons[:, 1:5], edge_px)
    return np.hstack([boxes, persons[:, 5:6], cut[:, None].astype(np.float32), tiles[:, None].astype(np.float32)])
