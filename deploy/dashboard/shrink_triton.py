"""The kernel that shrinks a plane of a surface by a whole factor. shrink.py launches it."""

import triton
import triton.language as tl


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
