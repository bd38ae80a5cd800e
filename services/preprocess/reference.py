"""What preprocess computes: NV12 surface -> the images of a list of views, in float64.

`reference` defines the values, without optimization. The kernels (kernels.py) give the same values within 1/255.

- Colour: R, G, B = clip(matrix @ (Y, U, V) - offset) in 0..1; the stream says which matrix and range. A luma sample
  takes the chroma sample whose 2x2 block it lies in, so chroma needs no siting convention.
- A view is a window of its level, the frame scaled to some size (common/views.py). Beyond the level it is padding,
  114/255. At the frame's own scale pixels are the frame's own.
- Another level is resampled plane by plane, then converted. Shrinking averages the area that an output pixel covers:
  every source pixel counts once, so that a distant person does not flicker between sample points. Enlarging is
  bilinear. Both are centre-aligned: output pixel i covers [i, i + 1) / scale of the source.
- Pixels are RGB in 0..1, padding too. What the engine reads besides (another order, range, mean, deviation, type) is in
  its Input, and is applied last.
"""

from collections.abc import Sequence
from functools import lru_cache
from math import ceil, floor
from typing import Any

import numpy as np

from peoplecounter.common.ipc.messages import Input, SurfaceLayout
from peoplecounter.common.views import View, by_level

Pixels = Any  # np.ndarray or torch.Tensor
PADDING = 114 / 255
LUMA_WEIGHTS = {"bt601": (0.299, 0.114), "bt709": (0.2126, 0.0722), "bt2020": (0.2627, 0.0593)}  # Kr, Kb


def colour_matrix(matrix: str, full_range: bool) -> tuple[np.ndarray, np.ndarray]:
    """(float64 [3, 3], float64 [3]): RGB in 0..1 = M @ (Y, U, V as 0..255) + c. ITU-R BT.601, BT.709, BT.2020."""
    kr, kb = LUMA_WEIGHTS[matrix]
    kg = 1 - kr - kb
    luma, chroma, black = (255.0, 255.0, 0.0) if full_range else (219.0, 224.0, 16.0)
    v_to_r, u_to_b = 2 * (1 - kr), 2 * (1 - kb)
    m = np.array([[1, 0, v_to_r], [1, -u_to_b * kb / kg, -v_to_r * kr / kg], [1, u_to_b, 0]])
    m = m / np.array([luma, chroma, chroma])
    return m, -m @ np.array([black, 128.0, 128.0])


def planes(surface: Pixels, layout: SurfaceLayout) -> tuple[Pixels, Pixels]:
    """uint8 slot -> views of its luma [height, width] and chroma [ceil(height/2), ceil(width/2), 2].

    NumPy arrays and torch tensors alike.
    """
    rows = surface[: layout.nbytes].reshape(-1, layout.pitch)
    rows = rows[:, layout.sample_bytes - 1 :: layout.sample_bytes]
    half = (layout.width + 1) // 2
    luma, chroma = rows[: layout.height, : layout.width], rows[layout.height :, : 2 * half]
    return luma, chroma.reshape(chroma.shape[0], half, 2)


@lru_cache(maxsize=64)
def taps(source: int, target: int, halved: bool) -> tuple[np.ndarray, np.ndarray]:
    """Resampling of one axis: (indices int [target, k], weights float64 [target, k]); a row's weights sum to 1.

    `halved`: the plane has one sample for two source pixels, each of which takes that sample's value.
    """
    scale = source / target
    rows = []
    for i in range(target):
        if scale > 1:
            begin, end = i * scale, (i + 1) * scale
            index = np.arange(floor(begin), min(ceil(end), source))
            weight = np.minimum(index + 1, end) - np.maximum(index, begin)
        else:
            centre = (i + 0.5) * scale - 0.5
            index = np.array([floor(centre), floor(centre) + 1])
            weight = np.array([index[1] - centre, centre - index[0]])
        rows.append((np.clip(index, 0, source - 1) // (2 if halved else 1), weight / weight.sum()))
    k = max(len(index) for index, _ in rows)
    indices, weights = np.zeros((target, k), np.intp), np.zeros((target, k))
    for i, (index, weight) in enumerate(rows):
        indices[i, : len(index)], weights[i, : len(weight)] = index, weight
    return indices, weights


@lru_cache(maxsize=64)
def neighbours(source: int, target: int, halved: bool) -> tuple[np.ndarray, np.ndarray]:
    """The same taps as (first sample int [target], weights float32 [target, k] of it and the k - 1 behind it).

    Pixels that share a sample share a tap. A tap without weight may lie behind the last sample.
    """
    indices, weights = taps(source, target, halved)
    first = np.where(weights > 0, indices, indices.max() + 1).min(axis=1)
    offsets = np.where(weights > 0, indices - first[:, None], 0)
    out = np.zeros((target, offsets.max() + 1), np.float32)
    np.add.at(out, (np.arange(target)[:, None], offsets), weights)
    return first, out


def reference(surface: np.ndarray, layout: SurfaceLayout, read: Input, views: Sequence[View]) -> np.ndarray:
    """uint8 slot of an NV12 surface -> float64 images of the views, as `read` states them."""
    luma, chroma = planes(surface, layout)
    full = np.repeat(np.repeat(chroma, 2, 0), 2, 1)[: layout.height, : layout.width]
    yuv = np.dstack([luma, full]).astype(np.float64)
    m, c = colour_matrix(layout.matrix, layout.full_range)
    out = np.full((len(views), 3, read.height, read.width), PADDING)
    for (width, height), of_level in by_level(views):
        columns, column_weights = taps(layout.width, width, False)
        rows, row_weights = taps(layout.height, height, False)
        across = (yuv[:, columns] * column_weights[None, :, :, None]).sum(2)
        scaled = (across[rows] * row_weights[:, :, None, None]).sum(1)
        rgb = np.clip(scaled @ m.T + c, 0, 1).transpose(2, 0, 1)
        for image, view in of_level:
            shown_rows, shown_columns, into_rows, into_columns = view.window(read.size)
            out[image, :, into_rows, into_columns] = rgb[:, shown_rows, shown_columns]
    out = out * np.reshape(read.scale, (3, 1, 1)) + np.reshape(read.offset, (3, 1, 1))
    out = out[:, ::-1] if read.bgr else out
    return out.transpose(0, 2, 3, 1) if read.channels_last else out
