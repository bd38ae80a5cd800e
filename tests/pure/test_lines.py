"""Crossings and visits on made-up paths."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from peoplecounter.common import shapes
from peoplecounter.common.counting import LineSettings, ZoneSettings
from peoplecounter.services.fusion.lines import LineCounter, People, ZoneCounter

HEIGHT = 100  # of everybody, px
UPRIGHT = {"points": ((0.5, 0.0), (0.5, 1.0)), "inside": (0.9, 0.5)}
STEP_S = 0.1


def line(**changes):
    return LineSettings(**UPRIGHT | changes)


def people(feet, size=(1000, 1000), seen=None, confirmed=None, time_s=0.0, scale=1.0):
    """People whose feet [k, 2] (shares of the frame) are these."""
    x, y = (np.array(feet, float) * size).reshape(-1, 2).T
    boxes = np.stack([x - 20 * scale, y - HEIGHT * scale, x + 20 * scale, y], axis=1)
    ones = np.ones(len(boxes), bool)
    return People(boxes, size, ones if confirmed is None else confirmed, ones if seen is None else seen, time_s)


def crossings(counter, *paths, **options):
    """[(frame, person, direction)] of people who walk these paths side by side."""
    found = []
    for number, feet in enumerate(zip(*paths)):
        found += [(number, row, d) for row, d in counter.update(people(feet, **options))]
    return found


def walk(*x, y=0.5):
    return [(one, y) for one in x]


def test_one_who_walks_through_goes_in_once_and_back_out_once():
    there = np.linspace(0.3, 0.7, 20)
    found = crossings(LineCounter(line()), walk(*there, *there[::-1]))
    assert [d for *_, d in found] == [1, -1]


def test_one_who_sways_in_the_band_crosses_nothing():
    found = crossings(LineCounter(line()), walk(0.3, *[0.495, 0.505] * 50, 0.3))
    assert found == []


@pytest.mark.parametrize("last, expected", [(0.3, []), (0.7, [1])])
def test_the_side_first_seen_is_the_start_even_within_the_band(last, expected):
    found = crossings(LineCounter(line()), walk(0.499, 0.501, 0.499, 0.501, last))
    assert [d for *_, d in found] == expected


def test_a_teleport_over_a_thin_line_counts_once():
    assert [d for *_, d in crossings(LineCounter(line(band=0)), walk(0.1, 0.9, 0.91))] == [1]


def test_a_way_around_the_end_of_a_line_crosses_nothing():
    short = line(points=((0.5, 0.4), (0.5, 0.6)))
    around = [(0.3, 0.5), (0.3, 0.1), (0.7, 0.1), (0.7, 0.5)]
    assert crossings(LineCounter(short), around) == []
    assert len(crossings(LineCounter(short), [(0.3, 0.5), (0.7, 0.5), (0.7, 0.1), (0.3, 0.1), (0.3, 0.5)])) == 1


def test_two_who_cross_paths_at_the_line_are_two():
    there = np.linspace(0.3, 0.7, 21)
    found = crossings(LineCounter(line()), walk(*there), walk(*there[::-1], y=0.52))
    assert sorted((row, d) for _, row, d in found) == [(0, 1), (1, -1)]


def test_a_tentative_track_counts_once_it_is_confirmed():
    counter = LineCounter(line())
    for x in (0.3, 0.45, 0.55, 0.7):
        assert counter.update(people([(x, 0.5)], confirmed=np.array([False]))) == []
    assert counter.update(people([(0.75, 0.5)])) == [(0, 1)]


def test_one_who_is_hidden_crosses_when_seen_again():
    counter = LineCounter(line())
    counter.update(people([(0.3, 0.5)]))
    assert counter.update(people([(0.6, 0.5)], seen=np.array([False]))) == []
    assert counter.update(people([(0.7, 0.5)])) == [(0, 1)]


def test_persons_are_counted_when_their_track_ends_and_net():
    counter = LineCounter(line(count="persons"))
    there = np.linspace(0.3, 0.7, 20)
    assert crossings(counter, walk(*there, *there[::-1], *there), walk(*there, *there[::-1], *[0.3] * 20, y=0.6)) == []
    assert (counter.end(0), counter.end(1)) == ([1], [])


@pytest.mark.parametrize("anchor, crosses", [("feet", False), ("centre", False), ("head", True)])
def test_an_anchor_is_what_crosses(anchor, crosses):
    """The head of one who walks towards us crosses a line that the feet have passed long ago."""
    level = line(points=((0.0, 0.5), (1.0, 0.5)), inside=(0.5, 0.9), anchor=anchor)
    path = [(0.5, y) for y in np.linspace(0.56, 0.72, 30)]
    assert bool(crossings(LineCounter(level), path)) == crosses


def test_all_corners_of_a_bent_line_are_part_of_it():
    bent = line(points=((0.2, 0.5), (0.5, 0.5), (0.5, 0.2)), inside=(0.3, 0.3), band=0.05)
    to_inside = [(0.4, 0.9), (0.4, 0.3)]
    through_the_corner = [(0.7, 0.7), (0.5, 0.5), (0.35, 0.35)]
    assert [d for *_, d in crossings(LineCounter(bent), to_inside)] == [1]
    assert [d for *_, d in crossings(LineCounter(bent), through_the_corner)] == [1]


share = st.floats(0.02, 0.98)
point = st.tuples(share, share)


@settings(max_examples=60, deadline=None)
@given(st.lists(point, min_size=2, max_size=4, unique=True), st.lists(point, min_size=2, max_size=30), point)
def test_a_mirrored_line_swaps_directions_and_the_resolution_does_not_matter(points, path, inside):
    if shapes.side(points, inside) == 0:
        return
    plain = crossings(LineCounter(line(points=points, inside=inside)), path)
    other_way = LineCounter(line(points=points[::-1], inside=inside))
    assert crossings(other_way, path) == plain
    swapped = LineCounter(line(points=points, inside=inside))
    swapped.inward = -swapped.inward
    assert crossings(swapped, path) == [(n, row, -d) for n, row, d in plain]
    larger = crossings(LineCounter(line(points=points, inside=inside)), path, size=(2000, 2000), scale=2.0)
    assert larger == plain


@settings(max_examples=60, deadline=None)
@given(st.lists(point, min_size=3, max_size=30))
def test_on_a_line_across_the_frame_in_and_out_are_what_moved(path):
    """Without a band, crossings in less crossings out is the side at the end less the side at the start."""
    assume(path[-1][0] != 0.5)  # on the line, nothing has happened yet
    found = crossings(LineCounter(line(band=0)), path)
    right = [x > 0.5 for x, _ in path]
    assert sum(d for *_, d in found) == int(right[-1]) - int(right[0])


ZONE = ZoneSettings(points=((0.4, 0.0), (0.6, 0.0), (0.6, 1.0), (0.4, 1.0)), enter_s=0.5, leave_s=1.0)


def visits(counter, xs):
    found = []
    for number, x in enumerate(xs):
        found += counter.update(people([(x, 0.5)], time_s=number * STEP_S))
    return found


def test_a_visit_begins_and_ends_at_the_edge_and_lasts_in_between():
    came, left = visits(ZoneCounter(ZONE), [0.3] * 10 + [0.5] * 30 + [0.7] * 20)
    assert (came.entered, left.entered) == (True, False)
    assert (came.since_s, left.since_s) == (pytest.approx(1.0), pytest.approx(4.0))
    assert left.dwell_s == pytest.approx(3.0)


def test_one_who_passes_through_or_steps_out_for_a_moment_changes_nothing():
    counter = ZoneCounter(ZONE)
    assert visits(counter, [0.3] * 5 + [0.5] * 4 + [0.7] * 5) == []
    assert len(visits(ZoneCounter(ZONE), [0.5] * 20 + [0.7] * 5 + [0.5] * 20)) == 1


def test_a_visit_ends_with_the_track_when_it_was_last_seen():
    counter = ZoneCounter(ZONE)
    visits(counter, [0.5] * 20)
    assert counter.people == 1
    counter.update(people([(0.5, 0.5)], seen=np.array([False]), time_s=9.0))
    (left,) = counter.end(0)
    assert (left.entered, left.dwell_s, counter.people) == (False, pytest.approx(1.9), 0)


@pytest.mark.parametrize(
    "p, within", [((0.5, 0.5), True), ((0.2, 0.2), False), ((0.5, 0.85), False), ((0.15, 0.9), True)]
)
def test_inside_of_a_polygon_that_is_not_convex(p, within):
    corners = ((0.1, 1.0), (0.5, 0.1), (0.9, 1.0), (0.5, 0.8))
    assert shapes.inside(np.array([p]), corners)[0] == within


@pytest.mark.parametrize(
    "corners, crosses",
    [
        ([(0, 0), (1, 0), (1, 1), (0, 1)], False),
        ([(0, 0), (1, 1), (1, 0), (0, 1)], True),
        ([(0, 0), (1, 1), (1, 0.1), (0, 1)], True),
        ([(0, 0), (1, 0), (0.5, 0.5), (1, 1), (0, 1)], False),  # not convex
        ([(0, 0), (1, 0), (0, 1)], False),
        ([(0, 0), (4, 0), (4, 3), (1, 3), (1, -1), (2, -1), (2, 2), (0, 2)], True),
    ],
)
@pytest.mark.parametrize("turn", range(4))
def test_the_sides_of_a_zone_do_not_cross(corners, crosses, turn):
    assert shapes.crosses_itself(corners[turn:] + corners[:turn]) == crosses
    assert shapes.crosses_itself(corners[::-1]) == crosses
