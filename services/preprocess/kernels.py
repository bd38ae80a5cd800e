"""The kernels: preprocess' values (reference.py) computed fast, on the CPU with NumPy or on the GPU with Triton.

`load_kernel` picks: NumpyKernel for shared memory, TritonKernel for GPU memory, or TorchKernel where Triton is missing.
"""

import logging
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from typing import Protocol

import numpy as np

from peoplecounter.common import backend
from peoplecounter.common.cubins import Launch
from peoplecounter.common.ipc.memory import Block, Slot, WorkQueue
from peoplecounter.common.ipc.messages import Input, SurfaceLayout, TensorLayout
from peoplecounter.common.views import View, by_level
from peoplecounter.services.preprocess.launches import NV12_TO_IMAGES, WARPS, images_launch
from peoplecounter.services.preprocess.reference import PADDING, colour_matrix, planes
from peoplecounter.services.preprocess.resample import axis, resample

LAUNCHES_MAX = 64  # layouts whose tables lie on the GPU at once
ROWS = 64  # of the frame that are computed at once, an even number


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
    if work.kind == "shm":
        return NumpyKernel()
    return TritonKernel(work) if backend.importable("triton") else TorchKernel(work)


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
    """Queues Triton's kernel on the stream of `work`; torch is not needed."""

    def __init__(self, work: WorkQueue):
        self._work = work
        self._compiler = ThreadPoolExecutor(1, "compiler")
        self._launches: OrderedDict[tuple, tuple[Launch, list[int]]] = OrderedDict()  # oldest first

    def prepare(self, layout: SurfaceLayout, tensor: TensorLayout, views: tuple[View, ...]) -> Future:
        """Compiles in a thread: it may take seconds, in which the process must go on ticking."""
        return self._compiler.submit(self._launch, layout, tensor.input, views)

    def run(
        self, surface: Block, layout: SurfaceLayout, tensor: TensorLayout, views: tuple[View, ...], slot: Block
    ) -> None:
        self._launch(layout, tensor.input, views)(self._work.stream, surface.address, slot.address)

    def _launch(self, layout: SurfaceLayout, read: Input, views: tuple[View, ...]) -> Launch:
        key = layout, read, views
        if key not in self._launches:
            if len(self._launches) >= LAUNCHES_MAX:
                _, (_, tables) = self._launches.popitem(last=False)
                self._work.finish()  # it may still be running
                _free(tables)
            self._launches[key] = self._new_launch(layout, read, views)
        return self._launches[key][0]

    def _new_launch(self, layout: SurfaceLayout, read: Input, views: tuple[View, ...]) -> tuple[Launch, list[int]]:
        from peoplecounter.common import cuda

        cuda.start()  # this may be the compiler's thread
        needed = images_launch(layout, read, views)
        tables = [cuda.upload(table) for table in needed.tables]
        return Launch(NV12_TO_IMAGES, needed.grid, needed.arguments(tables), needed.constants, WARPS), tables


class TorchKernel:
    """Queues torch operations on the stream of `work`, where Triton is missing: they are many times slower."""

    def __init__(self, work: WorkQueue):
        import torch

        from peoplecounter.services.preprocess.kernels_torch import launch

        logging.getLogger("preprocess").warning(
            "Triton is not installed: torch operations are used, which are many times slower"
        )
        self._torch, self._launch, self._stream = torch, launch, torch.cuda.ExternalStream(work.stream)
        self._view = lru_cache(maxsize=64)(self._new_view)

    def prepare(self, layout: SurfaceLayout, tensor: TensorLayout, views: tuple[View, ...]) -> None:
        return None

    def run(
        self, surface: Block, layout: SurfaceLayout, tensor: TensorLayout, views: tuple[View, ...], slot: Block
    ) -> None:
        with self._torch.cuda.stream(self._stream):
            pixels = self._view(surface, "uint8", (surface.nbytes,))
            self._launch(pixels, layout, tensor.input, views, self._view(slot, tensor.dtype, tensor.shape))

    def _new_view(self, block: Block, dtype: str, shape: tuple[int, ...]):
        torch = self._torch
        return torch.as_tensor(block, device="cuda").view(getattr(torch, dtype)).reshape(shape)


def _free(addresses: list[int]) -> None:
    from peoplecounter.common.cuda import check, cudart

    for address in addresses:
        check(cudart.cudaFree(address))


