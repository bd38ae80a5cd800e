"""Every person is whole in some view and large enough there; boxes come back to where they were."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peoplecounter.common import views
from peoplecounter.common.views import BOTTOM, LEFT, RIGHT, TOP, View, groups, overlap_px, table, to_frame

SQUARE = (640, 640)
SIDES = st.integers(1, 9000)
INPUTS = st.sampled_from([(64, 64), (256, 256), (320, 320), (640, 640), (640, 384), (384, 640), (1280, 736)])


@pytest.mark.parametrize(
    "width, height, levels",
    [
        (3840, 2160, {(640, 360): 1, (960, 540): 2, (1920, 1080): 8, (3840, 2160): 32}),
        (1920, 1080, {(640, 360): 1, (960, 540): 2, (1920, 1080): 8}),
        (7680, 4320, {(640, 360): 1, (960, 540): 2, (1920, 1080): 8, (3840, 2160): 32, (7680, 4320): 135}),
        (768, 432, {(640, 360): 1, (768, 432): 2}),
        (640, 360, {(640, 360): 1}),
        (480, 360, {(640, 480): 1, (480, 360): 1}),  # enlarged as a whole, and its own pixels
    ],
)
def test_levels_of_known_formats(width, height, levels):
    found = table(width, height, SQUARE)
    assert Counter(view.level for view in found) == levels
    assert found[0].level == next(iter(levels))  # the whole first
    assert [view.width for view in found[1:]] == sorted(view.width for view in found[1:])


def test_a_grid_has_no_more_tiles_than_its_overlap_needs():
    assert len(table(3840, 2160, SQUARE, overlap=0.16, levels=(1.0,))) == 1 + 28
    assert len(table(3840, 2160, SQUARE, overlap=0.2, levels=(1.0,))) == 1 + 32


@pytest.mark.parametrize("px, images", [(None, 43), (63, 43), (64, 11), (100, 11), (128, 3), (5000, 1)])
def test_a_camera_whose_people_are_large_has_few_views(px, images):
    assert len(table(3840, 2160, SQUARE, smallest_person_px=px)) == images


def test_levels_may_be_chosen():
    wanted = table(1920, 1080, SQUARE, levels=(1.0, 0.4, 0.2))  # 0.2 is smaller than the whole in its image
    assert Counter(view.level for view in wanted) == {(640, 360): 1, (768, 432): 2, (1920, 1080): 8}
    assert len(table(1920, 1080, SQUARE, levels=())) == 1
    assert (3840, 2160) in {view.level for view in table(1920, 1080, SQUARE, levels=(2.0,))}


def seen_px(width, height, box, size, wanted):
    """Longer side, in px of the view, of a box (x1, y1, x2, y2 in the frame) in the best view that has it whole."""
    best = 0.0
    for view in wanted:
        x1, x2 = (x * view.width / width - view.x for x in (box[0], box[2]))
        y1, y2 = (y * view.height / height - view.y for y in (box[1], box[3]))
        # levels are whole px, so a box may stick out by a part of one
        if min(x1, y1) >= -1 and x2 <= size[0] + 1 and y2 <= size[1] + 1:
            best = max(best, x2 - x1, y2 - y1)
    return best


@given(SIDES, SIDES, INPUTS, st.floats(0, 1), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
@settings(deadline=None, max_examples=400)
def test_every_box_is_whole_in_a_view_in_which_it_is_large_enough(width, height, size, w, h, x, y):
    w, h = max(1.0, w**3 * width), max(1.0, h**3 * height)  # more small boxes than large ones
    x, y = x * (width - w), y * (height - h)
    enough = min(64, overlap_px(size) / 2)
    assert enough == 64 or min(size) < 256  # half of such an input is not 128 px
    longer = max(w, h)
    best = seen_px(width, height, (x, y, x + w, y + h), size, table(width, height, size))
    assert best >= min(enough, longer) - 2


@given(SIDES, SIDES, INPUTS, st.floats(0, 0.5))
@settings(deadline=None)
def test_tiles_cover_their_level_and_overlap_as_much_as_asked(width, height, size, overlap):
    wanted = table(width, height, size, overlap)
    for level in {view.level for view in wanted[1:]}:
        for axis, corners in enumerate(zip(*[(v.x, v.y) for v in wanted[1:] if v.level == level])):
            starts = sorted(set(corners))
            assert starts[0] == 0
            assert starts[-1] == max(0, level[axis] - size[axis])  # the last one ends at the edge, or is the only one
            for a, b in pairwise(starts):
                assert a + size[axis] - b >= overlap_px(size, overlap)


@given(st.integers(0, 200), st.integers(1, 40), st.integers(1, 8))
def test_groups_are_equal_parts_of_the_whole_and_of_the_workers(count, about, workers):
    found = groups(count, about, workers)
    assert len(found) % workers == 0 or len(found) == count
    assert [first for first, _ in found] == [sum(c for _, c in found[:i]) for i in range(len(found))]
    counts = [count for _, count in found]
    assert sum(counts) == count
    assert not counts or (max(counts) <= about and max(counts) - min(counts) <= 1)


@given(SIDES, SIDES, INPUTS, st.booleans())
@settings(deadline=None)
def test_the_whole_fits_and_lies_where_it_should(width, height, size, corner):
    whole = table(width, height, size, corner=corner)[0]
    assert whole.width == size[0] or whole.height == size[1]
    assert whole.width <= size[0] and whole.height <= size[1]
    if corner:
        assert (whole.x, whole.y) == (0, 0)
    else:
        assert 0 <= size[0] - whole.width + 2 * whole.x <= 1
        assert 0 <= size[1] - whole.height + 2 * whole.y <= 1
    rows, columns, into_rows, into_columns = whole.window(size)
    assert (rows, columns) == (slice(0, whole.height), slice(0, whole.width))
    corners = [[into_columns.start, into_rows.start, into_columns.stop, into_rows.stop]]
    box, cut, _ = to_frame([whole], np.array([0]), np.array(corners, np.float32), size, (width, height), 2)
    np.testing.assert_allclose(box, [[0, 0, width, height]], rtol=1e-5)
    assert not cut.any()


@given(SIDES, SIDES, INPUTS, st.data())
@settings(deadline=None)
def test_a_box_of_the_frame_comes_back_from_each_of_its_views(width, height, size, data):
    wanted = table(width, height, size)
    image = data.draw(st.integers(0, len(wanted) - 1))
    view = wanted[image]
    x1, x2 = sorted(data.draw(st.floats(0, width)) for _ in range(2))
    y1, y2 = sorted(data.draw(st.floats(0, height)) for _ in range(2))
    sx, sy = view.width / width, view.height / height
    there = np.array([[x1 * sx - view.x, y1 * sy - view.y, x2 * sx - view.x, y2 * sy - view.y]], np.float32)
    box, _, scale = to_frame(wanted, np.array([image]), there, size, (width, height), 0)
    np.testing.assert_allclose(box, [[x1, y1, x2, y2]], atol=max(width, height) * 1e-3)
    assert scale[0] == pytest.approx(sy)


def test_only_inner_edges_cut():
    wanted = table(1920, 1080, SQUARE, levels=(1.0,))
    whole_images = np.tile(np.array([[0, 0, 640, 640]], np.float32), (len(wanted), 1))
    assert to_frame(wanted, np.arange(len(wanted)), whole_images, SQUARE, (1920, 1080), 2)[1].tolist() == [
        0,
        RIGHT | BOTTOM, LEFT | RIGHT | BOTTOM, LEFT | RIGHT | BOTTOM, LEFT | BOTTOM,
        RIGHT | TOP, LEFT | RIGHT | TOP, LEFT | RIGHT | TOP, LEFT | TOP,
    ]  # fmt: skip


def test_a_box_that_ends_before_the_edge_is_not_cut():
    wanted = [View(1920, 1080, 512, 0)]
    there = np.array([[10, 10, 637, 637], [10, 10, 639, 637]], np.float32)
    boxes, cut, scale = to_frame(wanted, np.array([0, 0]), there, SQUARE, (3840, 2160), 2)
    assert cut.tolist() == [0, RIGHT] and scale.tolist() == [0.5, 0.5]
    assert boxes[0].tolist() == [1044, 20, 2298, 1274]


def test_a_view_may_be_padded_on_any_side():
    assert View(10, 10, -3, 4).window((8, 8)) == (slice(4, 10), slice(0, 5), slice(0, 6), slice(3, 8))
    assert views.overlap_px((640, 384)) == 128 and views.overlap_px((640, 384), 0.1) == 64
