"""Non-maximum suppression of a dense head's outputs on the GPU: three kernels, one after the other.

`pick` lists the places of each image whose score is high enough, `rank` sorts the best of them into rows, `suppress`
removes from these what overlaps a better one. It is what `Head.persons` does on a CPU. Sizes and constants: dense.py.
"""

import triton
import triton.language as tl


@triton.jit
def pick(
    scores_ptr, objectness_ptr, kept_scores_ptr, kept_places_ptr, counts_ptr,
    score_min, image_step, place_step,
    PLACES: tl.constexpr, OBJECTNESS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One image: scores float [PLACES] -> kept_scores float32 and kept_places int32 [count], by place.

    A score that is NaN is kept, as infinity: so it comes first, and is not taken for an empty place.
    """
    image = tl.program_id(0)
    scores_ptr += image * image_step
    objectness_ptr += image * image_step
    kept_scores_ptr += image * PLACES
    kept_places_ptr += image * PLACES
    found = 0
    for first in range(0, PLACES, BLOCK):
        k = first + tl.arange(0, BLOCK)
        inside = k < PLACES
        score = tl.load(scores_ptr + k * place_step, inside, 0.0).to(tl.float32)
        if OBJECTNESS:
            score *= tl.load(objectness_ptr + k * place_step, inside, 0.0).to(tl.float32)
        score = tl.where(score != score, float("inf"), score)
        kept = inside & (score >= score_min)
        into = found + tl.cumsum(kept.to(tl.int32), 0) - 1
        tl.store(kept_scores_ptr + into, score, kept)
        tl.store(kept_places_ptr + into, k, kept)
        found += tl.sum(kept.to(tl.int32), 0)
    tl.store(counts_ptr + image, found)


@triton.jit
def rank(
    boxes_ptr, kept_scores_ptr, kept_places_ptr, counts_ptr, rows_ptr,
    image_step, place_step, channel_step, width, height,
    PLACES: tl.constexpr, CORNERS: tl.constexpr, GRID: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A block of an image's kept places -> rows float32 [ROWS, 5]: x1, y1, x2, y2, score, the best first.

    Boxes are corners, or centres and sizes; with GRID relative to the cells of grids with steps of 8, 16 and 32 px.
    """
    image = tl.program_id(0)
    kept_scores_ptr += image * PLACES
    count = tl.load(counts_ptr + image)
    begin = tl.program_id(1) * BLOCK
    if begin < count:
        k = begin + tl.arange(0, BLOCK)
        own = tl.load(kept_scores_ptr + k, k < count, 0.0)
        better = tl.zeros((BLOCK,), tl.int32)
        first = 0
        while first < count:
            j = first + tl.arange(0, BLOCK)
            other = tl.load(kept_scores_ptr + j, j < count, float("-inf"))[None, :]
            ahead = (other > own[:, None]) | ((other == own[:, None]) & (j[None, :] < k[:, None]))
            better += tl.sum(ahead.to(tl.int32), 1)
            first += BLOCK
        kept = (k < count) & (better < ROWS)
        place = tl.load(kept_places_ptr + image * PLACES + k, kept, 0)
        from_ptr = boxes_ptr + image * image_step + place * place_step
        a = tl.load(from_ptr, kept, 0.0).to(tl.float32)
        b = tl.load(from_ptr + channel_step, kept, 0.0).to(tl.float32)
        c = tl.load(from_ptr + 2 * channel_step, kept, 0.0).to(tl.float32)
        d = tl.load(from_ptr + 3 * channel_step, kept, 0.0).to(tl.float32)
        if GRID:
            fine, middle = (width // 8) * (height // 8), (width // 16) * (height // 16)
            step = tl.where(place < fine, 8, tl.where(place < fine + middle, 16, 32))
            cell = place - tl.where(place < fine, 0, tl.where(place < fine + middle, fine, fine + middle))
            a, b = (a + cell % (width // step)) * step, (b + cell // (width // step)) * step
            c, d = tl.exp(c) * step, tl.exp(d) * step
        if not CORNERS:
            a, b, c, d = a - c / 2, b - d / 2, a + c / 2, b + d / 2
        into = rows_ptr + image * ROWS * 5 + better * 5
        tl.store(into, a, kept)
        tl.store(into + 1, b, kept)
        tl.store(into + 2, c, kept)
        tl.store(into + 3, d, kept)
        tl.store(into + 4, tl.where(own == float("inf"), float("nan"), own), kept)


@triton.jit
def suppress(counts_ptr, rows_ptr, iou, ROWS: tl.constexpr):
    """One image: rows float32 [ROWS, 5] as rank() gives them; rows behind the count, or removed, become 0."""
    image = tl.program_id(0)
    rows_ptr += image * ROWS * 5
    count = tl.minimum(tl.load(counts_ptr + image), ROWS)
    k = tl.arange(0, ROWS)
    there = k < count
    x1 = tl.load(rows_ptr + k * 5, there, 0.0)
    y1 = tl.load(rows_ptr + k * 5 + 1, there, 0.0)
    x2 = tl.load(rows_ptr + k * 5 + 2, there, 0.0)
    y2 = tl.load(rows_ptr + k * 5 + 3, there, 0.0)
    area = (x2 - x1) * (y2 - y1)
    alive = there.to(tl.int32)
    i = 0
    while i < count:
        bx1 = tl.load(rows_ptr + i * 5)
        by1 = tl.load(rows_ptr + i * 5 + 1)
        bx2 = tl.load(rows_ptr + i * 5 + 2)
        by2 = tl.load(rows_ptr + i * 5 + 3)
        width = tl.maximum(tl.minimum(x2, bx2) - tl.maximum(x1, bx1), 0.0)
        height = tl.maximum(tl.minimum(y2, by2) - tl.maximum(y1, by1), 0.0)
        inter = width * height
        union = tl.maximum(area + (bx2 - bx1) * (by2 - by1) - inter, 1e-9)
        lives = tl.max(tl.where(k == i, alive, 0), axis=0)
        alive = tl.where((lives > 0) & (k > i) & (inter / union > iou), 0, alive)
        i += 1
    tl.debug_barrier()  # the others have read the rows
    gone = alive == 0
    tl.store(rows_ptr + k * 5, 0.0, gone)
    tl.store(rows_ptr + k * 5 + 1, 0.0, gone)
    tl.store(rows_ptr + k * 5 + 2, 0.0, gone)
    tl.store(rows_ptr + k * 5 + 3, 0.0, gone)
    tl.store(rows_ptr + k * 5 + 4, 0.0, gone)
