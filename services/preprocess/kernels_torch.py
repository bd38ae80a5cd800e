"""The values of reference.py with torch operations, for GPUs without Triton: many launches instead of one."""

from functools import lru_cache

import torch

from peoplecounter.common.geometry import Letterbox, TileGrid
from peoplecounter.common.ipc.messages import SurfaceLayout, TensorLayout
from peoplecounter.services.preprocess.reference import PADDING, colour_matrix, planes, taps


def launch(surface: torch.Tensor, layout: SurfaceLayout, tensor: TensorLayout, out: torch.Tensor) -> None:
    """Queues the work: surface uint8 [layout.nbytes or more] -> the first images of out, of tensor.shape."""
    read = tensor.input
    target, out = out, torch.empty((len(out), 3, read.height, read.width), device=out.device)
    luma, chroma = planes(surface, layout)
    full = chroma.repeat_interleave(2, 0).repeat_interleave(2, 1)[: layout.height, : layout.width]
    yuv = torch.cat([luma[..., None], full], dim=2).float()
    m, c = (torch.tensor(a, device=surface.device, dtype=torch.float32) for a in _colour(layout))
    grid = TileGrid(layout.width, layout.height, read.size, tensor.overlap)
    box = Letterbox(layout.width, layout.height, read.size, read.corner)
    (width, height), (left, top) = box.scaled, box.origin
    small = _resample(_resample(yuv, layout.height, height, 0), layout.width, width, 1)
    out[: 1 + len(grid)] = PADDING
    out[0, :, top : top + height, left : left + width] = _rgb(small, m, c)
    rgb = _rgb(yuv, m, c)
    for tile, (x, y) in enumerate(grid.origins(), 1):
        part = rgb[:, y : y + read.height, x : x + read.width]
        out[tile, :, : part.shape[1], : part.shape[2]] = part
    scale, offset = (torch.tensor(v, device=out.device).reshape(3, 1, 1) for v in (read.scale, read.offset))
    out = out[: 1 + len(grid)] * scale + offset
    out = out.flip(1) if read.bgr else out
    out = out.permute(0, 2, 3, 1) if read.channels_last else out
    target[: len(out)] = out.round() if target.dtype == torch.uint8 else out


@lru_cache(maxsize=16)
def _colour(layout: SurfaceLayout) -> tuple:
    return colour_matrix(layout.matrix, layout.full_range)


def _rgb(yuv: torch.Tensor, m: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    """float32 [h, w, 3] YUV -> [3, h, w] RGB in 0..1; sums, no matrix product: that might round to TF32."""
    y, u, v = yuv.unbind(2)
    return torch.stack([row[0] * y + row[1] * u + row[2] * v + offset for row, offset in zip(m, c)]).clamp(0, 1)


def _resample(image: torch.Tensor, source: int, target: int, axis: int) -> torch.Tensor:
    """One axis of float32 [h, w, 3] to `target` samples, by the reference's taps."""
    indices, weights = taps(source, target, False)
    shape = (-1, 1, 1) if axis == 0 else (1, -1, 1)
    out = torch.zeros((), device=image.device)
    for index, weight in zip(indices.T, weights.T):
        index = torch.tensor(index, device=image.device)
        weight = torch.tensor(weight, device=image.device, dtype=torch.float32).reshape(shape)
        out = out + image.index_select(axis, index) * weight
    return out
