"""The values of kernels.reference in one launch on a GPU: NV12 surface in, letterboxed frame and all tiles out.

A program writes a block of one image. Tiles are gathered pixel by pixel: the output is written once, the surface is
read about once from memory, and again from cache. The letterboxed frame (image 0, its programs are the longest and
start first) sums the same taps as the reference.
"""

from functools import lru_cache
from math import gcd

import numpy as np
import torch
import triton
import triton.language as tl

from common.geometry import Letterbox, TileGrid
from common.messages import SurfaceLayout, TensorLayout
from services.preprocess.kernels import PADDING, colour_matrix, taps

PAIRS, BLOCK_X, WARPS = 2, 128, 4


@triton.jit
def nv12_to_tensors(
    surface_ptr,  # uint8: luma rows, then rows of interleaved U, V
    out_ptr,  # [images, 3, SIZE, SIZE]
    rows_ptr, row_weights_ptr,  # taps of luma: int32, float32 [box_height, TAPS_Y]
    columns_ptr, column_weights_ptr,  # [box_width, TAPS_X]
    chroma_rows_ptr, chroma_row_weights_ptr,  # taps of chroma, which has half as many samples [box_height, HALF_Y]
    chroma_columns_ptr, chroma_column_weights_ptr,  # [box_width, HALF_X]
    width, height, pitch,  # px, px, bytes
    box_x, box_y, box_width, box_height,  # the scaled frame in image 0, px
    tile_columns, tile_stride, last_x, last_y,  # origins of tiles, px
    gain, r_v, g_u, g_v, b_u, r_0, g_0, b_0,  # RGB = gain * Y + … * U + … * V + …
    padding,
    SIZE: tl.constexpr, TAPS_Y: tl.constexpr, TAPS_X: tl.constexpr, HALF_Y: tl.constexpr, HALF_X: tl.constexpr,
    SAMPLE: tl.constexpr,  # bytes of a sample, the last is its upper 8 bits
    ALIGN: tl.constexpr,  # tiles begin in columns that are multiples of this, px
    EVEN: tl.constexpr,  # tiles begin in even rows and columns: four pixels share a chroma sample
    PAIRS: tl.constexpr, BLOCK_X: tl.constexpr,  # a program writes 2 * PAIRS rows of BLOCK_X pixels
):  # fmt: skip
    across = (SIZE + BLOCK_X - 1) // BLOCK_X
    block, image = tl.program_id(0), tl.program_id(1)
    first_y, first_x = (block // across) * (2 * PAIRS), (block % across) * BLOCK_X
    x = first_x + tl.arange(0, BLOCK_X)[None, :]
    surface_ptr += SAMPLE - 1
    chroma_ptr = surface_ptr + height * pitch
    out_ptr += image.to(tl.int64) * (3 * SIZE * SIZE)

    if image == 0:
        y = first_y + tl.arange(0, 2 * PAIRS)[:, None]
        row, column = y - box_y, x - box_x
        row_inside, column_inside = (row >= 0) & (row < box_height), (column >= 0) & (column < box_width)
        inside = row_inside & column_inside
        luma = tl.zeros([2 * PAIRS, BLOCK_X], tl.float32)
        u = tl.zeros([2 * PAIRS, BLOCK_X], tl.float32)
        v = tl.zeros([2 * PAIRS, BLOCK_X], tl.float32)
        for i in range(TAPS_Y):
            source_y = tl.load(rows_ptr + row * TAPS_Y + i, row_inside, 0)
            weight_y = tl.load(row_weights_ptr + row * TAPS_Y + i, row_inside, 0.0)
            for j in tl.static_range(TAPS_X):
                source_x = tl.load(columns_ptr + column * TAPS_X + j, column_inside, 0)
                weight = weight_y * tl.load(column_weights_ptr + column * TAPS_X + j, column_inside, 0.0)
                luma += weight * tl.load(surface_ptr + source_y * pitch + source_x * SAMPLE, inside, 0).to(tl.float32)
        for i in range(HALF_Y):
            source_y = tl.load(chroma_rows_ptr + row * HALF_Y + i, row_inside, 0)
            weight_y = tl.load(chroma_row_weights_ptr + row * HALF_Y + i, row_inside, 0.0)
            for j in tl.static_range(HALF_X):
                source_x = tl.load(chroma_columns_ptr + column * HALF_X + j, column_inside, 0)
                weight = weight_y * tl.load(chroma_column_weights_ptr + column * HALF_X + j, column_inside, 0.0)
                sample_ptr = chroma_ptr + source_y * pitch + source_x * (2 * SAMPLE)
                u += weight * tl.load(sample_ptr, inside, 0).to(tl.float32)
                v += weight * tl.load(sample_ptr + SAMPLE, inside, 0).to(tl.float32)
        _store(out_ptr, y, x, gain * luma, r_v * v + r_0, g_u * u + g_v * v + g_0, b_u * u + b_0, inside, padding, SIZE)
    else:
        tile = image - 1
        tile_y = tl.minimum((tile // tile_columns) * tile_stride, last_y)
        tile_x = tl.multiple_of(tl.minimum((tile % tile_columns) * tile_stride, last_x), ALIGN)
        pair = tl.arange(0, PAIRS)[:, None]
        if EVEN:
            half_y = (tile_y + first_y) // 2 + pair
            half_x = (tile_x + first_x) // 2 + tl.arange(0, BLOCK_X // 2)[None, :]
            there = (2 * half_y < height) & (2 * half_x < width)
            sample_ptr = chroma_ptr + half_y * pitch + half_x * (2 * SAMPLE)
            u = tl.load(sample_ptr, there, 0).to(tl.float32)
            v = tl.load(sample_ptr + SAMPLE, there, 0).to(tl.float32)
            red, green, blue = r_v * v + r_0, g_u * u + g_v * v + g_0, b_u * u + b_0
            red, green, blue = tl.interleave(red, red), tl.interleave(green, green), tl.interleave(blue, blue)
        for k in tl.static_range(2):
            y = first_y + 2 * pair + k
            source_y, source_x = tile_y + y, tile_x + x
            inside = (source_y < height) & (source_x < width) & (x < SIZE)
            if not EVEN:
                sample_ptr = chroma_ptr + (source_y // 2) * pitch + (source_x // 2) * (2 * SAMPLE)
                u = tl.load(sample_ptr, inside, 0).to(tl.float32)
                v = tl.load(sample_ptr + SAMPLE, inside, 0).to(tl.float32)
                red, green, blue = r_v * v + r_0, g_u * u + g_v * v + g_0, b_u * u + b_0
            luma = tl.load(surface_ptr + source_y * pitch + source_x * SAMPLE, inside, 0).to(tl.float32)
            _store(out_ptr, y, x, gain * luma, red, green, blue, inside, padding, SIZE)


@triton.jit
def _store(out_ptr, y, x, bright, red, green, blue, inside, padding, SIZE: tl.constexpr):
    """One block of an image: what luma gives and what chroma adds, in 0..1; padding where the frame is not."""
    here, writes = y * SIZE + x, (y < SIZE) & (x < SIZE)
    kind = out_ptr.dtype.element_ty
    red = tl.minimum(tl.maximum(bright + red, 0.0), 1.0)
    green = tl.minimum(tl.maximum(bright + green, 0.0), 1.0)
    blue = tl.minimum(tl.maximum(bright + blue, 0.0), 1.0)
    tl.store(out_ptr + here, tl.where(inside, red, padding).to(kind), writes)
    tl.store(out_ptr + SIZE * SIZE + here, tl.where(inside, green, padding).to(kind), writes)
    tl.store(out_ptr + 2 * SIZE * SIZE + here, tl.where(inside, blue, padding).to(kind), writes)


def launch(surface: torch.Tensor, layout: SurfaceLayout, tensor: TensorLayout, out: torch.Tensor) -> None:
    """Queues one launch: surface uint8 [layout.nbytes or more] -> the first images of out [images, 3, S, S]."""
    images, tables, numbers, constants = _plan(layout, tensor, surface.device)
    blocks = -(-tensor.size_px // BLOCK_X) * -(-tensor.size_px // (2 * PAIRS))
    nv12_to_tensors[(blocks, images)](
        surface, out, *tables, *numbers, **constants, PAIRS=PAIRS, BLOCK_X=BLOCK_X, num_warps=WARPS
    )


@lru_cache(maxsize=64)
def _plan(layout: SurfaceLayout, tensor: TensorLayout, device: torch.device) -> tuple:
    """(images, tap tables on the device, scalar arguments, constants) of the launches for these layouts."""
    size = tensor.size_px
    grid, box = (
        TileGrid(layout.width, layout.height, size, tensor.overlap),
        Letterbox(layout.width, layout.height, size),
    )
    axes = [(layout.height, box.scaled[1], False), (layout.width, box.scaled[0], False)]
    axes += [(source, target, True) for source, target, _ in axes]
    merged = [_merged(*taps(*axis)) for axis in axes]
    tables = [
        torch.tensor(table, device=device, dtype=kind)
        for axis in merged
        for table, kind in zip(axis, (torch.int32, torch.float32))
    ]
    m, c = colour_matrix(layout.matrix, layout.full_range)
    origins = grid.origins()
    last_x, last_y = origins[-1]
    numbers = [
        layout.width, layout.height, layout.pitch, *box.origin, *box.scaled, grid.columns, grid.stride, last_x, last_y,
        *(float(value) for value in (m[0, 0], m[0, 2], m[1, 1], m[1, 2], m[2, 1], *c)), PADDING,
    ]  # fmt: skip
    names = ("TAPS_Y", "TAPS_X", "HALF_Y", "HALF_X")
    constants = {
        **{name: indices.shape[1] for name, (indices, _) in zip(names, merged)},
        "SIZE": size, "SAMPLE": layout.sample_bytes, "ALIGN": gcd(16, *(x for x, _ in origins)),
        "EVEN": not any(x % 2 or y % 2 for x, y in origins),
    }  # fmt: skip
    return 1 + len(grid), tables, numbers, constants


def _merged(indices: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Taps with every sample of a row only once: two pixels that share a chroma sample share a tap."""
    rows = []
    for index, weight in zip(indices, weights):
        samples, where = np.unique(index[weight > 0], return_inverse=True)
        rows.append((samples, np.bincount(where, weight[weight > 0])))
    k = max(len(samples) for samples, _ in rows)
    out, out_weights = np.zeros((len(rows), k), np.int32), np.zeros((len(rows), k), np.float32)
    for i, (samples, weight) in enumerate(rows):
        out[i, : len(samples)], out_weights[i, : len(samples)] = samples, weight
    return out, out_weights
