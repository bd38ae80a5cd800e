"""NV12 surface -> RGB tensor of the letterboxed frame and every tile: what the values are, and fast ways to them.

`reference` defines the values, in float64 and without cleverness; `fused` gives them within 1/255, much faster, and so
does the one launch of kernels_triton.py on a GPU (kernels_torch.py where Triton is missing). `load` picks.

- Colour: R, G, B = clip(matrix @ (Y, U, V) - offset) in 0..1; matrix and range are the stream's. A luma sample takes
  the chroma sample whose 2x2 block it lies in, so chroma needs no siting convention.
- Tiles are the frame's own pixels. Beyond a small frame's right or bottom edge they are padding, 114/255.
- The letterboxed frame is resampled plane by plane, then converted. Shrinking averages the area that an output pixel
  covers: every source pixel counts once, so a far person does not flicker between sample points, and a GPU reads the
  frame anyway. Enlarging is bilinear. Both are centre-aligned: output pixel i covers [i, i + 1) / scale of the source.
"""

import logging
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from math import ceil, floor
from typing import Protocol

import numpy as np

from peoplecounter.common.geometry import Letterbox, TileGrid
from peoplecounter.common.ipc.messages import SurfaceLayout, TensorLayout

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


def planes(surface: np.ndarray, layout: SurfaceLayout) -> tuple[np.ndarray, np.ndarray]:
    """uint8 slot -> views of its luma [height, width] and chroma [ceil(height/2), ceil(width/2), 2]."""
    rows = surface[: layout.nbytes].reshape(-1, layout.pitch)
    rows = rows[:, layout.sample_bytes - 1 :: layout.sample_bytes]
    half = (layout.width + 1) // 2
    luma, chroma = rows[: layout.height, : layout.width], rows[layout.height :, : 2 * half]
    return luma, chroma.reshape(chroma.shape[0], half, 2)


