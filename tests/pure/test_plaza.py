"""The synthetic plaza: the same seed gives the same pictures, and its truth keeps its own rule."""

import csv

import av
import numpy as np
import pytest

from peoplecounter.deploy.demo.crowd import VISIBLE_SHARE, Figure, Plaza
from peoplecounter.deploy.demo.plaza import HEADER, render_clip
from peoplecounter.deploy.demo.raster import Canvas
from peoplecounter.deploy.demo.scene import Thing

WIDTH, HEIGHT = 640, 360


@pytest.fixture(scope="module")
def plaza():
    return Plaza(WIDTH, HEIGHT, seed=5, people=16)


def block(left_px, top_px, right_px, bottom_px):
    """An opaque rectangle as a canvas."""
    canvas = Canvas(left_px, top_px, right_px, bottom_px)
    canvas.planes[:] = 100
    canvas.planes[3] = 1
    return canvas


def staged(plaza, monkeypatch, things, *blocks):
    """Truth of a frame in which the crowd is `blocks` = (canvas, depth in m), behind or before `things`."""
    figures = [Figure(number, z_m, canvas, (0.0, 1.7), (0, 0, 1, 1)) for number, (canvas, z_m) in enumerate(blocks)]
    monkeypatch.setattr(plaza, "_figures", lambda t_s: figures)
    monkeypatch.setattr(plaza, "things", things)
    return {box.person: box for box in plaza.frame(0.0)[1]}


def test_same_seed_same_pictures_and_truth(plaza):
    again = Plaza(WIDTH, HEIGHT, seed=5, people=16)
    again.frame(9.0)  # what was asked before must not matter
    for t_s in (0.0, 2.5):
        picture, truth = plaza.frame(t_s)
        picture_again, truth_again = again.frame(t_s)
        assert np.array_equal(picture, picture_again)
        assert truth == truth_again


def test_another_seed_is_another_plaza(plaza):
    picture, truth = plaza.frame(0.0)
    other, other_truth = Plaza(WIDTH, HEIGHT, seed=6, people=16).frame(0.0)
    assert np.abs(picture.astype(int) - other).mean() > 5
    assert [box.body for box in truth] != [box.body for box in other_truth]


def test_truth_boxes_are_inside_the_picture_and_hold_people(plaza):
    seen = [box for t_s in range(0, 20, 2) for box in plaza.frame(float(t_s))[1]]
    assert len(seen) > 60
    for box in seen:
        left, top, right, bottom = box.body
        assert 0 <= left < right <= WIDTH
        assert 0 <= top < bottom <= HEIGHT
        assert VISIBLE_SHARE <= box.visible <= 1
        if box.head:
            assert left - 3 <= box.head[0] < box.head[2] <= right + 3
            assert abs(box.head[1] - top) <= 0.12 * (bottom - top) + 4


def test_people_walk(plaza):
    before = {box.person: box.body for box in plaza.frame(0.0)[1]}
    after = {box.person: box.body for box in plaza.frame(2.0)[1]}
    moved = [abs(after[person][0] - body[0]) > 2 for person, body in before.items() if person in after]
    assert sum(moved) > len(moved) / 2


def test_a_person_behind_another_is_truth_only_while_enough_shows(plaza, monkeypatch):
    behind, before = (block(100, 100, 140, 200), 20.0), (block(100, 100, 129, 200), 10.0)
    assert set(staged(plaza, monkeypatch, [], behind, before)) == {1}  # 27.5 % show
    before = (block(100, 100, 127, 200), 10.0)
    truth = staged(plaza, monkeypatch, [], behind, before)  # 32.5 % show
    assert set(truth) == {0, 1}
    assert truth[0].visible == pytest.approx(0.325)
    assert truth[0].body == (100, 100, 140, 200)  # the whole silhouette, hidden part included


def test_a_thing_hides_who_is_behind_it_and_not_who_is_before_it(plaza, monkeypatch):
    wall = Thing(block(90, 90, 150, 210), 0.0, 15.0, 1.0)
    crowd = (block(100, 100, 140, 200), 20.0), (block(200, 100, 240, 200), 20.0)
    assert set(staged(plaza, monkeypatch, [wall], *crowd)) == {1}
    crowd = (block(100, 100, 140, 200), 12.0), (block(200, 100, 240, 200), 20.0)
    assert set(staged(plaza, monkeypatch, [wall], *crowd)) == {0, 1}


def test_the_picture_edge_hides_too(plaza, monkeypatch):
    outside = block(-200, 100, -160, 200), 10.0
    mostly = block(-30, 100, 10, 200), 10.0  # a quarter is inside
    half = block(WIDTH - 20, 100, WIDTH + 20, 200), 10.0
    truth = staged(plaza, monkeypatch, [], outside, mostly, half)
    assert set(truth) == {2}
    assert truth[2].body == (WIDTH - 20, 100, WIDTH, 200)


def test_clip_and_table_agree(tmp_path):
    clip, table = tmp_path / "clip.mp4", tmp_path / "clip.csv"
    render_clip(clip, table, WIDTH, HEIGHT, frames=7, fps=10, seed=5, people=16)
    with av.open(str(clip)) as container:
        decoded = [frame.to_ndarray(format="rgb24", src_colorspace="ITU709") for frame in container.decode(video=0)]
    with table.open(newline="") as rows:
        truth = list(csv.DictReader(rows))
    assert list(truth[0]) == HEADER
    assert len(decoded) == 7
    assert {int(row["frame"]) for row in truth} == set(range(7))
    plaza = Plaza(WIDTH, HEIGHT, seed=5, people=16)
    for index, picture in enumerate(decoded):
        drawn, boxes = plaza.frame(index / 10)
        assert np.abs(picture.astype(int) - drawn).mean() < 6  # the encoder's loss, and no colour shift
        assert [int(row["person"]) for row in truth if int(row["frame"]) == index] == [box.person for box in boxes]


def test_a_nearer_camera_sees_larger_people():
    tallest = []
    for camera in ("far", "middle", "near"):
        plaza = Plaza(WIDTH, HEIGHT, seed=5, people=12, camera=camera)
        heights = [b.body[3] - b.body[1] for t_s in range(0, 30, 3) for b in plaza.frame(float(t_s))[1]]
        assert len(heights) > 30 and min(heights) > 0
        tallest.append(max(heights) / HEIGHT)
    assert tallest == sorted(tallest) and tallest[0] < 0.5 and tallest[2] > 0.7
