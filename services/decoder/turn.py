"""Turns, mirrors and resamples a surface on the GPU: the stored picture of NVDEC -> the upright surface in a slot."""

from dataclasses import dataclass
from typing import Any

from peoplecounter.common.cubins import Pointer, TritonFunction
from peoplecounter.services.decoder.upright import Upright

TURN_PLANE = TritonFunction("peoplecounter.services.decoder.turn_triton", "turn_plane")
BLOCK_Y, BLOCK_X = 8, 128


@dataclass(frozen=True)
class Plane:
    """[height, width, channels] samples in GPU memory, rows `pitch` samples apart."""

    pixels: Any  # a Pointer
    width: int
    height: int
    channels: int
    pitch: int


def plane(address: int, width: int, height: int, channels: int, pitch_bytes: int, sample_bytes: int) -> Plane:
    """A plane at an address of GPU memory."""
    pixels = Pointer(address, "u16" if sample_bytes == 2 else "u8")
    return Plane(pixels, width, height, channels, pitch_bytes // sample_bytes)


def turn_launch(stored: Plane, upright: Upright, out: Plane) -> tuple[tuple[int, int], list, dict[str, int]]:
    """(grid, arguments, constants) of TURN_PLANE."""
    base, step_x, step_y = _steps(stored, upright)
    width, height = upright.turned(stored.width, stored.height)
    grid = (-(-out.height // BLOCK_Y), -(-out.width // BLOCK_X))
    arguments = [
        stored.pixels, out.pixels, base, step_x, step_y, width, height,
        out.width, out.height, out.pitch, width / out.width, height / out.height,
    ]  # fmt: skip
    return grid, arguments, {"CHANNELS": stored.channels, "BLOCK_Y": BLOCK_Y, "BLOCK_X": BLOCK_X}


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