@lru_cache(maxsize=64)
def taps(source: int, target: int, halved: bool) -> tuple[np.ndarray, np.ndarray]:
    """Resampling of one axis: (indices int [target, k], weights float64 [target, k]), weights of a row sum to 1.

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


class Kernel(Protocol):
    """What preprocess does with a frame."""

    def prepare(self, layout: SurfaceLayout, tensor: TensorLayout) -> Future | None:
        """Begins what the first frame of these layouts needs and may take seconds; None: nothing."""

    def run(self, surface, layout: SurfaceLayout, tensor: TensorLayout, slot) -> None:
        """Does, or queues, the work: a surface slot in, a tensor slot out."""


def load(work) -> Kernel:
    """The kernel for slots of this kind of memory, see common.memory."""
    return OnCpu() if work.kind == "shm" else OnGpu(work)


class OnCpu:
    """`fused`, at once."""

    def prepare(self, layout: SurfaceLayout, tensor: TensorLayout) -> None:
        return None

    def run(self, surface: np.ndarray, layout: SurfaceLayout, tensor: TensorLayout, slot: np.ndarray) -> None:
        fused(surface, layout, tensor, slot.view(tensor.dtype).reshape(tensor.shape))


class OnGpu:
    """Triton's kernel, or torch's operations where Triton is missing, queued on the stream of `work`."""

    def __init__(self, work):
        import torch

        try:
            from peoplecounter.services.preprocess.kernels_triton import launch
        except ModuleNotFoundError:
            logging.getLogger("preprocess").warning("Triton is not installed: torch does its work, many times slower")
            from peoplecounter.services.preprocess.kernels_torch import launch
        self._torch, self._launch, self._stream = torch, launch, torch.cuda.ExternalStream(work.stream)
        self._compiler = ThreadPoolExecutor(1, "compiler")
        self._view = lru_cache(maxsize=64)(self._new_view)

    def prepare(self, layout: SurfaceLayout, tensor: TensorLayout) -> Future:
        """Compiles in a thread, on memory of its own: seconds, in which this process must not seem frozen."""
        return self._compiler.submit(self._compile, layout, tensor)

    def run(self, surface, layout: SurfaceLayout, tensor: TensorLayout, slot) -> None:
        with self._torch.cuda.stream(self._stream):
            pixels = self._view(surface, "uint8", (surface.nbytes,))
            self._launch(pixels, layout, tensor, self._view(slot, tensor.dtype, tensor.shape))

    def _compile(self, layout: SurfaceLayout, tensor: TensorLayout) -> None:
        torch = self._torch
        with torch.cuda.stream(torch.cuda.Stream()):
            surface = torch.zeros(layout.nbytes, dtype=torch.uint8, device="cuda")
            out = torch.empty(tensor.shape, dtype=getattr(torch, tensor.dtype), device="cuda")
            self._launch(surface, layout, tensor, out)
            torch.cuda.current_stream().synchronize()
        del surface, out
        torch.cuda.empty_cache()

    def _new_view(self, block, dtype: str, shape: tuple[int, ...]):
        torch = self._torch
        return torch.as_tensor(block, device="cuda").view(getattr(torch, dtype)).reshape(shape)


def reference(surface: np.ndarray, layout: SurfaceLayout, tensor: TensorLayout) -> np.ndarray:
    """float64 [1 + tiles, 3, S, S]: the values, computed the plain way."""
    size = tensor.size_px
    luma, chroma = planes(surface, layout)
    full = np.repeat(np.repeat(chroma, 2, 0), 2, 1)[: layout.height, : layout.width]
    yuv = np.dstack([luma, full]).astype(np.float64)
    m, c = colour_matrix(layout.matrix, layout.full_range)

    box = Letterbox(layout.width, layout.height, size)
    (width, height), (left, top) = box.scaled, box.origin
    (columns, column_weights), (rows, row_weights) = (
        taps(layout.width, width, False),
        taps(layout.height, height, False),
    )
    across = (yuv[:, columns] * column_weights[None, :, :, None]).sum(2)
    small = (across[rows] * row_weights[:, :, None, None]).sum(1)

    grid = TileGrid(layout.width, layout.height, size, tensor.overlap)
    out = np.full((1 + len(grid), 3, size, size), PADDING)
    out[0, :, top : top + height, left : left + width] = np.clip(small @ m.T + c, 0, 1).transpose(2, 0, 1)
    rgb = np.clip(yuv @ m.T + c, 0, 1).transpose(2, 0, 1)
    for tile, (x, y) in enumerate(grid.origins(), 1):
        part = rgb[:, y : y + size, x : x + size]
        out[tile, :, : part.shape[1], : part.shape[2]] = part
    return out


def fused(surface: np.ndarray, layout: SurfaceLayout, tensor: TensorLayout, out: np.ndarray) -> int:
    """Writes the same values to `out`, [images, 3, S, S] of tensor.dtype; returns how many images it wrote."""
    size = tensor.size_px
    luma, chroma = planes(surface, layout)
    m, c = (a.astype(np.float32) for a in colour_matrix(layout.matrix, layout.full_range))
    grid = TileGrid(layout.width, layout.height, size, tensor.overlap)
    _letterbox(luma, chroma, layout, m, c, size, out[0])
    tints = _tints(chroma, m, c)
    for tile, (x, y) in enumerate(grid.origins(), 1):
        _tile(luma, tints, m[0, 0], x, y, out[tile])
    return 1 + len(grid)


def _tints(chroma: np.ndarray, m: np.ndarray, c: np.ndarray) -> np.ndarray:
    """What chroma adds to R, G and B, float32 [3, ceil(height/2), ceil(width/2)]; looked up, not multiplied."""
    values = np.arange(256, dtype=np.float32)
    u, v = chroma[..., 0], chroma[..., 1]
    out = np.empty((3, *u.shape), np.float32)
    np.take(values * m[0, 2] + c[0], v, out=out[0])
    np.take(values * m[1, 1] + c[1], u, out=out[1])
    out[1] += np.take(values * m[1, 2], v)
    np.take(values * m[2, 1] + c[2], u, out=out[2])
    return out


def _tile(luma: np.ndarray, tints: np.ndarray, gain: np.float32, x: int, y: int, out: np.ndarray) -> None:
    """One tile [3, S, S], a few rows at a time so that they stay in the processor's cache."""
    size = out.shape[1]
    height, width = min(size, luma.shape[0] - y), min(size, luma.shape[1] - x)
    out[:, height:] = PADDING
    out[:, :, width:] = PADDING
    step = 64
    for row in range(0, height, step):
        end = min(row + step, height)
        y0, y1 = y + row, y + end
        bright = luma[y0:y1, x : x + width] * gain
        for channel in range(3):
            tint = tints[channel, y0 // 2 : (y1 + 1) // 2, x // 2 : (x + width + 1) // 2]
            tint = np.repeat(tint, 2, axis=1)[:, x % 2 : x % 2 + width]
            tint = np.repeat(tint, 2, axis=0)[y0 % 2 : y0 % 2 + end - row]
            tint += bright
            np.clip(tint, 0, 1, out=out[channel, row:end, :width], casting="same_kind")


def _letterbox(luma, chroma, layout: SurfaceLayout, m, c, size: int, out: np.ndarray) -> None:
    box = Letterbox(layout.width, layout.height, size)
    (width, height), (left, top) = box.scaled, box.origin
    y = _resample(luma[..., None], layout, width, height, False)[..., 0]
    uv = _resample(chroma, layout, width, height, True)
    out[...] = PADDING
    for channel in range(3):
        value = y * m[channel, 0] + c[channel]
        value += uv[..., 0] * m[channel, 1] + uv[..., 1] * m[channel, 2]
        np.clip(value, 0, 1, out=out[channel, top : top + height, left : left + width], casting="same_kind")


def _resample(plane: np.ndarray, layout: SurfaceLayout, width: int, height: int, halved: bool) -> np.ndarray:
    """uint8 [h, w, n] -> float32 [height, width, n], rows first: they are contiguous."""
    rows, row_weights = taps(layout.height, height, halved)
    down = np.zeros((height, *plane.shape[1:]), np.float32)
    for index, weight in zip(rows.T, row_weights.T.astype(np.float32)):
        down += plane[index] * weight[:, None, None]
    columns, column_weights = taps(layout.width, width, halved)
    out = np.zeros((height, width, plane.shape[2]), np.float32)
    for index, weight in zip(columns.T, column_weights.T.astype(np.float32)):
        out += down[:, index] * weight[None, :, None]
    return out
