"""The kernels: preprocess' values (reference.py) computed fast, on the CPU with NumPy or on the GPU with Triton.

`load_kernel` picks: NumpyKernel for shared memory, TritonKernel for GPU memory (with torch operations where Triton is
missing).
"""

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from typing import Protocol

import numpy as np

from peoplecounter.common.ipc.memory import Block, Slot, WorkQueue
from peoplecounter.common.ipc.messages import Input, SurfaceLayout, TensorLayout
from peoplecounter.common.views import View, by_level
from peoplecounter.services.preprocess.reference import PADDING, colour_matrix, neighbours, planes

Write = Callable[[np.ndarray | np.float32, int, np.ndarray], object]


class Kernel(Protocol):
    """What preprocess does with a frame."""

    def prepare(self, layout: SurfaceLayout, tensor: TensorLayout, views: tuple[View, ...]) -> Future | None:
        """Starts what the first frame of these layouts needs, which may take seconds; None: nothing."""

    def run(
        self, surface: Slot, layout: SurfaceLayout, tensor: TensorLayout, views: tuple[View, ...], slot: Slot
    ) -> None:
        """Does, or queues, the work: a surface slot in, the images of the views at the begin of a tensor slot out."""


def load_kernel(work: WorkQueue) -> Kernel:
    """The kernel for slots of this kind of memory."""
    return NumpyKernel() if work.kind == "shm" else TritonKernel(work)


class NumpyKernel:
    """Computes at once, on the CPU."""

    def prepare(self, layout: SurfaceLayout, tensor: TensorLayout, views: tuple[View, ...]) -> None:
        return None

    def run(
        self,
        surface: np.ndarray,
        layout: SurfaceLayout,
        tensor: TensorLayout,
        views: tuple[View, ...],
        slot: np.ndarray,
    ) -> None:
        fused(surface, layout, tensor.input, views, slot.view(tensor.dtype).reshape(tensor.shape))


class TritonKernel:
    """Queues Triton's kernel, or torch operations where Triton is missing, on the stream of `work`."""

    def __init__(self, work: WorkQueue):
        import torch

        try:
            from peoplecounter.services.preprocess.kernels_triton import launch
        except ModuleNotFoundError:
            logging.getLogger("preprocess").warning(
                "Triton is not installed: torch operations are used, which are many times slower"
            )
            from peoplecounter.services.preprocess.kernels_torch import launch
        self._torch, self._launch, self._stream = torch, launch, torch.cuda.ExternalStream(work.stream)
        self._compiler = ThreadPoolExecutor(1, "compiler")
        self._view = lru_cache(maxsize=64)(self._new_view)

    def prepare(self, layout: SurfaceLayout, tensor: TensorLayout, views: tuple[View, ...]) -> Future:
        """Compiles in a thread, on memory of its own: it takes seconds, in which the process must go on ticking."""
        return self._compiler.submit(self._compile, layout, tensor, views)

    def run(
        self, surface: Block, layout: SurfaceLayout, tensor: TensorLayout, views: tuple[View, ...], slot: Block
    ) -> None:
        with self._torch.cuda.stream(self._stream):
            pixels = self._view(surface, "uint8", (surface.nbytes,))
            self._launch(pixels, layout, tensor.input, views, self._view(slot, tensor.dtype, tensor.shape))

    def _compile(self, layout: SurfaceLayout, tensor: TensorLayout, views: tuple[View, ...]) -> None:
        torch = self._torch
        with torch.cuda.stream(torch.cuda.Stream()):
            surface = torch.zeros(layout.nbytes, dtype=torch.uint8, device="cuda")
            out = torch.empty(tensor.shape, dtype=getattr(torch, tensor.dtype), device="cuda")
            self._launch(surface, layout, tensor.input, views, out)
            torch.cuda.current_stream().synchronize()
        del surface, out
        torch.cuda.empty_cache()

    def _new_view(self, block: Block, dtype: str, shape: tuple[int, ...]):
        torch = self._torch
        return torch.as_tensor(block, device="cuda").view(getattr(torch, dtype)).reshape(shape)


def fused(
    surface: np.ndarray, layout: SurfaceLayout, read: Input, views: Sequence[View], out: np.ndarray
) -> np.ndarray:
    """Writes the reference's values to the first images of `out`, [n, *read.image_shape] of its dtype; returns them."""
    written = out = out[: len(views)]
    out = out.transpose(0, 3, 1, 2) if read.channels_last else out
    out = out[:, ::-1] if read.bgr else out
    write = _writer(read)
    luma, chroma = planes(surface, layout)
    m, c = (a.astype(np.float32) for a in colour_matrix(layout.matrix, layout.full_range))
    for level, of_level in by_level(views):
        if level == (layout.width, layout.height):
            tints = _tints(chroma, m, c)
            for image, view in of_level:
                _pad(view, read, out[image], write)
                _native(luma, tints, m[0, 0], view, read, out[image], write)
        else:
            rgb = _scaled(luma, chroma, layout, level, m, c)
            for image, view in of_level:
                rows, columns, into_rows, into_columns = view.window(read.size)
                _pad(view, read, out[image], write)
                for channel in range(3):
                    write(rgb[channel, rows, columns], channel, out[image, channel, into_rows, into_columns])
    return written


