"""Persons picked on the GPU among a model's rows, and placed in the frame: select.py has the arguments.

It is what Head.persons and Placing.rows do on a CPU.
"""

import triton
import triton.language as tl


@triton.jit
def select(
    rows_ptr, table_ptr, boxes_ptr, about_ptr, score_min, person, confident, score_max, near_px, far_px,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, CLASSES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One image: rows [ROWS, COLUMNS], each x1, y1, x2, y2, score and, with CLASSES, its class; where the image lies,
    float32 [16] of table -> boxes float32 [ROWS, 8], those of persons, in the same order; about int32 [8]."""
    image = tl.program_id(0)
    k = tl.arange(0, BLOCK)
    inside = k < ROWS
    row = rows_ptr + (image * ROWS + k) * COLUMNS
    x1 = tl.load(row, inside, 0.0).to(tl.float32)
    y1 = tl.load(row + 1, inside, 0.0).to(tl.float32)
    x2 = tl.load(row + 2, inside, 0.0).to(tl.float32)
    y2 = tl.load(row + 3, inside, 0.0).to(tl.float32)
    score = tl.load(row + 4, inside, 0.0).to(tl.float32)
    kept = inside & (score >= score_min)
    sure = inside & (score > confident)
    if CLASSES:
        kind = tl.load(row + 5, inside, 0.0).to(tl.float32)
        part = kind - tl.floor(kind)
        strange = sure & (part > 0.01) & (part < 0.99)
        kept = kept & (tl.abs(kind - person) <= 0.5)
    else:
        strange = sure & False
    nan = (x1 != x1) | (y1 != y1) | (x2 != x2) | (y2 != y2) | (score != score)
    furthest = tl.maximum(tl.maximum(tl.abs(x1), tl.abs(y1)), tl.maximum(tl.abs(x2), tl.abs(y2)))
    infinite = kept & ((furthest == float("inf")) | (score == float("inf")))
    about = about_ptr + image * 8
    tl.store(about, tl.sum(kept.to(tl.int32), 0))
    tl.store(about + 1, tl.sum((kept & (furthest <= near_px)).to(tl.int32), 0))
    tl.store(about + 2, tl.sum((kept & (score > score_max)).to(tl.int32), 0))
    tl.store(about + 3, tl.sum((kept & ((x2 < x1) | (y2 < y1))).to(tl.int32), 0))
    tl.store(about + 4, tl.sum((kept & (furthest > far_px)).to(tl.int32), 0))
    tl.store(about + 5, tl.sum((nan | infinite).to(tl.int32), 0))
    tl.store(about + 6, tl.sum(sure.to(tl.int32), 0))
    tl.store(about + 7, tl.sum(strange.to(tl.int32), 0))
    at = table_ptr + image * 16
    cut = tl.where(x1 <= tl.load(at + 8), 1.0, 0.0) + tl.where(y1 <= tl.load(at + 9), 2.0, 0.0)
    cut += tl.where(-x2 <= tl.load(at + 10), 4.0, 0.0) + tl.where(-y2 <= tl.load(at + 11), 8.0, 0.0)
    width, height = tl.load(at + 13), tl.load(at + 14)
    x1 = tl.minimum(tl.maximum((x1 + tl.load(at)) * tl.load(at + 4), 0.0), width)
    y1 = tl.minimum(tl.maximum((y1 + tl.load(at + 1)) * tl.load(at + 5), 0.0), height)
    x2 = tl.minimum(tl.maximum((x2 + tl.load(at + 2)) * tl.load(at + 6), 0.0), width)
    y2 = tl.minimum(tl.maximum((y2 + tl.load(at + 3)) * tl.load(at + 7), 0.0), height)
    into = boxes_ptr + (image * ROWS + tl.cumsum(kept.to(tl.int32), 0) - 1) * 8
    tl.store(into, x1, kept)
    tl.store(into + 1, y1, kept)
    tl.store(into + 2, x2, kept)
    tl.store(into + 3, y2, kept)
    tl.store(into + 4, score, kept)
    tl.store(into + 5, cut, kept)
    tl.store(into + 6, tl.zeros_like(score) + tl.load(at + 15), kept)
    tl.store(into + 7, tl.zeros_like(score) + tl.load(at + 12), kept)
