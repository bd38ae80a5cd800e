"""Tiles cover the frame, overlap as promised, and boxes come back to where they were."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peoplecounter.common.geometry import BOTTOM, LEFT, RIGHT, TOP, Letterbox, TileGrid

SIDES = st.integers(1, 5000)


@pytest.mark.parametrize(
    "width, height, columns, rows", [(3840, 2160, 8, 4), (1920, 1080, 4, 2), (640, 640, 1, 1), (768, 432, 2, 1)]
)
def test_grid_of_known_formats(width, height, columns, rows):
    grid = TileGrid(width, height, (640, 640))
    assert (grid.columns, grid.rows, len(grid)) == (columns, rows, columns * rows)


@given(SIDES, SIDES, st.sampled_from([(64, 64), (320, 640), (640, 384)]), st.floats(0, 0.5))
@settings(deadline=None)
def test_tiles_cover_every_pixel_and_overlap_at_least_as_promised(width, height, sides, overlap):
    grid = TileGrid(width, height, sides, overlap)
    assert len(grid.origins()) == len(grid)
    for axis, (length, size) in enumerate(zip((width, height), sides)):
        starts = sorted({origin[axis] for origin in grid.origins()})
        assert starts[0] == 0
        assert starts[-1] == max(0, length - size)  # the last one ends at the edge, or is the only one
        for a, b in pairwise(starts):
            assert a + size - b >= round(size * overlap) - 1


@given(SIDES, SIDES, st.integers(1, 40))
@settings(deadline=None)
def test_groups_are_equal_parts_of_the_whole(width, height, about):
    grid = TileGrid(width, height, (640, 640))
    groups = grid.groups(about)
    assert sum(count for _, count in groups) == len(grid)
    assert [first for first, _ in groups] == [sum(c for _, c in groups[:i]) for i in range(len(groups))]
    counts = [count for _, count in groups]
    assert max(counts) <= about
    assert max(counts) - min(counts) <= 1


def test_4k_tiles_are_two_groups_of_sixteen():
    assert TileGrid(3840, 2160, (640, 640)).groups(16) == [(0, 16), (16, 16)]


@given(SIDES, SIDES, st.sampled_from([(64, 64), (640, 640), (640, 384)]), st.booleans())
@settings(deadline=None)
def test_letterbox_fits_lies_where_it_should_and_inverts(width, height, size, corner):
    box = Letterbox(width, height, size, corner)
    (w, h), (x, y) = box.scaled, box.origin
    assert w == size[0] or h == size[1]
    assert w <= size[0] and h <= size[1]
    if corner:
        assert (x, y) == (0, 0)
    else:
        assert 0 <= size[0] - w - 2 * x <= 1
        assert 0 <= size[1] - h - 2 * y <= 1
    corners = box.to_frame(np.array([[x, y, x + w, y + h]], np.float32))
    np.testing.assert_allclose(corners, [[0, 0, width, height]], rtol=1e-5)


def test_only_inner_edges_cut():
    grid = TileGrid(1920, 1080, (640, 640))
    whole_tiles = np.tile(np.array([[0, 0, 640, 640]], np.float32), (len(grid), 1))
    assert grid.to_frame(np.arange(len(grid)), whole_tiles, 2)[1].tolist() == [
        RIGHT | BOTTOM, LEFT | RIGHT | BOTTOM, LEFT | RIGHT | BOTTOM, LEFT | BOTTOM,
        RIGHT | TOP, LEFT | RIGHT | TOP, LEFT | RIGHT | TOP, LEFT | TOP,
    ]  # fmt: skip


def test_a_box_that_ends_before_the_edge_is_not_cut():
    grid = TileGrid(1920, 1080, (640, 640))
    boxes, cut = grid.to_frame(np.array([1, 1]), np.array([[10, 10, 637, 637], [10, 10, 639, 637]], np.float32), 2)
    assert cut.tolist() == [0, RIGHT]
    assert boxes[0].tolist() == [522, 10, 1149, 637]
