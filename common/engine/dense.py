"""Dense heads on the GPU: their outputs -> rows [B, DENSE_ANCHORS_MAX, 5] of the persons that the CPU's NMS would keep.

torch picks the best anchors of each image; one Triton program per image does what `boxes.nms` does. Nothing here waits
for the GPU, and only rows leave it.
"""

from typing import TYPE_CHECKING

import numpy as np
import torch
import triton
import triton.language as tl

from peoplecounter.common.engine.heads import DENSE_ANCHORS_MAX, DENSE_IOU, Head

if TYPE_CHECKING:
    from peoplecounter.common.engine.tensorrt_io import OutputBuffer


@triton.jit
def nms_kernel(boxes_ptr, scores_ptr, counts_ptr, iou, ANCHORS: tl.constexpr):
    """One image: boxes float32 [ANCHORS, 4], best first, of which the first `count` are valid. Removed: score 0.

    A score that is NaN stays: topk puts it first, and `Head.of_boxes` raises for it.
    """
    image = tl.program_id(0)
    boxes_ptr += image * ANCHORS * 4
    scores_ptr += image * ANCHORS
    k = tl.arange(0, ANCHORS)
    x1 = tl.load(boxes_ptr + k * 4)
    y1 = tl.load(boxes_ptr + k * 4 + 1)
    x2 = tl.load(boxes_ptr + k * 4 + 2)
    y2 = tl.load(boxes_ptr + k * 4 + 3)
    scores = tl.load(scores_ptr + k)
    area = (x2 - x1) * (y2 - y1)
    count = tl.load(counts_ptr + image)
    alive = (k < count).to(tl.int32)
    for i in range(ANCHORS):
        if i < count:
            bx1 = tl.load(boxes_ptr + i * 4)
            by1 = tl.load(boxes_ptr + i * 4 + 1)
            bx2 = tl.load(boxes_ptr + i * 4 + 2)
            by2 = tl.load(boxes_ptr + i * 4 + 3)
            width = tl.maximum(tl.minimum(x2, bx2) - tl.maximum(x1, bx1), 0.0)
            height = tl.maximum(tl.minimum(y2, by2) - tl.maximum(y1, by1), 0.0)
            inter = width * height
            union = tl.maximum(area + (bx2 - bx1) * (by2 - by1) - inter, 1e-9)
            lives = tl.max(tl.where(k == i, alive, 0), axis=0)
            alive = tl.where((lives > 0) & (k > i) & (inter / union > iou), 0, alive)
    tl.store(scores_ptr + k, tl.where((alive > 0) | (scores != scores), scores, 0.0))


def rows(outputs: list[torch.Tensor], head: Head, score: float, anchors: int = DENSE_ANCHORS_MAX) -> torch.Tensor:
    """What Head.decode reads -> float32 [B, anchors, 5]: x1, y1, x2, y2 (input px), score; removed boxes score 0."""
    boxes, scores = head.decode(outputs)
    scores, best = scores.float().topk(min(anchors, scores.shape[1]), dim=1)
    boxes = boxes.float().gather(1, best[..., None].expand(-1, -1, 4))
    padding = anchors - scores.shape[1]
    if padding:
        scores = torch.nn.functional.pad(scores, (0, padding))
        boxes = torch.nn.functional.pad(boxes, (0, 0, 0, padding))
    boxes, scores = boxes.contiguous(), scores.contiguous()
    counts = (scores >= score).sum(dim=1, dtype=torch.int32)
    nms_kernel[(len(scores),)](boxes, scores, counts, DENSE_IOU, ANCHORS=anchors)
    return torch.cat([boxes, scores[..., None]], dim=2)


class GpuDenseHead:
    """`rows` on output buffers of TensorRT, on its stream; the result, float32 of `shape`, lies at `address`."""

    def __init__(self, buffers: "list[OutputBuffer]", head: Head, score: float, stream: int):
        self._outputs = [_tensor(buffer) for buffer in buffers]
        self._rows = torch.zeros((buffers[0].shape[0], DENSE_ANCHORS_MAX, 5), device="cuda")
        self._head, self._score, self._stream = head, score, torch.cuda.ExternalStream(stream)
        self.address, self.shape = self._rows.data_ptr(), tuple(self._rows.shape)

    def run(self, count: int) -> None:
        """Queues the work on the first `count` images."""
        with torch.cuda.stream(self._stream):
            self._rows[:count] = rows([output[:count] for output in self._outputs], self._head, self._score)


def _tensor(buffer: "OutputBuffer") -> torch.Tensor:
    kind = np.dtype(buffer.dtype).str
    interface = {"shape": buffer.shape, "typestr": kind, "data": (buffer.address, True), "version": 3}
    return torch.as_tensor(type("Output", (), {"__cuda_array_interface__": interface})(), device="cuda")
