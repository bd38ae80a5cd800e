"""The kernel that turns, mirrors and resamples a plane of a picture. turn.py launches it."""

import triton
import triton.language as tl


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
