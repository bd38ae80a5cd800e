"""Shrinks a surface on the GPU by a whole factor: only the small picture is copied to the host."""

from dataclasses import dataclass

import numpy as np
import torch
import triton
import triton.language as tl

from peoplecounter.common.ipc.memory import Block
from peoplecounter.common.ipc.messages import SurfaceLayout

BLOCK_Y, BLOCK_X = 4, 64
FACTOR_MAX = 8  # the kernel's loops are unrolled; the host does the rest


@triton.jit
def average_plane(
    plane_ptr, out_ptr, pitch, width, height, out_pitch, out_width, out_height,  # samples; the sizes in pixels
    SHIFT: tl.constexpr, FACTOR: tl.constexpr, CHANNELS: tl.constexpr, BLOCK_Y: tl.constexpr, BLOCK_X: tl.constexpr,
):  # fmt: skip
    """Writes a block of the means of FACTOR x FACTOR pixels of a plane [height, width, CHANNELS], 8 bits a sample.

    SHIFT: bits of a sample below its upper 8.
    """
    y = tl.program_id(0) * BLOCK_Y + tl.arange(0, BLOCK_Y)[:, None]
    x = tl.program_id(1) * BLOCK_X + tl.arange(0, BLOCK_X)[None, :]
    inside = (y < out_height) & (x < out_width)
    for channel in tl.static_range(CHANNELS):
        total = tl.zeros((BLOCK_Y, BLOCK_X), tl.int32)
        for row in tl.static_range(FACTOR):
            for column in tl.static_range(FACTOR):
                at_y, at_x = tl.minimum(y * FACTOR + row, height - 1), tl.minimum(x * FACTOR + column, width - 1)
                sample = tl.load(plane_ptr + at_y * pitch + at_x * CHANNELS + channel, inside, 0)
                total += sample.to(tl.int32) >> SHIFT
        mean = (total + FACTOR * FACTOR // 2) // (FACTOR * FACTOR)
        tl.store(out_ptr + y * out_pitch + x * CHANNELS + channel, mean.to(tl.uint8), inside)


@dataclass(frozen=True)
class CopiedSurface:
    """A small NV12 surface on its way to pinned host memory."""

    layout: SurfaceLayout
    pinned: torch.Tensor

    def surface(self) -> np.ndarray:
        """uint8 [layout.nbytes]; valid once the work that was queued has finished."""
        return self.pinned.numpy()


class ShrinkKernel:
    """Queues its work on one stream."""

    def __init__(self, stream: int):
        self._stream = torch.cuda.ExternalStream(stream)

    def prepare(self, layout: SurfaceLayout, width: int) -> None:
        """Compiles the kernel for this layout and width, on a stream of its own."""
        with torch.cuda.stream(torch.cuda.Stream()):
            surface = torch.empty(layout.nbytes, dtype=torch.uint8, device="cuda")
            average(surface, layout, factor_of(layout, width))
            torch.cuda.current_stream().synchronize()

    def shrink(self, block: Block, layout: SurfaceLayout, width: int) -> CopiedSurface:
        """Queues the means of pixels, as many as leave at least `width`, and their copy to the host."""
        with torch.cuda.stream(self._stream):
            surface = torch.as_tensor(block, device="cuda")
            shrunk, small = average(surface, layout, factor_of(layout, width))
            pinned = torch.empty(small.nbytes, dtype=torch.uint8, pin_memory=True)
            pinned.copy_(shrunk, non_blocking=True)
        return CopiedSurface(small, pinned)


def factor_of(layout: SurfaceLayout, width: int) -> int:
    """By how much the sides are divided for pictures of this width."""
    return min(FACTOR_MAX, max(1, layout.width // width))


def average(surface: torch.Tensor, layout: SurfaceLayout, factor: int) -> tuple[torch.Tensor, SurfaceLayout]:
    """The surface, uint8 [nbytes], with each side divided by `factor`: (uint8 [small.nbytes], its layout)."""
    width, height = max(2, layout.width // factor), max(2, layout.height // factor)
    pitch = width + width % 2
    small = SurfaceLayout(width, height, pitch, layout.matrix, layout.full_range)
    out = torch.empty(small.nbytes, dtype=torch.uint8, device=surface.device)
    samples = surface.view(torch.uint16) if layout.sample_bytes == 2 else surface
    stored_pitch, shift = layout.pitch // layout.sample_bytes, 8 * (layout.sample_bytes - 1)
    for channels, first, out_first, size, out_size in (
        (1, 0, 0, (layout.width, layout.height), (width, height)),
        (2, layout.height, height, _halves(layout.width, layout.height), _halves(width, height)),
    ):
        grid = (triton.cdiv(out_size[1], BLOCK_Y), triton.cdiv(out_size[0], BLOCK_X))
        average_plane[grid](
            samples[first * stored_pitch :], out[out_first * pitch :], stored_pitch, *size, pitch, *out_size,
            SHIFT=shift, FACTOR=factor, CHANNELS=channels, BLOCK_Y=BLOCK_Y, BLOCK_X=BLOCK_X,
        )  # fmt: skip
    return out, small


def _halves(width: int, height: int) -> tuple[int, int]:
    return (width + 1) // 2, (height + 1) // 2
