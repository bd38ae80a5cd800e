"""`peoplecounter models`: what is known, what a file is taken for, and its boxes on a picture."""

import av
import numpy as np

from peoplecounter.common.engine.layouts import NAMES
from peoplecounter.common.errors import CONFIG
from tests.support.cli import peoplecounter
from tests.support.squares import VARIABLES, expected, make_model, picture


def test_every_known_head_is_listed(tmp_path):
    lines = peoplecounter(tmp_path / "run", "models").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["HEAD", *NAMES]


def test_a_model_is_described_and_its_boxes_are_drawn(tmp_path):
    av.VideoFrame.from_ndarray(picture(3), "rgb24").save(tmp_path / "squares.png")
    model = make_model(tmp_path / "m.onnx")
    done = peoplecounter(
        tmp_path / "run", "models", "check", model, "--image", tmp_path / "squares.png", "--out", tmp_path / "out.png",
        **VARIABLES,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"found    {expected(3)} people" in done.stdout and "head     rows:" in done.stdout
    with av.open(str(tmp_path / "out.png")) as container:
        drawn = next(container.decode(video=0)).to_ndarray(format="rgb24").astype(int)
    red = (drawn[..., 0] > 200) & (drawn[..., 1] < 100)
    inner = 16 - 2 * 5  # a square's side less the model's inset, px
    assert red.sum() == expected(3) * inner**2  # outlines of 3 px leave nothing inside
    assert np.abs(drawn[~red] - picture(3)[~red]).max() <= 3


def test_a_model_that_cannot_be_read_is_one_clear_error(tmp_path):
    (tmp_path / "text.onnx").write_text("no model")
    done = peoplecounter(tmp_path / "run", "models", "check", tmp_path / "text.onnx", "--out", tmp_path / "out.png")
    assert done.returncode == CONFIG and len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out.png").exists()


def test_a_picture_that_is_missing_is_one_clear_error(tmp_path):
    model = make_model(tmp_path / "m.onnx")
    done = peoplecounter(tmp_path / "run", "models", "check", model, "--image", tmp_path / "no.png")
    assert done.returncode == 66 and "no such file" in done.stderr
