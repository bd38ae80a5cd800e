"""Persons that the GPU's kernel picks among rows and places in the frame; without a GPU in Triton's interpreter."""

import numpy as np
import torch

from peoplecounter.common.cubins import Pointer
from peoplecounter.common.engine.heads import Head
from peoplecounter.common.engine.placing import Placing
from peoplecounter.common.engine.select import ABOUT, SELECT, WARPS, boxes_of, select_arguments, table
from tests.support import kernels


def selected(one: Head, rows: np.ndarray, score: float, placing: Placing, classes: bool = True) -> np.ndarray:
    """Rows [B, n, columns] -> float32 [k, 8], see messages.Detections."""
    arguments, constants = select_arguments(Pointer(0, "fp32"), rows.shape, one, score, classes)
    boxes = torch.full((*rows.shape[:2], 8), float("nan"), device=kernels.DEVICE)  # of the frame before
    about = torch.full((len(rows), ABOUT), -1, dtype=torch.int32, device=kernels.DEVICE)
    arrays = *(torch.from_numpy(array).to(kernels.DEVICE) for array in (rows, table(placing))), boxes, about
    kernels.run(SELECT, (len(rows),), [*arrays, *arguments[len(arrays) :]], constants, WARPS)
    return np.frombuffer(boxes_of(one, boxes.cpu().numpy(), about.cpu().numpy()), np.float32).reshape(-1, 8)