def _writer(read: Input) -> Write:
    """(pixels in 0..1 or beyond, channel, where to write them): clips them and makes them the values of an Input."""
    if read.values_are_pixels:
        return lambda pixels, channel, out: np.clip(pixels, 0, 1, out=out, casting="same_kind")
    scale, offset = (np.array(values, np.float32) for values in (read.scale, read.offset))

    def write(pixels: np.ndarray | np.float32, channel: int, out: np.ndarray) -> None:
        values = np.clip(pixels, 0, 1) * scale[channel] + offset[channel]
        out[...] = np.rint(values) if out.dtype == np.uint8 else values

    return write


def _tints(chroma: np.ndarray, m: np.ndarray, c: np.ndarray) -> np.ndarray:
    """What chroma adds to R, G and B: float32 [3, ceil(height/2), ceil(width/2)], from lookup tables."""
    values = np.arange(256, dtype=np.float32)
    u, v = chroma[..., 0], chroma[..., 1]
    out = np.empty((3, *u.shape), np.float32)
    np.take(values * m[0, 2] + c[0], v, out=out[0])
    np.take(values * m[1, 1] + c[1], u, out=out[1])
    out[1] += np.take(values * m[1, 2], v)
    np.take(values * m[2, 1] + c[2], u, out=out[2])
    return out


def _pad(view: View, read: Input, out: np.ndarray, write: Write) -> None:
    """Writes padding to where an image [3, H, W] does not show the frame."""
    _, _, rows, columns = view.window(read.size)
    for channel in range(3):
        for beside in (np.s_[: rows.start], np.s_[rows.stop :], np.s_[:, : columns.start], np.s_[:, columns.stop :]):
            write(np.float32(PADDING), channel, out[channel][beside])


def _native(
    luma: np.ndarray,
    tints: np.ndarray,
    gain: np.float32,
    view: View,
    read: Input,
    out: np.ndarray,
    write: Write,
) -> None:
    """Writes an image [3, H, W] of the frame's own pixels, a few rows at a time: they stay in the processor's cache."""
    rows, columns, into_rows, into_columns = view.window(read.size)
    x, width, step = columns.start, columns.stop - columns.start, 64
    for y0 in range(rows.start, rows.stop, step):
        y1 = min(y0 + step, rows.stop)
        into = slice(into_rows.start + y0 - rows.start, into_rows.start + y1 - rows.start)
        bright = luma[y0:y1, columns] * gain
        for channel in range(3):
            tint = tints[channel, y0 // 2 : (y1 + 1) // 2, x // 2 : (x + width + 1) // 2]
            tint = np.repeat(tint, 2, axis=1)[:, x % 2 : x % 2 + width]
            tint = np.repeat(tint, 2, axis=0)[y0 % 2 : y0 % 2 + y1 - y0]
            tint += bright
            write(tint, channel, out[channel, into, into_columns])


def _scaled(
    luma: np.ndarray, chroma: np.ndarray, layout: SurfaceLayout, level: tuple[int, int], m: np.ndarray, c: np.ndarray
) -> np.ndarray:
    """The frame at another scale: float32 [3, height, width] RGB, not clipped."""
    y = _resample(luma[..., None], layout, level, False)[..., 0]
    uv = _resample(chroma, layout, level, True)
    out = np.empty((3, *y.shape), np.float32)
    for channel in range(3):
        np.multiply(y, m[channel, 0], out=out[channel])
        out[channel] += uv[..., 0] * m[channel, 1] + uv[..., 1] * m[channel, 2] + c[channel]
    return out


def _resample(plane: np.ndarray, layout: SurfaceLayout, level: tuple[int, int], halved: bool) -> np.ndarray:
    """uint8 [h, w, n] -> float32 [height, width, n] of the level; rows first, because they are contiguous."""
    width, height = level
    down = np.zeros((height, *plane.shape[1:]), np.float32)
    for rows, weight in _axis(layout.height, height, halved):
        down += plane[rows] * weight[:, None, None]
    out = np.zeros((height, width, plane.shape[2]), np.float32)
    for columns, weight in _axis(layout.width, width, halved):
        out += down[:, columns] * weight[None, :, None]
    return out


@lru_cache(maxsize=64)
def _axis(source: int, target: int, halved: bool) -> list[tuple[slice | np.ndarray, np.ndarray]]:
    """Each tap of an axis: (samples of all outputs, float32 [target] weights). Evenly spaced ones are a slice, which is
    several times as fast as their indices."""
    first, weights = neighbours(source, target, halved)
    last, steps = (source - 1) // (2 if halved else 1), np.unique(np.diff(first))
    pairs = []
    for k, weight in enumerate(weights.T):
        even = len(steps) == 1 and steps[0] > 0 and first[-1] + k <= last
        pairs.append(
            (slice(first[0] + k, first[-1] + k + 1, steps[0]) if even else np.minimum(first + k, last), weight)
        )
    return pairs