def fused(
    surface: np.ndarray, layout: SurfaceLayout, read: Input, views: Sequence[View], out: np.ndarray
) -> np.ndarray:
    """Writes the reference's values to the first images of `out`, [n, *read.image_shape] of its dtype; returns them."""
    written = out = out[: len(views)]
    out = out.transpose(0, 3, 1, 2) if read.channels_last else out
    out = out[:, ::-1] if read.bgr else out
    luma, chroma = planes(surface, layout)
    m, c = (a.astype(np.float32) for a in colour_matrix(layout.matrix, layout.full_range))
    for level, of_level in by_level(views):
        for image, view in of_level:
            _pad(view, read, out[image])
        if level == (layout.width, layout.height):
            rows = _native(luma, chroma, m, c)
        else:
            rows = iter([(0, _scaled(luma, chroma, layout, level, m, c))])
        for first, rgb in rows:
            np.clip(rgb, 0, 1, out=rgb)
            for image, view in of_level:
                _place(rgb, first, view, read, out[image])
    return written


def _write(pixels: np.ndarray | np.float32, channel: int, read: Input, out: np.ndarray) -> None:
    """Writes pixels in 0..1 of a channel as the values of an Input."""
    if not read.values_are_pixels:
        pixels = pixels * np.float32(read.scale[channel]) + np.float32(read.offset[channel])
    out[...] = np.rint(pixels) if out.dtype == np.uint8 else pixels


def _pad(view: View, read: Input, out: np.ndarray) -> None:
    """Writes padding to where an image [3, H, W] does not show the frame."""
    _, _, rows, columns = view.window(read.size)
    for channel in range(3):
        for beside in (np.s_[: rows.start], np.s_[rows.stop :], np.s_[:, : columns.start], np.s_[:, columns.stop :]):
            _write(np.float32(PADDING), channel, read, out[channel][beside])


def _place(rgb: np.ndarray, first: int, view: View, read: Input, out: np.ndarray) -> None:
    """Writes what an image [3, H, W] shows of some rows of its level, [3, n, width] from row `first` on."""
    rows, columns, into_rows, into_columns = view.window(read.size)
    begin, end = max(rows.start, first), min(rows.stop, first + rgb.shape[1])
    if begin < end:
        into = slice(into_rows.start + begin - rows.start, into_rows.start + end - rows.start)
        for channel in range(3):
            _write(rgb[channel, begin - first : end - first, columns], channel, read, out[channel, into, into_columns])


def _native(luma: np.ndarray, chroma: np.ndarray, m: np.ndarray, c: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """(first row, float32 [3, n, width] RGB, not clipped) of the frame itself, in pieces that fit the processor's
    cache."""
    height, width = luma.shape
    for first in range(0, height, ROWS):
        bright = luma[first : first + ROWS] * m[0, 0]
        u, v = (chroma[first // 2 : (first + ROWS) // 2, :, i].astype(np.float32) for i in (0, 1))
        tint = np.repeat(_tint(u, v, m, c), 2, axis=2)[..., :width]
        rgb = np.empty((3, *bright.shape), np.float32)
        for half in (0, 1):
            lines = bright[half::2]
            np.add(tint[:, : len(lines)], lines, out=rgb[:, half::2])
        yield first, rgb


def _tint(u: np.ndarray, v: np.ndarray, m: np.ndarray, c: np.ndarray) -> np.ndarray:
    """What chroma adds to R, G and B: float32 [3, height, width]. Red has no U, blue no V."""
    out = np.empty((3, *u.shape), np.float32)
    np.multiply(v, m[0, 2], out=out[0])
    np.multiply(u, m[1, 1], out=out[1])
    out[1] += v * m[1, 2]
    np.multiply(u, m[2, 1], out=out[2])
    out += c[:, None, None]
    return out


def _scaled(
    luma: np.ndarray, chroma: np.ndarray, layout: SurfaceLayout, level: tuple[int, int], m: np.ndarray, c: np.ndarray
) -> np.ndarray:
    """The frame at another scale: float32 [3, height, width] RGB, not clipped."""
    width, height = level
    y = resample(luma, axis(layout.height, height, False), axis(layout.width, width, False))
    down, across = axis(layout.height, height, True), axis(layout.width, width, True)
    u, v = (resample(chroma[..., i], down, across) for i in (0, 1))
    out = _tint(u, v, m, c)
    y *= m[0, 0]
    out += y
    return out
