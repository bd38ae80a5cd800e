"""How the Triton kernel is launched: its grid, its tables and its constants, for a frame's layout and its views."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd

import numpy as np

from peoplecounter.common.cubins import KINDS, Argument, Pointer, TritonFunction
from peoplecounter.common.ipc.messages import Input, SurfaceLayout
from peoplecounter.common.views import View
from peoplecounter.services.preprocess.reference import PADDING, colour_matrix, neighbours

NV12_TO_IMAGES = TritonFunction("peoplecounter.services.preprocess.kernels_triton", "nv12_to_images")
PAIRS, BLOCK_X, TAP_BLOCK, WARPS = 4, 128, 64, 2
SHRUNK_BY = (1, 2, 4)
ORDER = (0, 4, 2, 1)  # the programs that take longest start first


@dataclass(frozen=True)
class ImagesLaunch:
    """Everything but the surface and the images, which are the first two arguments; then the tables, the numbers."""

    dtype: str  # of the images
    grid: tuple[int]
    tables: list[np.ndarray]
    numbers: list[int | float]
    constants: dict[str, int]

    def arguments(self, addresses: Sequence[int]) -> list[Argument]:
        """All of them, the tables at these addresses; where surface and images lie is said when it is launched."""
        pointers = [Pointer(0, "u8"), Pointer(0, KINDS[self.dtype])]
        pointers += [Pointer(at, KINDS[table.dtype.name]) for at, table in zip(addresses, self.tables, strict=True)]
        return [*pointers, *self.numbers]


def images_launch(layout: SurfaceLayout, read: Input, views: tuple[View, ...]) -> ImagesLaunch:
    """One launch: a surface uint8 [layout.nbytes or more] -> the first images of a tensor of read.image_shape."""
    shrunk = [_shrunk(view, layout) for view in views]
    order = sorted(range(len(views)), key=lambda i: ORDER.index(shrunk[i]))
    by_taps, others = [i for i in order if not shrunk[i]], [views[i] for i in order if shrunk[i]]
    levels = list(dict.fromkeys(views[i].level for i in by_taps)) or [(1, 1)]  # a table is never empty
    # of rows and columns of luma, then of chroma: each level's (first sample, weights)
    axes = [
        [neighbours(source, level[side], halved) for level in levels]
        for halved in (False, True)
        for side, source in ((1, layout.height), (0, layout.width))
    ]
    taps = [[weights.shape[1] for _, weights in axis] for axis in axes]
    tables = []
    for axis, counts in zip(axes, taps):
        padded = [np.pad(weights, ((0, 0), (0, max(counts) - weights.shape[1]))) for _, weights in axis]
        tables.append(np.concatenate([first for first, _ in axis]).astype(np.int32))
        tables.append(np.concatenate(padded).astype(np.float32))
    begins = [np.cumsum([0, *(level[side] for level in levels)]) for side in (1, 0)]
    rows = []
    for i in order:
        view, row = views[i], [0] * 6
        if not shrunk[i]:
            level = levels.index(view.level)
            row = [*(begin[level] for begin in begins), *(counts[level] for counts in taps)]
        rows.append([i, view.x, view.y, *view.level, shrunk[i], *row])
    m, c = colour_matrix(layout.matrix, layout.full_range)
    numbers = [
        layout.width, layout.height, layout.pitch, len(by_taps),
        *(float(value) for value in (m[0, 0], m[0, 2], m[1, 1], m[1, 2], m[2, 1], *c)), float(PADDING),
        *map(float, read.scale), *map(float, read.offset),
    ]  # fmt: skip
    names = ("MAX_Y", "MAX_X", "HALF_MAX_Y", "HALF_MAX_X")
    constants = {
        **{name: max(counts) for name, counts in zip(names, taps)},
        "WIDTH": read.width, "HEIGHT": read.height,
        "VALUES": not read.values_are_pixels, "LAST": read.channels_last, "BGR": read.bgr,
        "SAMPLE": layout.sample_bytes, "ALIGN": gcd(16, *(view.x for view in others)),
        "EVEN": not any(views[i].x % 2 or views[i].y % 2 for i in order if shrunk[i] == 1),
        "PAIRS": PAIRS, "BLOCK_X": BLOCK_X, "TAP_BLOCK": TAP_BLOCK,
    }  # fmt: skip
    tap_blocks = -(-read.width * read.height // TAP_BLOCK)
    blocks = -(-read.width // BLOCK_X) * -(-read.height // (2 * PAIRS))
    grid = (len(by_taps) * tap_blocks + (len(views) - len(by_taps)) * blocks,)
    return ImagesLaunch(read.dtype, grid, [np.array(rows, np.int32), *tables], numbers, constants)


def _shrunk(view: View, layout: SurfaceLayout) -> int:
    """1, 2 or 4: by how much a view's level is shrunk; 0 for levels, and places in them, that only taps can do."""
    for by in SHRUNK_BY:
        if (by * view.width, by * view.height) == (layout.width, layout.height) and min(view.x, view.y) >= 0:
            return by
    return 0
