"""The values of reference.py in one launch on a GPU: NV12 surface in, the images of any list of views out.

A program writes a block of one image. The output is written once; the surface is read about once from memory, then from
cache. At the frame's own scale a pixel is one of its pixels, at a half or a quarter the mean of a block of them. At any
other scale (these programs take longest and start first) it is the sum of the same taps as in the reference. The
arguments are made in launches.py.
"""

import triton
import triton.language as tl

# columns of the table of views: the image, its corner, its level in px; by how much the level is shrunk, if by taps 0;
# where the level's taps begin, and how many there are a pixel
IMAGE, X, Y, LEVEL_WIDTH, LEVEL_HEIGHT, SHRUNK, ROW, COLUMN, TAPS_Y, TAPS_X, HALF_Y, HALF_X, COLUMNS = map(
    tl.constexpr, range(13)
)


@triton.jit
def nv12_to_images(
    surface_ptr,  # uint8: luma rows, then rows of interleaved U, V
    out_ptr,  # [images, 3, HEIGHT, WIDTH], or channels last
    views_ptr,  # int32 [views, COLUMNS]: those by taps first
    rows_ptr, row_weights_ptr,  # taps of luma, level behind level: first row int32 [n], weights float32 [n, MAX_Y]
    columns_ptr, column_weights_ptr,  # [n], [n, MAX_X]
    half_rows_ptr, half_row_weights_ptr,  # of chroma: [n], [n, HALF_MAX_Y]
    half_columns_ptr, half_column_weights_ptr,  # [n], [n, HALF_MAX_X]
    width, height, pitch,  # px, px, bytes
    tap_views,  # how many of the views are by taps
    gain, r_v, g_u, g_v, b_u, r_0, g_0, b_0,  # RGB = gain * Y + … * U + … * V + …
    padding,
    scale_r, scale_g, scale_b, offset_r, offset_g, offset_b,  # a value is pixel * scale + offset
    WIDTH: tl.constexpr, HEIGHT: tl.constexpr,  # of an image
    VALUES: tl.constexpr, LAST: tl.constexpr, BGR: tl.constexpr,  # values are no pixels, channels are last, B is first
    MAX_Y: tl.constexpr, MAX_X: tl.constexpr, HALF_MAX_Y: tl.constexpr, HALF_MAX_X: tl.constexpr,
    SAMPLE: tl.constexpr,  # bytes of a sample, the last is its upper 8 bits
    ALIGN: tl.constexpr,  # the other views begin in columns that are multiples of this, px
    EVEN: tl.constexpr,  # those of the frame's scale begin in even rows and columns: four pixels share a chroma sample
    PAIRS: tl.constexpr, BLOCK_X: tl.constexpr,  # a program writes 2 * PAIRS rows of BLOCK_X pixels of such a view
    TAP_BLOCK: tl.constexpr,  # or this many pixels of a view by taps, each of which takes longer
):  # fmt: skip
    surface_ptr += SAMPLE - 1
    chroma_ptr = surface_ptr + height * pitch
    program = tl.program_id(0)
    tap_blocks: tl.constexpr = (WIDTH * HEIGHT + TAP_BLOCK - 1) // TAP_BLOCK
    if program < tap_views * tap_blocks:  # the longest start first
        view_ptr = views_ptr + (program // tap_blocks) * COLUMNS
        _taps(
            surface_ptr, chroma_ptr, out_ptr, view_ptr, rows_ptr, row_weights_ptr, columns_ptr, column_weights_ptr,
            half_rows_ptr, half_row_weights_ptr, half_columns_ptr, half_column_weights_ptr,
            pitch, (program % tap_blocks) * TAP_BLOCK,
            gain, r_v, g_u, g_v, b_u, r_0, g_0, b_0, padding,
            scale_r, scale_g, scale_b, offset_r, offset_g, offset_b, WIDTH, HEIGHT, VALUES, LAST, BGR,
            MAX_Y, MAX_X, HALF_MAX_Y, HALF_MAX_X, SAMPLE, TAP_BLOCK,
        )  # fmt: skip
    else:
        program -= tap_views * tap_blocks
        across: tl.constexpr = (WIDTH + BLOCK_X - 1) // BLOCK_X
        blocks: tl.constexpr = across * ((HEIGHT + 2 * PAIRS - 1) // (2 * PAIRS))
        view_ptr, block = views_ptr + (tap_views + program // blocks) * COLUMNS, program % blocks
        first_y, first_x = (block // across) * (2 * PAIRS), (block % across) * BLOCK_X
        view_x, view_y = tl.load(view_ptr + X), tl.load(view_ptr + Y)
        if ALIGN > 1:
            view_x = tl.multiple_of(view_x, ALIGN)
        out_ptr += tl.load(view_ptr + IMAGE).to(tl.int64) * (3 * WIDTH * HEIGHT)
        shrunk = tl.load(view_ptr + SHRUNK)
        if shrunk == 1:
            _native(
                surface_ptr, chroma_ptr, out_ptr, width, height, pitch, view_y, view_x, first_y, first_x,
                gain, r_v, g_u, g_v, b_u, r_0, g_0, b_0, padding,
                scale_r, scale_g, scale_b, offset_r, offset_g, offset_b, WIDTH, HEIGHT, VALUES, LAST, BGR,
                SAMPLE, EVEN, PAIRS, BLOCK_X,
            )  # fmt: skip
        elif shrunk == 2:
            _mean(
                surface_ptr, chroma_ptr, out_ptr, width, height, pitch, view_y, view_x, first_y, first_x,
                gain, r_v, g_u, g_v, b_u, r_0, g_0, b_0, padding,
                scale_r, scale_g, scale_b, offset_r, offset_g, offset_b, WIDTH, HEIGHT, VALUES, LAST, BGR,
                SAMPLE, 2, PAIRS, BLOCK_X,
            )  # fmt: skip
        else:
            _mean(
                surface_ptr, chroma_ptr, out_ptr, width, height, pitch, view_y, view_x, first_y, first_x,
                gain, r_v, g_u, g_v, b_u, r_0, g_0, b_0, padding,
                scale_r, scale_g, scale_b, offset_r, offset_g, offset_b, WIDTH, HEIGHT, VALUES, LAST, BGR,
                SAMPLE, 4, PAIRS, BLOCK_X,
            )  # fmt: skip


@triton.jit
def _taps(
    surface_ptr, chroma_ptr, out_ptr, view_ptr, rows_ptr, row_weights_ptr, columns_ptr, column_weights_ptr,
    half_rows_ptr, half_row_weights_ptr, half_columns_ptr, half_column_weights_ptr,
    pitch, first, gain, r_v, g_u, g_v, b_u, r_0, g_0, b_0, padding,
    scale_r, scale_g, scale_b, offset_r, offset_g, offset_b,
    WIDTH: tl.constexpr, HEIGHT: tl.constexpr, VALUES: tl.constexpr, LAST: tl.constexpr, BGR: tl.constexpr,
    MAX_Y: tl.constexpr, MAX_X: tl.constexpr, HALF_MAX_Y: tl.constexpr, HALF_MAX_X: tl.constexpr,
    SAMPLE: tl.constexpr, TAP_BLOCK: tl.constexpr,
):  # fmt: skip
    """Writes some pixels of a view by taps: luma and chroma, each summed over its taps, which are neighbours."""
    pixel = first + tl.arange(0, TAP_BLOCK)
    y, x = pixel // WIDTH, pixel % WIDTH
    row, column = tl.load(view_ptr + Y) + y, tl.load(view_ptr + X) + x
    inside = (row >= 0) & (row < tl.load(view_ptr + LEVEL_HEIGHT)) & (y < HEIGHT)
    inside = inside & (column >= 0) & (column < tl.load(view_ptr + LEVEL_WIDTH))
    row, column = tl.load(view_ptr + ROW) + row, tl.load(view_ptr + COLUMN) + column
    luma = tl.zeros([TAP_BLOCK], tl.float32)
    u = tl.zeros([TAP_BLOCK], tl.float32)
    v = tl.zeros([TAP_BLOCK], tl.float32)
    source_ptr = surface_ptr + tl.load(rows_ptr + row, inside, 0) * pitch
    source_ptr += tl.load(columns_ptr + column, inside, 0) * SAMPLE
    taps_y, taps_x = tl.load(view_ptr + TAPS_Y), tl.load(view_ptr + TAPS_X)
    i = 0
    while i < taps_y:
        weight_y = tl.load(row_weights_ptr + row * MAX_Y + i, inside, 0.0)
        for j in tl.static_range(MAX_X):
            if j < taps_x:
                weight = weight_y * tl.load(column_weights_ptr + column * MAX_X + j, inside, 0.0)
                luma += weight * tl.load(source_ptr + j * SAMPLE, weight > 0, 0).to(tl.float32)
        source_ptr += pitch
        i += 1
    source_ptr = chroma_ptr + tl.load(half_rows_ptr + row, inside, 0) * pitch
    source_ptr += tl.load(half_columns_ptr + column, inside, 0) * (2 * SAMPLE)
    half_y, half_x = tl.load(view_ptr + HALF_Y), tl.load(view_ptr + HALF_X)
    i = 0
    while i < half_y:
        weight_y = tl.load(half_row_weights_ptr + row * HALF_MAX_Y + i, inside, 0.0)
        for j in tl.static_range(HALF_MAX_X):
            if j < half_x:
                weight = weight_y * tl.load(half_column_weights_ptr + column * HALF_MAX_X + j, inside, 0.0)
                u += weight * tl.load(source_ptr + 2 * j * SAMPLE, weight > 0, 0).to(tl.float32)
                v += weight * tl.load(source_ptr + (2 * j + 1) * SAMPLE, weight > 0, 0).to(tl.float32)
        source_ptr += pitch
        i += 1
    out_ptr += tl.load(view_ptr + IMAGE).to(tl.int64) * (3 * WIDTH * HEIGHT)
    _store(
        out_ptr, y, x, gain * luma, r_v * v + r_0, g_u * u + g_v * v + g_0, b_u * u + b_0, inside, padding,
        scale_r, scale_g, scale_b, offset_r, offset_g, offset_b, WIDTH, HEIGHT, VALUES, LAST, BGR,
    )  # fmt: skip


@triton.jit
def _native(
    surface_ptr, chroma_ptr, out_ptr, width, height, pitch, view_y, view_x, first_y, first_x,
    gain, r_v, g_u, g_v, b_u, r_0, g_0, b_0, padding, scale_r, scale_g, scale_b, offset_r, offset_g, offset_b,
    WIDTH: tl.constexpr, HEIGHT: tl.constexpr, VALUES: tl.constexpr, LAST: tl.constexpr, BGR: tl.constexpr,
    SAMPLE: tl.constexpr, EVEN: tl.constexpr, PAIRS: tl.constexpr, BLOCK_X: tl.constexpr,
):  # fmt: skip
    """Writes a block of a view of the frame's own scale, two rows at a time; they share chroma where the view begins at
    even coordinates. Such a view may not begin left of the frame or above it."""
    x = first_x + tl.arange(0, BLOCK_X)[None, :]
    pair = tl.arange(0, PAIRS)[:, None]
    if EVEN:
        half_y = (view_y + first_y) // 2 + pair
        half_x = (view_x + first_x) // 2 + tl.arange(0, BLOCK_X // 2)[None, :]
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
        source_y, source_x = view_y + y, view_x + x
        inside = (source_y < height) & (source_x < width) & (x < WIDTH)
        if not EVEN:
            sample_ptr = chroma_ptr + (source_y // 2) * pitch + (source_x // 2) * (2 * SAMPLE)
            u = tl.load(sample_ptr, inside, 0).to(tl.float32)
            v = tl.load(sample_ptr + SAMPLE, inside, 0).to(tl.float32)
            red, green, blue = r_v * v + r_0, g_u * u + g_v * v + g_0, b_u * u + b_0
        luma = tl.load(surface_ptr + source_y * pitch + source_x * SAMPLE, inside, 0).to(tl.float32)
        _store(
            out_ptr, y, x, gain * luma, red, green, blue, inside, padding,
            scale_r, scale_g, scale_b, offset_r, offset_g, offset_b, WIDTH, HEIGHT, VALUES, LAST, BGR,
        )  # fmt: skip


@triton.jit
def _mean(
    surface_ptr, chroma_ptr, out_ptr, width, height, pitch, view_y, view_x, first_y, first_x,
    gain, r_v, g_u, g_v, b_u, r_0, g_0, b_0, padding, scale_r, scale_g, scale_b, offset_r, offset_g, offset_b,
    WIDTH: tl.constexpr, HEIGHT: tl.constexpr, VALUES: tl.constexpr, LAST: tl.constexpr, BGR: tl.constexpr,
    SAMPLE: tl.constexpr, BY: tl.constexpr, PAIRS: tl.constexpr, BLOCK_X: tl.constexpr,
):  # fmt: skip
    """Writes a block of a view that is a half or a quarter of the frame, as wide and high as whole blocks of pixels."""
    x = first_x + tl.arange(0, BLOCK_X)[None, :]
    wide = (view_x + first_x) * BY + tl.arange(0, BLOCK_X * BY)[None, :]  # of luma; of chroma as bytes
    half: tl.constexpr = BY // 2
    for k in tl.static_range(2):
        y = first_y + 2 * tl.arange(0, PAIRS)[:, None] + k
        row = view_y + y
        in_frame = (row * BY < height) & (wide < width)
        luma_ptr = surface_ptr + row * (BY * pitch) + wide * SAMPLE
        luma = tl.zeros([PAIRS, BLOCK_X * BY], tl.float32)
        for i in tl.static_range(BY):
            luma += tl.load(luma_ptr + i * pitch, in_frame, 0).to(tl.float32)
        luma = tl.sum(tl.reshape(luma, [PAIRS, BLOCK_X, BY]), axis=2) / (BY * BY)
        pairs_ptr = chroma_ptr + row * (half * pitch) + wide * SAMPLE
        chroma = tl.zeros([PAIRS, BLOCK_X * BY], tl.float32)
        for i in tl.static_range(half):
            chroma += tl.load(pairs_ptr + i * pitch, in_frame, 0).to(tl.float32)
        chroma = tl.sum(tl.reshape(chroma, [PAIRS, BLOCK_X, half, 2]), axis=2) / (half * half)
        u, v = tl.split(chroma)
        inside = (row * BY < height) & ((view_x + x) * BY < width) & (x < WIDTH)
        _store(
            out_ptr, y, x, gain * luma, r_v * v + r_0, g_u * u + g_v * v + g_0, b_u * u + b_0, inside, padding,
            scale_r, scale_g, scale_b, offset_r, offset_g, offset_b, WIDTH, HEIGHT, VALUES, LAST, BGR,
        )  # fmt: skip


@triton.jit
def _store(
    out_ptr, y, x, bright, red, green, blue, inside, padding,
    scale_r, scale_g, scale_b, offset_r, offset_g, offset_b,
    WIDTH: tl.constexpr, HEIGHT: tl.constexpr, VALUES: tl.constexpr, LAST: tl.constexpr, BGR: tl.constexpr,
):  # fmt: skip
    """One block of an image: what luma gives and what chroma adds, in 0..1; padding where the frame is not."""
    writes = (y < HEIGHT) & (x < WIDTH)
    red = tl.where(inside, tl.minimum(tl.maximum(bright + red, 0.0), 1.0), padding)
    green = tl.where(inside, tl.minimum(tl.maximum(bright + green, 0.0), 1.0), padding)
    blue = tl.where(inside, tl.minimum(tl.maximum(bright + blue, 0.0), 1.0), padding)
    if VALUES:
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
