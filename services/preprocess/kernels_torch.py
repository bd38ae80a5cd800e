"""The values of reference.py with torch operations, for GPUs without Triton: many launches instead of one."""

from functools import lru_cache

import torch

from peoplecounter.common.ipc.messages import Input, SurfaceLayout
from peoplecounter.common.views import View, by_level
from peoplecounter.services.preprocess.reference import PADDING, colour_matrix, planes, taps


def launch(
    surface: torch.Tensor, layout: SurfaceLayout, read: Input, views: tuple[View, ...], out: torch.Tensor
) -> None:
    """Queues the work: surface uint8 [layout.nbytes or more] -> the first images of out, of read.image_shape."""
    target, out = out, torch.full((len(views), 3, read.height, read.width), PADDING, device=out.device)
    luma, chroma = planes(surface, layout)
    full = chroma.repeat_interleave(2, 0).repeat_interleave(2, 1)[: layout.height, : layout.width]
    yuv = torch.cat([luma[..., None], full], dim=2).float()
    m, c = (torch.tensor(a, device=surface.device, dtype=torch.float32) for a in _colour(layout))
    for (width, height), of_level in by_level(views):
        rgb = _rgb(_resample(_resample(yuv, layout.height, height, 0), layout.width, width, 1), m, c)
        for image, view in of_level:
            rows, columns, into_rows, into_columns = view.window(read.size)
            out[image, :, into_rows, into_columns] = rgb[:, rows, columns]
    scale, offset = (torch.tensor(v, device=out.device).reshape(3, 1, 1) for v in (read.scale, read.offset))
    out = out * scale + offset
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
    if source == target:
        return image
    indices, weights = taps(source, target, False)
    shape = (-1, 1, 1) if axis == 0 else (1, -1, 1)
    out = torch.zeros((), device=image.device)
    for index, weight in zip(indices.T, weights.T):
        index = torch.tensor(index, device=image.device)
        weight = torch.tensor(weight, device=image.device, dtype=torch.float32).reshape(shape)
        out = out + image.index_select(axis, index) * weight
    return out
