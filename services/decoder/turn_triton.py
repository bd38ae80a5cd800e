"""Turns, mirrors and resamples a surface on the GPU: the stored picture of NVDEC -> the upright surface in a slot."""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from peoplecounter.common.ipc.memory import Block
from peoplecounter.services.decoder.upright import Upright

BLOCK_Y, BLOCK_X = 8, 128


@triton.jit
def turn_plane(
    stored_ptr, out_ptr, base, step_x, step_y,  # turned pixel (x, y) is stored at base + x * step_x + y * step_y
    turned_width, turned_height, width, height, out_pitch,  # px, px; samples
    scale_x, scale_y,  # of a pixel of the plane that is written, in turned pixels: exactly 1.0 makes it a copy
    CHANNELS: tl.constexpr, BLOCK_Y: tl.constexpr, BLOCK_X: tl.constexpr,
):  # fmt: skip
    """Writes a block of a plane [height, width, CHANNELS], bilinear; where nothing is resampled it is a copy."""
    y = tl.program_id(0) * BLOCK_Y + tl.arange(0, BLOCK_Y)[:, None]
    x = tl.program_id(1) * BLOCK_X + tl.arange(0, BLOCK_X)[None, :]
    inside = (y < height) & (x < width)
    at_y = tl.maximum((y + 0.5) * scale_y - 0.5, 0.0)
    at_x = tl.maximum((x + 0.5) * scale_x - 0.5, 0.0)
    y0 = tl.minimum(at_y.to(tl.int32), turned_height - 1)
    x0 = tl.minimum(at_x.to(tl.int32), turned_width - 1)
    y1, x1 = tl.minimum(y0 + 1, turned_height - 1), tl.minimum(x0 + 1, turned_width - 1)
    down, right = at_y - y0, at_x - x0
    for channel in tl.static_range(CHANNELS):
        from_ptr = stored_ptr + base + channel
        top = tl.load(from_ptr + x0 * step_x + y0 * step_y, inside, 0) * (1 - right)
        top += tl.load(from_ptr + x1 * step_x + y0 * step_y, inside, 0) * right
        bottom = tl.load(from_ptr + x0 * step_x + y1 * step_y, inside, 0) * (1 - right)
        bottom += tl.load(from_ptr + x1 * step_x + y1 * step_y, inside, 0) * right
        value = top * (1 - down) + bottom * down + 0.5
        tl.store(out_ptr + y * out_pitch + x * CHANNELS + channel, value.to(out_ptr.dtype.element_ty), inside)


@dataclass(frozen=True)
class Plane:
    """[height, width, channels] samples in GPU memory, rows `pitch` samples apart."""

    pixels: torch.Tensor
    width: int
    height: int
    channels: int
    pitch: int


def plane(address: int, width: int, height: int, channels: int, pitch_bytes: int, sample_bytes: int) -> Plane:
    """A plane at an address of GPU memory."""
    pixels = torch.as_tensor(Block(address, pitch_bytes * height), device="cuda")
    pitch = pitch_bytes // sample_bytes
    return Plane(pixels.view(torch.uint16 if sample_bytes == 2 else torch.uint8), width, height, channels, pitch)


def turn(stored: Plane, upright: Upright, out: Plane) -> None:
    """Queues the work on torch's current stream."""
    base, step_x, step_y = _steps(stored, upright)
    width, height = upright.turned(stored.width, stored.height)
    grid = (triton.cdiv(out.height, BLOCK_Y), triton.cdiv(out.width, BLOCK_X))
    turn_plane[grid](
        stored.pixels, out.pixels, base, step_x, step_y, width, height,
        out.width, out.height, out.pitch, width / out.width, height / out.height,
        CHANNELS=stored.channels, BLOCK_Y=BLOCK_Y, BLOCK_X=BLOCK_X,
    )  # fmt: skip


def _steps(stored: Plane, upright: Upright) -> tuple[int, int, int]:
    """(stored sample of turned pixel (0, 0), and from there to its right and its lower neighbour)."""
    right, down = stored.channels, stored.pitch
    last_x, last_y = (stored.width - 1) * right, (stored.height - 1) * down
    base, step_x, step_y = (
        (0, right, down),
        (last_y, -down, right),
        (last_x + last_y, -right, -down),
        (last_x, down, -right),
    )[upright.quarter_turns]
    if upright.mirrored:
        turned_width, _ = upright.turned(stored.width, stored.height)
        base, step_x = base + (turned_width - 1) * step_x, -step_x
    return base, step_x, step_y
