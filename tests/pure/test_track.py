"""Tracks on made-up people: who is followed, and what ends a track."""

import numpy as np
import pytest

from peoplecounter.services.fusion.track import CONFIRMED_HITS, GAP_S, LOST_S, Tracker

STEP_S = 0.1
PERSON = np.array([0, 0, 40, 100, 0.9, 1.0])


def at(*places, sure=True):
    """Detections of people whose upper left corners lie at these places, and whether they are sure."""
    boxes = np.array([PERSON + np.array([x, y, x, y, 0, 0]) for x, y in places], np.float32).reshape(-1, 6)
    return boxes, np.full(len(boxes), sure)


def follow(tracker, *frames, since_s=0.0):
    """The numbers of each frame's detections."""
    numbers = []
    for index, frame in enumerate(frames):
        numbers.append(tracker.update(*frame, since_s + index * STEP_S).tolist())
        tracker.drop(tracker.ended())
    return numbers


def test_a_walker_keeps_the_number_and_is_confirmed():
    tracker = Tracker()
    numbers = follow(tracker, *(at((20 * i, 0)) for i in range(10)))
    assert numbers == [[1]] * 10
    assert tracker.confirmed.tolist() == [True]


def test_two_who_cross_paths_keep_their_numbers():
    """They are in the same place for a moment; their velocity tells them apart."""
    tracker = Tracker()
    numbers = follow(tracker, *(at((15 * i, 0), (300 - 15 * i, 6)) for i in range(21)))
    assert numbers[0] == numbers[-1] == [1, 2]
    assert tracker.last_number == 2


def test_a_weak_detection_continues_a_track_but_begins_none():
    tracker = Tracker()
    assert follow(tracker, at((0, 0)), at((5, 0), sure=False)) == [[1], [1]]
    assert tracker.update(*at((500, 0), sure=False), 0.2).tolist() == [0]
    assert tracker.last_number == 1


def test_a_hidden_person_is_found_again_where_the_walk_leads():
    tracker = Tracker()
    hidden = int(LOST_S / STEP_S) - 3
    numbers = follow(tracker, *(at((20 * i, 0)) for i in range(10)), *[at()] * hidden, at((20 * (10 + hidden), 0)))
    assert numbers[-1] == [1]


def test_one_who_is_gone_for_longer_is_somebody_new():
    tracker = Tracker()
    numbers = follow(tracker, *[at((0, 0))] * 5, *[at()] * (int(LOST_S / STEP_S) + 2), at((0, 0)))
    assert numbers[-1] == [2]


def test_a_tentative_track_ends_soon():
    tracker = Tracker()
    follow(tracker, at((0, 0)), *[at()] * 6)
    assert len(tracker.state) == 0
    assert CONFIRMED_HITS > 1


def test_frames_that_were_not_counted_age_nobody():
    """Of ten frames one was counted: nine tenths of the time between say nothing."""
    tracker = Tracker()
    follow(tracker, *[at((0, 0))] * 4)
    tracker.update(*at(), 0.3 + 0.9 * GAP_S, share=0.1)
    assert not tracker.ended().any()
    tracker.update(*at(), 0.3 + 1.8 * GAP_S, share=1.0)
    assert tracker.ended().all()


def test_numbers_are_never_used_again():
    tracker = Tracker()
    follow(tracker, at((0, 0)))
    tracker.drop(np.array([True]))
    assert tracker.update(*at((0, 0)), 1.0).tolist() == [2]


@pytest.mark.parametrize("ahead_s", [0.0, 0.05, 0.2])
def test_where_somebody_is_between_two_detections(ahead_s):
    tracker = Tracker()
    follow(tracker, *(at((20 * i, 0)) for i in range(30)))
    expected = 20 * 29 + 200 * ahead_s
    assert tracker.at(29 * STEP_S + ahead_s)[0, 0] == pytest.approx(expected, abs=3)


def test_feet_that_are_hidden_for_a_moment_stay_below_the_head():
    """A table hides the legs: the box becomes shorter, the person does not."""
    tracker = Tracker()
    short = at((0, 0))[0] * np.array([1, 1, 1, 0.5, 1, 1], np.float32)
    follow(tracker, *[at((0, 0))] * 20, (short, np.array([True])))
    assert tracker.boxes[0, 3] > 85


def test_a_state_that_was_stored_goes_on_in_the_same_way():
    frames = [at((20 * i, 3 * i), (400 - 9 * i, 50)) for i in range(20)]
    whole, first = Tracker(), Tracker()
    follow(whole, *frames)
    follow(first, *frames[:9])
    second = Tracker()
    second.state, second.time_s, second.last_number = first.state.copy(), first.time_s, first.last_number
    follow(second, *frames[9:], since_s=9 * STEP_S)
    assert np.allclose(second.state, whole.state)
