"""From persons in a part's images to boxes in frame pixels. Pure."""

import numpy as np

from peoplecounter.common import views
from peoplecounter.common.engine.base import Persons
from peoplecounter.common.ipc.messages import FrameHeader, Input, Part


def persons_to_frame(read: Input, header: FrameHeader, part: Part, persons: Persons, edge_px: float) -> np.ndarray:
    """Persons in the images of a part -> float32 [n, 8], see Detections.

    A box that ends within `edge_px` of an inner edge of its view counts as cut by it.
    """
    image, frame = persons[:, 0].astype(np.intp), (header.width, header.height)
    boxes, cut, scale = views.to_frame(part.views, image, persons[:, 1:5], read.size, frame, edge_px)
    return np.column_stack([boxes, persons[:, 5], cut, image + part.first, scale]).astype(np.float32)
