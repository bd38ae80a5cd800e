"""`views` and `tune` say what levels cost and find, and recommend those that a camera needs."""

import tomllib

import av
import pytest

from peoplecounter.common.settings import Settings
from peoplecounter.deploy.demo.plaza import render_clip
from tests.support.cli import peoplecounter
from tests.support.squares import make_model


@pytest.fixture(scope="module")
def near(tmp_path_factory):
    """A near camera's clip, whose people are large, and its truth."""
    clip = tmp_path_factory.mktemp("near") / "near.mp4"
    render_clip(clip, clip.with_suffix(".csv"), 1920, 1080, 8, 1, 40, 8, "near")
    return clip


def table(lines, first):
    """The rows of the table whose header begins with this word."""
    start = next(i for i, line in enumerate(lines) if line.startswith(first))
    rows = []
    for line in lines[start + 1 :]:
        if not line or line.startswith("The "):
            break
        rows.append(line)
    return rows


def size_of(png):
    with av.open(str(png)) as container:
        return container.streams.video[0].width, container.streams.video[0].height


def test_views_are_listed_with_their_costs_and_drawn(run_dir, near, tmp_path):
    out = tmp_path / "views.png"
    done = peoplecounter(run_dir, "views", near, "--out", out)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "1920x1080, 11 images a frame" in lines[0]
    rows = [row.split() for row in table(lines, "LEVEL")]
    assert [row[:3] for row in rows] == [["whole", "640x360", "1"], ["0.5", "960x540", "2"], ["1", "1920x1080", "8"]]
    assert size_of(out) == (1600, 900)  # three panels of 800 px, two side by side


def test_views_of_a_source_of_the_settings(run_dir, near, tmp_path):
    config = tmp_path / "c.toml"
    config.write_text(f'[sources.door]\nurl = "{near}"\nviews = {{ smallest_person_px = 64 }}\n')
    done = peoplecounter(run_dir, "views", "door", "--config", config, "--out", tmp_path / "v.png")
    assert "door: 1920x1080, 3 images a frame" in done.stdout, done.stderr


def test_tune_compares_models_of_several_sizes(run_dir, clip, model, tmp_path):
    larger = make_model(tmp_path / "larger.onnx", size=160)
    arguments = ("tune", clip, "--model", model, "--other", larger, "--frames", 9, "--out", tmp_path / "t.png")
    done = peoplecounter(run_dir, *arguments, PEOPLECOUNTER_VIEWS__OVERLAP="0.2")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    rows = [row.replace(" <- recommended", "").rsplit(maxsplit=4) for row in table(lines, "LEVELS")]
    names = [row[0] for row in rows]
    assert names[0] == "whole" and "whole of 160x160" in names
    sizes = {name: 160 if "160x160" in name else 80 for name in names}
    for name, images, megapixels, *_ in rows:
        assert float(megapixels) == pytest.approx(int(images) * sizes[name] ** 2 / 1e6, abs=0.051)
    advice = "\n".join(lines[next(i for i, line in enumerate(lines) if line.startswith("[")) :])
    settings = tomllib.loads(advice)
    assert ("engine" in settings) == any("160x160" in row and "<- recommended" in row for row in lines)
    if "engine" in settings:
        assert settings["engine"] == {"model": str(larger)}


def test_tune_recommends_fewer_images_for_large_people(run_dir, near, tmp_path):
    out = tmp_path / "tune.png"
    done = peoplecounter(run_dir, "tune", near, "--out", out, "--truth", near.with_suffix(".csv"))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "FROM THE TRUTH" in done.stdout
    choices = table(lines, "LEVELS")
    assert [row.split("  ")[0].rstrip() for row in choices] == ["whole", "whole + 0.5", "whole + 1", "whole + 0.5 + 1"]
    chosen = [row for row in choices if row.endswith("<- recommended")]
    assert len(chosen) == 1 and chosen[0] in choices[:2]  # the frame's own pixels are not needed
    advice = lines[lines.index("[sources.NAME.views]") + 1]
    settings = Settings(views=tomllib.loads(advice), run_dir=tmp_path)
    assert len(settings.views.table(1920, 1080, (640, 640))) < 11
    assert size_of(out) == (1920, 1080)


@pytest.mark.parametrize("command", ["views", "tune"])
def test_what_is_no_source_is_one_clear_error(run_dir, tmp_path, command):
    done = peoplecounter(run_dir, command, "nowhere.mp4", "--out", tmp_path / "x.png")
    assert done.returncode == 66 and len(done.stderr.splitlines()) == 1
    assert "neither a source of the settings nor a file" in done.stderr
    text = tmp_path / "text.mp4"
    text.write_text("no video")
    done = peoplecounter(run_dir, command, text, "--out", tmp_path / "x.png")
    assert done.returncode == 65 and len(done.stderr.splitlines()) == 1
