"""Tracks against the truth: cases to verify by hand, and one whose scores TrackEval gave."""

import json
from itertools import permutations
from random import Random

import numpy as np
import pytest

from peoplecounter.common.errors import BAD_DATA, NO_INPUT, AppError
from peoplecounter.deploy.report.track_scores import best_pairs, compare_tracks, read_found_tracks, read_true_tracks

LEFT, RIGHT = [0, 0, 100, 200], [300, 0, 400, 200]


def tracks_of(*frames):
    """Tracks of frames 0, 1, … that are each {id: box}."""
    return {
        number: (np.array(list(frame), object), np.array(list(frame.values()), float).reshape(-1, 4))
        for number, frame in enumerate(frames)
    }


def noisy_case():
    """(found, true) of 6 people who cross in 80 frames: noise, missed and false boxes, a swap, splits, empty frames.

    Random.random() and uniform() give the same numbers in every version of Python.
    """
    random, found, true = Random(7), [], []
    starts = [(random.uniform(0, 300), random.uniform(0, 60), random.uniform(-4, 4)) for _ in range(6)]
    for frame in range(80):
        true.append({})
        found.append({})
        for person, (x, y, speed) in enumerate(starts):
            left, top = x + speed * frame, y + frame / 2
            box = [left, top, left + 60, top + 120]
            if frame >= 8 * person and frame not in (20, 21):
                true[-1][str(person)] = box
            track = {0: 1, 1: 0}.get(person, person) if frame >= 45 else person
            name = f"door/{track}" if person != 4 or frame < 60 else "door/4b"
            if random.random() < 0.85 and frame not in (50, 51):
                found[-1][name] = [edge + random.uniform(-14, 14) for edge in box]
        if random.random() < 0.2:
            x = random.uniform(0, 300)
            found[-1][f"door/false{frame // 20}"] = [x, 40, x + 60, 160]
    return tracks_of(*found), tracks_of(*true)


def test_scores_are_those_of_trackeval():
    """The numbers are from TrackEval 1.3.0 (PyPI trackeval==1.3.0): MotChallenge2DBox without its preprocessing."""
    assert compare_tracks(*noisy_case()) == {
        "frames": 80, "idf1": 0.5483, "idp": 0.5097, "idr": 0.5932, "hota": 0.3481, "deta": 0.4278, "assa": 0.2839,
        "switches": 7, "true_tracks": 6, "found_tracks": 11,
    }  # fmt: skip


def test_perfect_tracks():
    true = tracks_of({"1": LEFT, "2": RIGHT}, {}, {"1": LEFT, "2": RIGHT})
    scores = compare_tracks(tracks_of({"b": RIGHT, "a": LEFT}, {}, {"a": LEFT, "b": RIGHT}), true)
    assert scores == {
        "frames": 3, "idf1": 1, "idp": 1, "idr": 1, "hota": 1, "deta": 1, "assa": 1,
        "switches": 0, "true_tracks": 2, "found_tracks": 2,
    }  # fmt: skip


def test_two_tracks_that_swap_their_people():
    """Each track is right in 5 of its 10 boxes. Each pair shares 5 of the 10 + 10 - 5 boxes that either has."""
    true = tracks_of(*[{"1": LEFT, "2": RIGHT}] * 10)
    found = tracks_of(*[{"a": LEFT, "b": RIGHT}] * 5, *[{"b": LEFT, "a": RIGHT}] * 5)
    scores = compare_tracks(found, true)
    assert (scores["idf1"], scores["switches"], scores["deta"]) == (0.5, 2, 1)
    assert (scores["assa"], scores["hota"]) == (round(1 / 3, 4), round((1 / 3) ** 0.5, 4))


def test_a_person_with_two_tracks():
    """6 of 10 boxes are of one track; AssA is (6 · 6/10 + 4 · 4/10) / 10."""
    scores = compare_tracks(tracks_of(*[{"a": LEFT}] * 6, *[{"b": LEFT}] * 4), tracks_of(*[{"1": LEFT}] * 10))
    assert (scores["idf1"], scores["switches"], scores["found_tracks"]) == (0.6, 1, 2)
    assert (scores["assa"], scores["hota"]) == (0.52, round(0.52**0.5, 4))


def test_missed_and_false_boxes():
    """One of two people is found, and a box without a person."""
    scores = compare_tracks(
        tracks_of({"a": LEFT, "b": [600, 0, 700, 200], "c": [800, 0, 900, 200]}), tracks_of({"1": LEFT, "2": RIGHT})
    )
    assert (scores["idr"], scores["idp"], scores["idf1"]) == (0.5, round(1 / 3, 4), 0.4)
    assert (scores["deta"], scores["assa"]) == (0.25, 1)


