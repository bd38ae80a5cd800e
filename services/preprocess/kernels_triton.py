"""The values of reference.py in one launch on a GPU: NV12 surface in, letterboxed frame and all tiles out.

A program writes a block of one image. Tiles are gathered pixel by pixel: the output is written once, and the surface is
read about once from memory, then from cache. The letterboxed frame (image 0; its programs take longest and start first)
sums the same taps as the reference.
"""

from functools import lru_cache
from math import gcd

import numpy as np
import torch
import triton
import triton.language as tl

from peoplecounter.common.geometry import Letterbox, TileGrid
from peoplecounter.common.ipc.messages import SurfaceLayout, TensorLayout
from peoplecounter.services.preprocess.reference import PADDING, colour_matrix, taps

PAIRS, BLOCK_X, LETTERBOX, WARPS = 4, 128, 64, 2


@triton.jit
def nv12_to_tensors(
    surface_ptr,  # uint8: luma rows, then rows of interleaved U, V
    out_ptr,  # [images, 3, HEIGHT, WIDTH], or channels last
    rows_ptr, row_weights_ptr,  # taps of luma: first row int32 [box_height], weights float32 [box_height, TAPS_Y]
    columns_ptr, column_weights_ptr,  # [box_width], [box_width, TAPS_X]
    chroma_rows_ptr, chroma_row_weights_ptr,  # taps of chroma [box_height], [box_height, HALF_Y]
    chroma_columns_ptr, chroma_column_weights_ptr,  # [box_width], [box_width, HALF_X]
    width, height, pitch,  # px, px, bytes
    box_x, box_y, box_width, box_height,  # the scaled frame in image 0, px
    tile_columns, stride_x, stride_y, last_x, last_y,  # origins of tiles, px
    gain, r_v, g_u, g_v, b_u, r_0, g_0, b_0,  # RGB = gain * Y + … * U + … * V + …
    padding,
    scale_r, scale_g, scale_b, offset_r, offset_g, offset_b,  # a value is pixel * scale + offset
    WIDTH: tl.constexpr, HEIGHT: tl.constexpr,  # of an image
    SCALED: tl.constexpr, LAST: tl.constexpr, BGR: tl.constexpr,  # values are no pixels, channels are last, B is first
    TAPS_Y: tl.constexpr, TAPS_X: tl.constexpr, HALF_Y: tl.constexpr, HALF_X: tl.constexpr,
    SAMPLE: tl.constexpr,  # bytes of a sample, the last is its upper 8 bits
    ALIGN: tl.constexpr,  # tiles begin in columns that are multiples of this, px
    EVEN: tl.constexpr,  # tiles begin in even rows and columns: four pixels share a chroma sample
    PAIRS: tl.constexpr, BLOCK_X: tl.constexpr,  # a program writes 2 * PAIRS rows of BLOCK_X pixels of a tile
    LETTERBOX: tl.constexpr,  # or this many pixels of image 0, each of which takes longer
):  # fmt: skip
    surface_ptr += SAMPLE - 1
    chroma_ptr = surface_ptr + height * pitch
    program, letterbox_programs = tl.program_id(0), (WIDTH * HEIGHT + LETTERBOX - 1) // LETTERBOX
    if program < letterbox_programs:  # the longest start first
        _letterbox(
            surface_ptr, chroma_ptr, out_ptr, rows_ptr, row_weights_ptr, columns_ptr, column_weights_ptr,
            chroma_rows_ptr, chroma_row_weights_ptr, chroma_columns_ptr, chroma_column_weights_ptr,
            pitch, program * LETTERBOX, box_x, box_y, box_width, box_height,
            gain, r_v, g_u, g_v, b_u, r_0, g_0, b_0, padding,
            scale_r, scale_g, scale_b, offset_r, offset_g, offset_b, WIDTH, HEIGHT, SCALED, LAST, BGR,
            TAPS_Y, TAPS_X, HALF_Y, HALF_X, SAMPLE, LETTERBOX,
        )  # fmt: skip
    else:
        across: tl.constexpr = (WIDTH + BLOCK_X - 1) // BLOCK_X
        blocks: tl.constexpr = across * ((HEIGHT + 2 * PAIRS - 1) // (2 * PAIRS))
        tile, block = (program - letterbox_programs) // blocks, (program - letterbox_programs) % blocks
        first_y, first_x = (block // across) * (2 * PAIRS), (block % across) * BLOCK_X
        tile_y = tl.minimum((tile // tile_columns) * stride_y, last_y)
        tile_x = tl.multiple_of(tl.minimum((tile % tile_columns) * stride_x, last_x), ALIGN)
        _tile(
            surface_ptr, chroma_ptr, out_ptr + (1 + tile).to(tl.int64) * (3 * WIDTH * HEIGHT),
            width, height, pitch, tile_y, tile_x, first_y, first_x,
            gain, r_v, g_u, g_v, b_u, r_0, g_0, b_0, padding,
            scale_r, scale_g, scale_b, offset_r, offset_g, offset_b, WIDTH, HEIGHT, SCALED, LAST, BGR,
            SAMPLE, EVEN, PAIRS, BLOCK_X,
        )  # fmt: skip


@triton.jit
def _letterbox(
    surface_ptr, chroma_ptr, out_ptr, rows_ptr, row_weights_ptr, columns_ptr, column_weights_ptr,
    chroma_rows_ptr, chroma_row_weights_ptr, chroma_columns_ptr, chroma_column_weights_ptr,
    pitch, first, box_x, box_y, box_width, box_height,
    gain, r_v, g_u, g_v, b_u, r_0, g_0, b_0, padding, scale_r, scale_g, scale_b, offset_r, offset_g, offset_b,
    WIDTH: tl.constexpr, HEIGHT: tl.constexpr, SCALED: tl.constexpr, LAST: tl.constexpr, BGR: tl.constexpr,
    TAPS_Y: tl.constexpr, TAPS_X: tl.constexpr, HALF_Y: tl.constexpr, HALF_X: tl.constexpr,
    SAMPLE: tl.constexpr, LETTERBOX: tl.constexpr,
):  # fmt: skip
    """Writes some pixels of image 0: luma and chroma, each summed over its taps, which are neighbours."""
    pixel = first + tl.arange(0, LETTERBOX)
    y, x = pixel // WIDTH, pixel % WIDTH
    row, column = y - box_y, x - box_x
    inside = (row >= 0) & (row < box_height) & (column >= 0) & (column < box_width)
    luma = tl.zeros([LETTERBOX], tl.float32)
    u = tl.zeros([LETTERBOX], tl.float32)
    v = tl.zeros([LETTERBOX], tl.float32)
    source_ptr = surface_ptr + tl.load(rows_ptr + row, inside, 0) * pitch
    source_ptr += tl.load(columns_ptr + column, inside, 0) * SAMPLE
    for i in range(TAPS_Y):
        weight_y = tl.load(row_weights_ptr + row * TAPS_Y + i, inside, 0.0)
        for j in tl.static_range(TAPS_X):
            weight = weight_y * tl.load(column_weights_ptr + column * TAPS_X + j, inside, 0.0)
            luma += weight * tl.load(source_ptr + j * SAMPLE, weight > 0, 0).to(tl.float32)
        source_ptr += pitch
    source_ptr = chroma_ptr + tl.load(chroma_rows_ptr + row, inside, 0) * pitch
    source_ptr += tl.load(chroma_columns_ptr + column, inside, 0) * (2 * SAMPLE)
    for i in range(HALF_Y):
        half_weight_y = tl.load(chroma_row_weights_ptr + row * HALF_Y + i, inside, 0.0)
        for j in tl.static_range(HALF_X):
            weight = half_weight_y * tl.load(chroma_column_weights_ptr + column * HALF_X + j, inside, 0.0)
            u += weight * tl.load(source_ptr + 2 * j * SAMPLE, weight > 0, 0).to(tl.float32)
            v += weight * tl.load(source_ptr + (2 * j + 1) * SAMPLE, weight > 0, 0).to(tl.float32)
        source_ptr += pitch
    _store(
        out_ptr, y, x, gain * luma, r_v * v + r_0, g_u * u + g_v * v + g_0, b_u * u + b_0, inside, padding,
        scale_r, scale_g, scale_b, offset_r, offset_g, offset_b, WIDTH, HEIGHT, SCALED, LAST, BGR,
    )  # fmt: skip


@triton.jit
def _tile(
    surface_ptr, chroma_ptr, out_ptr, width, height, pitch, tile_y, tile_x, first_y, first_x,
    gain, r_v, g_u, g_v, b_u, r_0, g_0, b_0, padding, scale_r, scale_g, scale_b, offset_r, offset_g, offset_b,
    WIDTH: tl.constexpr, HEIGHT: tl.constexpr, SCALED: tl.constexpr, LAST: tl.constexpr, BGR: tl.constexpr,
    SAMPLE: tl.constexpr, EVEN: tl.constexpr, PAIRS: tl.constexpr, BLOCK_X: tl.constexpr,
):  # fmt: skip
    """Writes a block of a tile, two rows at a time; they share chroma where the tile begins at even coordinates."""
    x = first_x + tl.arange(0, BLOCK_X)[None, :]
    pair = tl.arange(0, PAIRS)[:, None]
    if EVEN:
        half_y = (tile_y + first_y) // 2 + pair
        half_x = (tile_x + first_x) // 2 + tl.arange(0, BLOCK_X // 2)[None, :]
        in_frame = (2 * half_y < height) & (2 * half_x < width)
        shared_ptr = chroma_ptr + half_y * pitch + half_x * (2 * SAMPLE)
        u = tl.load(shared_ptr, in_frame, 0).to(tl.float32)
        v = tl.load(shared_ptr + SAMPLE, in_frame, 0).to(tl.float32)
        half_red, half_green, half_blue = r_v * v + r_0, g_u * u + g_v * v + g_0, b_u * u + b_0
        red = tl.interleave(half_red, half_red)
        green = tl.interleave(half_green, half_green)
        blue = tl.interleave(half_blue, half_blue)
    for k in tl.static_range(2):
        y = first_y + 2 * pair + k
        source_y, source_x = tile_y + y, tile_x + x
        inside = (source_y < height) & (source_x < width) & (x < WIDTH)
        if not EVEN:
            sample_ptr = chroma_ptr + (source_y // 2) * pitch + (source_x // 2) * (2 * SAMPLE)
            u = tl.load(sample_ptr, inside, 0).to(tl.float32)
            v = tl.load(sample_ptr + SAMPLE, inside, 0).to(tl.float32)
            red, green, blue = r_v * v + r_0, g_u * u + g_v * v + g_0, b_u * u + b_0
        luma = tl.load(surface_ptr + source_y * pitch + source_x * SAMPLE, inside, 0).to(tl.float32)
        _store(
            out_ptr, y, x, gain * luma, red, green, blue, inside, padding,
            scale_r, scale_g, scale_b, offset_r, offset_g, offset_b, WIDTH, HEIGHT, SCALED, LAST, BGR,
        )  # fmt: skip


@triton.jit
def _store(
    out_ptr, y, x, bright, red, green, blue, inside, padding,
    scale_r, scale_g, scale_b, offset_r, offset_g, offset_b,
    WIDTH: tl.constexpr, HEIGHT: tl.constexpr, SCALED: tl.constexpr, LAST: tl.constexpr, BGR: tl.constexpr,
):  # fmt: skip
    """One block of an image: what luma gives and what chroma adds, in 0..1; padding where the frame is not."""
    writes = (y < HEIGHT) & (x < WIDTH)
    red = tl.where(inside, tl.minimum(tl.maximum(bright + red, 0.0), 1.0), padding)
    green = tl.where(inside, tl.minimum(tl.maximum(bright + green, 0.0), 1.0), padding)
    blue = tl.where(inside, tl.minimum(tl.maximum(bright + blue, 0.0), 1.0), padding)
    if SCALED:
        red, green, blue = red * scale_r + offset_r, green * scale_g + offset_g, blue * scale_b + offset_b
    if BGR:
        red, blue = blue, red
    kind = out_ptr.dtype.element_ty
    if kind == tl.uint8:
        red, green, blue = red + 0.5, green + 0.5, blue + 0.5
    step: tl.constexpr = 1 if LAST else WIDTH * HEIGHT  # from channel to channel
    pixel_ptr = out_ptr + (y * WIDTH + x) * (3 if LAST else 1)
    tl.store(pixel_ptr, red.to(kind), writes)
    tl.store(pixel_ptr + step, green.to(kind), writes)
    tl.store(pixel_ptr + 2 * step, blue.to(kind), writes)


def launch(surface: torch.Tensor, layout: SurfaceLayout, tensor: TensorLayout, out: torch.Tensor) -> None:
    """Queues one launch: surface uint8 [layout.nbytes or more] -> the first images of out, of tensor.shape."""
    images, tables, numbers, constants = _plan(layout, tensor, surface.device)
    width, height = tensor.input.size
    blocks = -(-width // BLOCK_X) * -(-height // (2 * PAIRS))
    nv12_to_tensors[(-(-width * height // LETTERBOX) + (images - 1) * blocks,)](
        surface, out, *tables, *numbers, **constants,
        PAIRS=PAIRS, BLOCK_X=BLOCK_X, LETTERBOX=LETTERBOX, num_warps=WARPS,
    )  # fmt: skip


@lru_cache(maxsize=64)
def _plan(layout: SurfaceLayout, tensor: TensorLayout, device: torch.device) -> tuple:
    """(images, tap tables on the device, scalar arguments, constants) of the launches for these layouts."""
    read = tensor.input
    grid = TileGrid(layout.width, layout.height, read.size, tensor.overlap)
    box = Letterbox(layout.width, layout.height, read.size, read.corner)
    sides = [(layout.height, box.scaled[1]), (layout.width, box.scaled[0])]
    axes = [_neighbours(*taps(source, target, halved)) for halved in (False, True) for source, target in sides]
    tables = [
        torch.tensor(table, device=device, dtype=kind)
        for axis in axes
        for table, kind in zip(axis, (torch.int32, torch.float32))
    ]
    m, c = colour_matrix(layout.matrix, layout.full_range)
    origins = grid.origins()
    last_x, last_y = origins[-1]
    numbers = [
        layout.width, layout.height, layout.pitch, *box.origin, *box.scaled,
        grid.columns, *grid.strides, last_x, last_y,
        *(float(value) for value in (m[0, 0], m[0, 2], m[1, 1], m[1, 2], m[2, 1], *c)), PADDING,
        *read.scale, *read.offset,
    ]  # fmt: skip
    names = ("TAPS_Y", "TAPS_X", "HALF_Y", "HALF_X")
    constants = {
        **{name: weights.shape[1] for name, (_, weights) in zip(names, axes)},
        "WIDTH": read.width, "HEIGHT": read.height,
        "SCALED": not read.values_are_pixels, "LAST": read.channels_last, "BGR": read.bgr,
        "SAMPLE": layout.sample_bytes, "ALIGN": gcd(16, *(x for x, _ in origins)),
        "EVEN": not any(x % 2 or y % 2 for x, y in origins),
    }  # fmt: skip
    return 1 + len(grid), tables, numbers, constants


def _neighbours(indices: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Taps as (first sample int [n], weights float [n, k] of it and the k - 1 behind it): pixels that share a sample
    share a tap."""
    first = np.where(weights > 0, indices, indices.max() + 1).min(axis=1)
    offsets = np.where(weights > 0, indices - first[:, None], 0)
    out = np.zeros((len(first), offsets.max() + 1), np.float32)
    np.add.at(out, (np.arange(len(first))[:, None], offsets), weights)
    return first, out
