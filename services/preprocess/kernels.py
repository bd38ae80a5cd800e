"""The kernels: preprocess' values (reference.py) computed fast, on the CPU with NumPy or on the GPU with Triton.

`load_kernel` picks: NumpyKernel for shared memory, TritonKernel for GPU memory (with torch operations where Triton is
missing).
"""

import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from typing import Protocol

import numpy as np

from peoplecounter.common.geometry import Letterbox, TileGrid
from peoplecounter.common.ipc.memory import Block, Slot, WorkQueue
from peoplecounter.common.ipc.messages import Input, SurfaceLayout, TensorLayout
from peoplecounter.services.preprocess.reference import PADDING, colour_matrix, planes, taps

Write = Callable[[np.ndarray | np.float32, int, np.ndarray], object]


class Kernel(Protocol):
    """What preprocess does with a frame."""

    def prepare(self, layout: SurfaceLayout, tensor: TensorLayout) -> Future | None:
        """Starts what the first frame of these layouts needs, which may take seconds; None: nothing."""

    def run(self, surface: Slot, layout: SurfaceLayout, tensor: TensorLayout, slot: Slot) -> None:
        """Does, or queues, the work: a surface slot in, a tensor slot out."""


def load_kernel(work: WorkQueue) -> Kernel:
    """The kernel for slots of this kind of memory."""
    return NumpyKernel() if work.kind == "shm" else TritonKernel(work)


class NumpyKernel:
    """Computes at once, on the CPU."""

    def prepare(self, layout: SurfaceLayout, tensor: TensorLayout) -> None:
        return None

    def run(self, surface: np.ndarray, layout: SurfaceLayout, tensor: TensorLayout, slot: np.ndarray) -> None:
        fused(surface, layout, tensor, slot.view(tensor.dtype).reshape(tensor.shape))


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

    def prepare(self, layout: SurfaceLayout, tensor: TensorLayout) -> Future:
        """Compiles in a thread, on memory of its own: it takes seconds, in which the process must go on ticking."""
        return self._compiler.submit(self._compile, layout, tensor)

    def run(self, surface: Block, layout: SurfaceLayout, tensor: TensorLayout, slot: Block) -> None:
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

    def _new_view(self, block: Block, dtype: str, shape: tuple[int, ...]):
        torch = self._torch
        return torch.as_tensor(block, device="cuda").view(getattr(torch, dtype)).reshape(shape)


def fused(surface: np.ndarray, layout: SurfaceLayout, tensor: TensorLayout, out: np.ndarray) -> int:
    """Writes the reference's values to `out`, tensor.shape of tensor.dtype; returns how many images it wrote."""
    read = tensor.input
    out = out.transpose(0, 3, 1, 2) if read.channels_last else out
    out = out[:, ::-1] if read.bgr else out
    write = _writer(read)
    luma, chroma = planes(surface, layout)
    m, c = (a.astype(np.float32) for a in colour_matrix(layout.matrix, layout.full_range))
    grid = TileGrid(layout.width, layout.height, read.size, tensor.overlap)
    _letterbox(luma, chroma, layout, m, c, read, out[0], write)
    tints = _tints(chroma, m, c)
    for tile, (x, y) in enumerate(grid.origins(), 1):
        _tile(luma, tints, m[0, 0], x, y, out[tile], write)
    return 1 + len(grid)


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


def _tile(luma: np.ndarray, tints: np.ndarray, gain: np.float32, x: int, y: int, out: np.ndarray, write: Write) -> None:
    """Writes one tile [3, H, W], a few rows at a time so that they stay in the processor's cache."""
    height, width = min(out.shape[1], luma.shape[0] - y), min(out.shape[2], luma.shape[1] - x)
    for channel in range(3):
        write(np.float32(PADDING), channel, out[channel, height:])
        write(np.float32(PADDING), channel, out[channel, :, width:])
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
            write(tint, channel, out[channel, row:end, :width])


def _letterbox(luma, chroma, layout: SurfaceLayout, m, c, read: Input, out: np.ndarray, write: Write) -> None:
    box = Letterbox(layout.width, layout.height, read.size, read.corner)
    (width, height), (left, top) = box.scaled, box.origin
    y = _resample(luma[..., None], layout, width, height, False)[..., 0]
    uv = _resample(chroma, layout, width, height, True)
    for channel in range(3):
        write(np.float32(PADDING), channel, out[channel])
        value = y * m[channel, 0] + c[channel]
        value += uv[..., 0] * m[channel, 1] + uv[..., 1] * m[channel, 2]
        write(value, channel, out[channel, top : top + height, left : left + width])


def _resample(plane: np.ndarray, layout: SurfaceLayout, width: int, height: int, halved: bool) -> np.ndarray:
    """uint8 [h, w, n] -> float32 [height, width, n]; rows first, because they are contiguous."""
    rows, row_weights = taps(layout.height, height, halved)
    down = np.zeros((height, *plane.shape[1:]), np.float32)
    for index, weight in zip(rows.T, row_weights.T.astype(np.float32)):
        down += plane[index] * weight[:, None, None]
    columns, column_weights = taps(layout.width, width, halved)
    out = np.zeros((height, width, plane.shape[2]), np.float32)
    for index, weight in zip(columns.T, column_weights.T.astype(np.float32)):
        out += down[:, index] * weight[None, :, None]
    return out