def test_half_of_a_box_is_the_limit():
    """An IoU of 0.5 is right for IDF1, and for 10 of HOTA's 19 limits."""
    scores = compare_tracks(tracks_of({"a": [0, 0, 100, 100]}), tracks_of({"1": LEFT}))
    assert (scores["idf1"], scores["hota"]) == (1, round(10 / 19, 4))
    assert compare_tracks(tracks_of({"a": [0, 0, 100, 99]}), tracks_of({"1": LEFT}))["idf1"] == 0


@pytest.mark.parametrize("between, count", [([], 0), ([{}], 0), ([{"c": RIGHT}], 1)])
def test_a_pair_of_the_frame_before_stays(between, count):
    """Track a keeps its person although b fits better; over an empty frame too, but not when a was lost (TrackEval)."""
    found = tracks_of({"a": LEFT}, *between, {"a": [0, 0, 100, 160], "b": LEFT})
    assert compare_tracks(found, tracks_of(*[{"1": LEFT}] * len(found)))["switches"] == count


def test_only_frames_that_both_have():
    found = {7: tracks_of({"a": LEFT})[0], 1: tracks_of({"a": LEFT})[0]}
    scores = compare_tracks(found, tracks_of(*[{"1": LEFT}] * 5))
    assert (scores["frames"], scores["idf1"]) == (1, 1)
    assert compare_tracks(tracks_of({}), tracks_of({}))["hota"] == 0
    with pytest.raises(AppError, match="no frame in common"):
        compare_tracks({7: found[7]}, tracks_of({}))


def test_frames_that_cannot_be_scored():
    twice = {0: (np.array(["a", "a"], object), np.array([LEFT, RIGHT], float))}
    with pytest.raises(AppError, match="Frame 0 has an id twice: a, a"):
        compare_tracks(twice, tracks_of({"1": LEFT}))
    with pytest.raises(AppError, match="Frame 0 has a box that is not a number"):
        compare_tracks(tracks_of({"a": [0, 0, float("nan"), 1]}), tracks_of({"1": LEFT}))


def test_best_pairs_have_the_largest_total():
    random = np.random.default_rng(3)
    for shape in [(1, 1), (2, 5), (5, 2), (4, 4), (5, 5), (0, 3), (3, 0)] * 5:
        for score in (random.random(shape), random.integers(-2, 3, shape)):
            rows, columns = best_pairs(score)
            wide = score if shape[0] <= shape[1] else score.T
            totals = (wide[range(len(wide)), list(of)].sum() for of in permutations(range(wide.shape[1]), len(wide)))
            assert score[rows, columns].sum() == pytest.approx(max(totals))
            assert len(set(rows.tolist())) == len(set(columns.tolist())) == len(rows) == min(shape)


def test_files(tmp_path):
    """A box without an id is left out, and the truth has its empty frames."""
    truth, lines = tmp_path / "gt.csv", tmp_path / "out.jsonl"
    truth.write_text("frame,person,bodyL,bodyT,bodyR,bodyB\n0,9,0,0,100,200\n2,9,0,0,100,200\n2,4,300,0,400,200\n")
    boxes, ids = [[*LEFT, 0.9], [*RIGHT, 0.8]], ["door/ab12/7", None]
    lines.write_text(
        "\n".join(
            json.dumps({"source": "door", "seq": seq, "count": 2 - seq, "boxes": boxes[seq:], "ids": ids[seq:]})
            for seq in (0, 1, 2)
        )
    )
    true, found = read_true_tracks(truth), read_found_tracks(lines)
    assert {frame: ids.tolist() for frame, (ids, _) in true.items()} == {0: ["9"], 1: [], 2: ["9", "4"]}
    assert {frame: ids.tolist() for frame, (ids, _) in found.items()} == {0: ["door/ab12/7"], 1: [], 2: []}
    assert true[2][1].tolist() == [LEFT, RIGHT] and true[1][1].shape == (0, 4)
    assert found[0][1].tolist() == [LEFT] and found[2][1].shape == (0, 4)
    scores = compare_tracks(found, true)
    assert (scores["frames"], scores["idp"], scores["idr"]) == (3, 1, round(1 / 3, 4))


@pytest.mark.parametrize("ids", [{}, {"ids": None}, {"ids": ["door/ab12/7", None]}])
def test_lines_without_ids(tmp_path, ids):
    path = tmp_path / "out.jsonl"
    path.write_text(json.dumps({"source": "door", "seq": 0, "count": 1, "boxes": [[*LEFT, 0.9]], **ids}))
    with pytest.raises(AppError, match="`ids`") as error:
        read_found_tracks(path)
    assert error.value.code == BAD_DATA


def test_files_that_are_not_there_or_have_no_people(tmp_path):
    for read in (read_found_tracks, read_true_tracks):
        with pytest.raises(AppError, match="cannot be read") as error:
            read(tmp_path / "none")
        assert error.value.code == NO_INPUT
    path = tmp_path / "gt.csv"
    path.write_text("frame,bodyL,bodyT,bodyR,bodyB\n0,0,0,100,200\n")
    with pytest.raises(AppError, match="needs a `person`"):
        read_true_tracks(path)
