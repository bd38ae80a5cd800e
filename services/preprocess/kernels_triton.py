"""The values of kernels.reference in one launch on a GPU: NV12 surface in, letterboxed frame and all tiles out.

A program writes a block of one image. Tiles are gathered pixel by pixel: the output is written once, the surface is
read about once from memory, and again from cache. The letterboxed frame (image 0, its programs are the longest and
start first) sums the same taps as the reference.
"""

from functools import lru_cache
from math import gcd

import torch
import triton
import triton.language as tl

from common.geometry import Letterbox, TileGrid
from common.messages import SurfaceLayout, TensorLayout
from services.preprocess.kernels import PADDING, colour_matrix, taps

BLOCK_Y, BLOCK_X, WARPS = 4, 128, 4


@triton.jit
def nv12_to_tensors(
    surface_ptr,  # uint8: luma rows, then rows of interleaved U, V
    out_ptr,  # [images, 3, SIZE, SIZE]
    rows_ptr, row_weights_ptr,  # int32, float32 [box_height, TAPS_Y]
    columns_ptr, column_weights_ptr,  # int32, float32 [box_width, TAPS_X]
    width, height, pitch,  # px, px, bytes
    box_x, box_y, box_width, box_height,  # the scaled frame in image 0, px
    tile_columns, tile_stride, last_x, last_y,  # origins of tiles, px
    gain, r_v, g_u, g_v, b_u, r_0, g_0, b_0,  # RGB = gain * Y + … * U + … * V + …
    padding,
    SIZE: tl.constexpr, TAPS_Y: tl.constexpr, TAPS_X: tl.constexpr,
    SAMPLE: tl.constexpr,  # bytes of a sample, the last is its upper 8 bits
    ALIGN: tl.constexpr,  # tiles begin at multiples of this, px
    BLOCK_Y: tl.constexpr, BLOCK_X: tl.constexpr,
):  # fmt: skip
    across = (SIZE + BLOCK_X - 1) // BLOCK_X
    block, image = tl.program_id(0), tl.program_id(1)
    y = (block // across) * BLOCK_Y + tl.arange(0, BLOCK_Y)[:, None]
    x = (block % across) * BLOCK_X + tl.arange(0, BLOCK_X)[None, :]
    surface_ptr += SAMPLE - 1
    chroma_ptr = surface_ptr + height.to(tl.int64) * pitch

    if image == 0:
        row, column = y - box_y, x - box_x
        inside = (row >= 0) & (row < box_height) & (column >= 0) & (column < box_width)
        luma = tl.zeros([BLOCK_Y, BLOCK_X], tl.float32)
        u = tl.zeros([BLOCK_Y, BLOCK_X], tl.float32)
        v = tl.zeros([BLOCK_Y, BLOCK_X], tl.float32)
        row_inside, column_inside = (row >= 0) & (row < box_height), (column >= 0) & (column < box_width)
        for i in range(TAPS_Y):
            source_y = tl.load(rows_ptr + row * TAPS_Y + i, row_inside, 0)
            weight_y = tl.load(row_weights_ptr + row * TAPS_Y + i, row_inside, 0.0)
            for j in tl.static_range(TAPS_X):
                source_x = tl.load(columns_ptr + column * TAPS_X + j, column_inside, 0)
                weight_x = tl.load(column_weights_ptr + column * TAPS_X + j, column_inside, 0.0)
                weight = weight_y * weight_x
                chroma = (source_y // 2) * pitch + (source_x // 2) * (2 * SAMPLE)
                luma += weight * tl.load(surface_ptr + source_y * pitch + source_x * SAMPLE, inside, 0).to(tl.float32)
                u += weight * tl.load(chroma_ptr + chroma, inside, 0).to(tl.float32)
                v += weight * tl.load(chroma_ptr + chroma + SAMPLE, inside, 0).to(tl.float32)
    else:
        tile = image - 1
        source_y = tl.minimum((tile // tile_columns) * tile_stride, last_y) + y
        source_x = tl.multiple_of(tl.minimum((tile % tile_columns) * tile_stride, last_x), ALIGN) + x
        inside = (source_y < height) & (source_x < width) & (x < SIZE)
        chroma = (source_y // 2) * pitch + (source_x // 2) * (2 * SAMPLE)
        luma = tl.load(surface_ptr + source_y * pitch + source_x * SAMPLE, inside, 0).to(tl.float32)
        u = tl.load(chroma_ptr + chroma, inside, 0).to(tl.float32)
        v = tl.load(chroma_ptr + chroma + SAMPLE, inside, 0).to(tl.float32)

    bright = gain * luma
    red = tl.minimum(tl.maximum(bright + r_v * v + r_0, 0.0), 1.0)
    green = tl.minimum(tl.maximum(bright + g_u * u + g_v * v + g_0, 0.0), 1.0)
    blue = tl.minimum(tl.maximum(bright + b_u * u + b_0, 0.0), 1.0)
    out_ptr += image.to(tl.int64) * (3 * SIZE * SIZE)
    here, writes = y * SIZE + x, (y < SIZE) & (x < SIZE)
    kind = out_ptr.dtype.element_ty
    tl.store(out_ptr + here, tl.where(inside, red, padding).to(kind), writes)
    tl.store(out_ptr + SIZE * SIZE + here, tl.where(inside, green, padding).to(kind), writes)
    tl.store(out_ptr + 2 * SIZE * SIZE + here, tl.where(inside, blue, padding).to(kind), writes)


def launch(surface: torch.Tensor, layout: SurfaceLayout, tensor: TensorLayout, out: torch.Tensor) -> None:
    """Queues one launch: surface uint8 [layout.nbytes or more] -> the first images of out [images, 3, S, S]."""
    images, tables, numbers, constants = _plan(layout, tensor, surface.device)
    blocks = -(-tensor.size_px // BLOCK_X) * -(-tensor.size_px // BLOCK_Y)
    nv12_to_tensors[(blocks, images)](
        surface, out, *tables, *numbers, **constants, BLOCK_Y=BLOCK_Y, BLOCK_X=BLOCK_X, num_warps=WARPS
    )


@lru_cache(maxsize=64)
def _plan(layout: SurfaceLayout, tensor: TensorLayout, device: torch.device) -> tuple:
    """(images, tap tables on the device, scalar arguments, constants) of the launches for these layouts."""
    size = tensor.size_px
    grid, box = (
        TileGrid(layout.width, layout.height, size, tensor.overlap),
        Letterbox(layout.width, layout.height, size),
    )
    rows, row_weights = taps(layout.height, box.scaled[1], False)
    columns, column_weights = taps(layout.width, box.scaled[0], False)
    tables = [
        torch.tensor(table, device=device, dtype=kind)
        for table, kind in (
            (rows, torch.int32), (row_weights, torch.float32), (columns, torch.int32), (column_weights, torch.float32)
        )
    ]  # fmt: skip
    m, c = colour_matrix(layout.matrix, layout.full_range)
    origins = grid.origins()
    last_x, last_y = origins[-1]
    numbers = [
        layout.width, layout.height, layout.pitch, *box.origin, *box.scaled, grid.columns, grid.stride, last_x, last_y,
        *(float(value) for value in (m[0, 0], m[0, 2], m[1, 1], m[1, 2], m[2, 1], *c)), PADDING,
    ]  # fmt: skip
    align = gcd(16, *(x for x, _ in origins))
    constants = {
        "SIZE": size, "TAPS_Y": rows.shape[1], "TAPS_X": columns.shape[1],
        "SAMPLE": layout.sample_bytes, "ALIGN": align,
    }  # fmt: skip
    return 1 + len(grid), tables, numbers, constants
