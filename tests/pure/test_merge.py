"""A person counts once, whatever views see him; noise that lasts one frame is no person."""

import numpy as np
import pytest

from peoplecounter.services.fusion.merge import hysteresis, merge

NOBODY = np.zeros((0, 6), np.float32)
FINE, COARSE = 1.0, 0.5  # px of the view for one of the frame


def rows(*boxes):
    """x1, y1, x2, y2, score, cut, view, and the view's scale, which is 1 where it is left out."""
    return np.array([(*box, 1.0)[:8] for box in boxes], np.float32).reshape(-1, 8)


def boxes_of(*boxes):
    """The first and last x of the boxes that are left, best seen first."""
    return [tuple(map(int, row[[0, 2]])) for row in merge(rows(*boxes), 0.5, 0.7)]


def count(*boxes):
    return len(boxes_of(*boxes))


def kept(persons, previous, new_score):
    """How many persons are counted."""
    return int(hysteresis(persons, previous, new_score)[1].sum())


def test_no_boxes():
    assert count() == 0
    assert kept(merge(rows(), 0.5, 0.7), NOBODY, 0.35) == 0


def test_one_person_seen_by_two_tiles_and_the_whole_frame():
    assert count((600, 10, 650, 200, 0.9, 0, 1), (601, 11, 651, 201, 0.8, 0, 2), (598, 8, 653, 204, 0.5, 0, 0)) == 1


def test_a_cut_box_gives_way_to_the_neighbour_that_saw_the_person_whole():
    assert count((600, 10, 640, 200, 0.95, 4, 1), (600, 10, 660, 200, 0.6, 0, 2)) == 1


def test_a_box_cut_at_one_level_gives_way_to_a_coarser_one():
    assert boxes_of((600, 10, 640, 640, 0.95, 8, 5, FINE), (590, 10, 700, 900, 0.6, 0, 1, COARSE)) == [(590, 700)]


def test_two_people_side_by_side_stay_two():
    assert count((100, 10, 160, 200, 0.9, 0, 1), (150, 10, 210, 200, 0.8, 0, 1)) == 2


def test_two_people_who_overlap_stay_two_in_one_view_and_are_one_in_two():
    """Within a view the network told them apart; between views the same overlap is one person seen twice."""
    one, other = (100, 10, 160, 200, 0.9), (116, 12, 176, 202, 0.8)
    assert count((*one, 0, 3), (*other, 0, 3)) == 2
    assert count((*one, 0, 3), (*other, 0, 4)) == 1


def test_a_torso_inside_a_person_goes_even_within_one_view():
    assert count((100, 10, 160, 200, 0.9, 0, 1), (105, 15, 155, 100, 0.6, 0, 1)) == 1


@pytest.mark.parametrize("torso, person", [(0.6, 0.8), (0.8, 0.6)])
def test_a_torso_that_is_whole_at_a_fine_level_does_not_stay_beside_its_person(torso, person):
    assert count((105, 15, 155, 110, torso, 0, 5, FINE), (100, 10, 160, 260, person, 0, 1, COARSE)) == 1


@pytest.mark.parametrize("group", [0.5, 0.95])
def test_a_group_that_a_coarse_level_took_for_one_person_does_not_eat_its_people(group):
    people = (100, 20, 160, 200, 0.8, 0, 5, FINE), (165, 15, 225, 200, 0.7, 0, 5, FINE)
    assert boxes_of(*people, (98, 12, 230, 204, group, 0, 0, COARSE)) == [(100, 160), (165, 225)]


def test_what_is_small_inside_a_person_is_no_group():
    """Two faces on a coat, two bags: a person is not taken for a group because of them."""
    small = (110, 60, 130, 100, 0.6, 0, 5, FINE), (140, 60, 160, 100, 0.6, 0, 5, FINE)
    assert (98, 170) in boxes_of(*small, (98, 12, 170, 204, 0.9, 0, 0, COARSE))


def test_the_better_seen_of_two_boxes_stays():
    """By score and by size in the view: the same score is worth less for a small figure."""
    fine, coarse = (100, 10, 140, 110, 0.7, 0, 5, FINE), (101, 11, 144, 112, 0.75, 0, 1, COARSE)
    assert boxes_of(fine, coarse) == [(100, 140)]
    assert boxes_of((*fine[:4], 0.4, *fine[5:]), coarse) == [(101, 144)]


def test_merge_does_not_depend_on_the_order_of_arrival():
    random = np.random.default_rng(0)
    corners = random.uniform(0, 900, (60, 2))
    boxes = np.hstack([corners, corners + random.uniform(20, 120, (60, 2)), random.permutation(60)[:, None] / 60])
    scales = random.choice([1.0, 0.5, 0.25], (60, 1))
    boxes = np.hstack([boxes, np.zeros((60, 1)), random.integers(0, 8, (60, 1)), scales]).astype(np.float32)
    expected = merge(boxes, 0.5, 0.7)
    for _ in range(5):
        np.testing.assert_array_equal(merge(random.permutation(boxes), 0.5, 0.7), expected)


def test_a_weak_box_counts_only_where_a_person_was():
    weak = np.array([[100, 10, 160, 200, 0.25, 1]], np.float32)
    nearby = np.array([[95, 12, 158, 201, 0.9, 1]], np.float32)
    assert kept(weak, NOBODY, 0.35) == 0
    assert kept(weak, nearby, 0.35) == 1
    assert kept(weak, nearby + np.array([500, 0, 500, 0, 0, 0]), 0.35) == 0
    assert kept(weak * np.array([1, 1, 1, 1, 0.9, 1]), nearby, 0.35) == 0


def test_a_small_figure_needs_less_of_a_score():
    person = np.array([[100, 10, 160, 200, 0.4, 1]], np.float32)
    assert kept(person, NOBODY, 0.5) == 0
    person[:, 5] = 0.25  # 48 px tall in its view
    assert kept(person, NOBODY, 0.5) == 1


def test_an_inverted_or_flat_box_removes_no_person():
    """An engine may give them; they overlap nothing and must not pass for a copy of who is there."""
    person = [0, 0, 100, 200, 0.5, 0, 0, 1]
    for strange in ([60, 10, 40, 150, 0.9, 0, 1, 1], [60, 150, 40, 10, 0.9, 0, 1, 1], [50, 10, 50, 150, 0.9, 0, 1, 1]):
        left = merge(np.array([strange, person], np.float32), 0.5, 0.7)
        assert person[:5] in [list(map(float, row[:5])) for row in left.round(3)]
