"""Dense heads on the GPU: [B, 4 + C, anchors] -> the rows [B, DENSE_ANCHORS_MAX, 6] that the CPU's NMS would give.

torch picks the best anchors of each image; one Triton program per image does what `boxes.nms` does. Nothing here waits
for the GPU, and only rows leave it.
"""

import torch
import triton
import triton.language as tl

from peoplecounter.common.engine.heads import DENSE_ANCHORS_MAX, DENSE_IOU, Head


@triton.jit
def nms_kernel(boxes_ptr, scores_ptr, counts_ptr, iou, ANCHORS: tl.constexpr):
    """One image: boxes float32 [ANCHORS, 4], best first, of which the first `count` are valid. Removed: score 0.

    A score that is NaN stays: topk puts it first, and `Head.of_rows` raises for it.
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


def rows(output: torch.Tensor, head: Head, score: float, anchors: int = DENSE_ANCHORS_MAX) -> torch.Tensor:
    """Dense output [B, 4 + C (+ 32), anchors] -> float32 [B, anchors, 6], see heads; removed boxes have the score 0."""
    scores, best = output[:, 4 + head.person_class].float().topk(min(anchors, output.shape[2]), dim=1)
    padding = anchors - scores.shape[1]
    if padding:
        scores, best = (torch.nn.functional.pad(t, (0, padding)) for t in (scores, best))
    x, y, w, h = output[:, :4].float().gather(2, best[:, None].expand(-1, 4, -1)).unbind(1)
    boxes = torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], dim=2).contiguous()
    scores, counts = scores.contiguous(), (scores >= score).sum(dim=1, dtype=torch.int32)
    nms_kernel[(len(output),)](boxes, scores, counts, DENSE_IOU, ANCHORS=anchors)
    return torch.cat([boxes, scores[..., None], torch.full_like(scores[..., None], head.person_class)], dim=2)


class GpuDenseHead:
    """`rows` on an output buffer of TensorRT, on its stream; the rows lie at the address `rows`."""

    anchors = DENSE_ANCHORS_MAX

    def __init__(self, address: int, shape: tuple[int, ...], dtype: str, head: Head, score: float, stream: int):
        interface = {"shape": shape, "typestr": "<f4" if dtype == "float32" else "<f2", "data": (address, True)}
        holder = type("Output", (), {"__cuda_array_interface__": {**interface, "version": 3}})()
        self._output = torch.as_tensor(holder, device="cuda")
        self._rows = torch.zeros((shape[0], DENSE_ANCHORS_MAX, 6), device="cuda")
        self._head, self._score, self._stream = head, score, torch.cuda.ExternalStream(stream)
        self.rows = self._rows.data_ptr()

    def run(self, count: int) -> None:
        """Queues the work on the first `count` images."""
        with torch.cuda.stream(self._stream):
            self._rows[:count] = rows(self._output[:count], self._head, self._score)
