"""People at tile borders count once; noise that lasts one frame is no person."""

import numpy as np

from peoplecounter.services.fusion.merge import hysteresis, merge


def rows(*boxes):
    """x1, y1, x2, y2, score, cut, tile."""
    return np.array(boxes, np.float32).reshape(-1, 7)


def count(*boxes):
    return len(merge(rows(*boxes), 0.5, 0.7))


def test_no_boxes():
    assert count() == 0
    assert len(hysteresis(merge(rows(), 0.5, 0.7), np.zeros((0, 5)), 0.35)) == 0


def test_one_person_seen_by_two_tiles_and_the_whole_frame():
    assert count((600, 10, 650, 200, 0.9, 0, 0), (601, 11, 651, 201, 0.8, 0, 1), (598, 8, 653, 204, 0.5, 0, -1)) == 1


def test_a_cut_box_gives_way_to_the_neighbour_that_saw_the_person_whole():
    assert count((600, 10, 640, 200, 0.95, 4, 0), (600, 10, 660, 200, 0.6, 0, 1)) == 1


def test_two_people_side_by_side_stay_two():
    assert count((100, 10, 160, 200, 0.9, 0, 0), (150, 10, 210, 200, 0.8, 0, 0)) == 2


def test_two_people_who_overlap_stay_two_in_one_view_and_are_one_in_two():
    """Within a tile the network told them apart; between tiles the same overlap is one person seen twice."""
    one, other = (100, 10, 160, 200, 0.9), (116, 12, 176, 202, 0.8)
    assert count((*one, 0, 3), (*other, 0, 3)) == 2
    assert count((*one, 0, 3), (*other, 0, 4)) == 1


def test_a_torso_inside_a_person_goes_even_within_one_tile():
    assert count((100, 10, 160, 200, 0.9, 0, 0), (105, 15, 155, 100, 0.6, 0, 0)) == 1


def test_merge_does_not_depend_on_the_order_of_arrival():
    random = np.random.default_rng(0)
    corners = random.uniform(0, 900, (60, 2))
    boxes = np.hstack([corners, corners + random.uniform(20, 120, (60, 2)), random.permutation(60)[:, None] / 60])
    boxes = np.hstack([boxes, np.zeros((60, 1)), random.integers(-1, 8, (60, 1))]).astype(np.float32)
    expected = merge(boxes, 0.5, 0.7)
    for _ in range(5):
        np.testing.assert_array_equal(merge(random.permutation(boxes), 0.5, 0.7), expected)


def test_a_weak_box_counts_only_where_a_person_was():
    weak = np.array([[100, 10, 160, 200, 0.25]], np.float32)
    nearby = np.array([[95, 12, 158, 201, 0.9]], np.float32)
    assert len(hysteresis(weak, np.zeros((0, 5), np.float32), 0.35)) == 0
    assert len(hysteresis(weak, nearby, 0.35)) == 1
    assert len(hysteresis(weak, nearby + np.array([500, 0, 500, 0, 0]), 0.35)) == 0


def test_an_inverted_or_flat_box_removes_no_person():
    """An engine may give them; they overlap nothing and must not pass for a copy of who is there."""
    person = [0, 0, 100, 200, 0.5, 0, 0]
    for strange in ([60, 10, 40, 150, 0.9, 0, 1], [60, 150, 40, 10, 0.9, 0, 1], [50, 10, 50, 150, 0.9, 0, 1]):
        left = merge(np.array([strange, person], np.float32), 0.5, 0.7)
        assert person[:5] in [list(map(float, row)) for row in left.round(3)]
