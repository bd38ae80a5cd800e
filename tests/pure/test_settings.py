"""A wrong setting is named in one error with the most similar one; deploy/SETTINGS.md is generated."""

import json
import os
from pathlib import Path

import pytest

from peoplecounter.common import settings
from peoplecounter.common.errors import NO_INPUT, AppError
from peoplecounter.common.sources import redacted
from peoplecounter.deploy.group.circus import source_name
from peoplecounter.deploy.group.foreground import overrides
from peoplecounter.deploy.report.settings_table import page


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    for variable in list(os.environ):
        if variable.startswith("PEOPLECOUNTER_"):
            monkeypatch.delenv(variable)


def config(monkeypatch, tmp_path, text):
    file = tmp_path / "peoplecounter.toml"
    file.write_text(text)
    monkeypatch.setenv("PEOPLECOUNTER_CONFIG", str(file))


def test_environment_wins_over_the_file_which_wins_over_the_defaults(monkeypatch, tmp_path):
    config(monkeypatch, tmp_path, '[decoder]\nslots = 5\n[engine]\nscore = 0.4\n[sources.door]\nurl = "a.mp4"\n')
    monkeypatch.setenv("PEOPLECOUNTER_DECODER__SLOTS", "7")
    loaded = settings.load_settings()
    assert (loaded.decoder.slots, loaded.engine.score, loaded.preprocess.slots) == (7, 0.4, 0)
    assert loaded.sources["door"].url == str(tmp_path / "a.mp4")


@pytest.mark.parametrize(
    "text, message",
    [
        ("[decoder]\nslot = 5", "'decoder.slot' does not exist: did you mean 'decoder.slots'?"),
        ("[engin]\nscore = 0.3", "'engin' does not exist: did you mean 'engine."),
        ('[sources.door]\nurl = "a"\nrealtim = true', "did you mean 'sources.NAME.realtime'?"),
        ("[preprocess]\nslots = 2", "'preprocess.slots' is '2': a ring needs at least 3 slots"),
        ("[decoder]\nslots = 1", "'decoder.slots' is '1': input should be greater than or equal to 3"),
        ('[fusion]\npublish = "tcp://0.0.0.0:5570"', "beyond loopback: set fusion.key"),
        ('[sources."a/b"]\nurl = "a"', "sources.a/b"),
        ("decoder = [", "not valid TOML"),
    ],
)
def test_a_wrong_file_gives_one_error(monkeypatch, tmp_path, text, message):
    config(monkeypatch, tmp_path, text)
    with pytest.raises(AppError) as refusal:
        settings.load_settings()
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert refusal.value.code == 78


def test_an_unknown_variable_is_rejected_with_the_most_similar_one(monkeypatch):
    monkeypatch.setenv("PEOPLECOUNTER_ENGINE__THREDS", "2")
    with pytest.raises(AppError, match="PEOPLECOUNTER_ENGINE__THREADS"):
        settings.load_settings()


def test_a_missing_file_is_reported(monkeypatch):
    monkeypatch.setenv("PEOPLECOUNTER_CONFIG", "/nowhere.toml")
    with pytest.raises(AppError, match=r"/nowhere\.toml cannot be read: No such file") as refusal:
        settings.load_settings()
    assert refusal.value.code == NO_INPUT


@pytest.mark.parametrize(
    "url, shown",
    [
        ("rtsp://user:secret@10.0.0.1/stream", "rtsp://10.0.0.1/stream"),
        ("rtsp://user:se@cret@10.0.0.1:554/stream", "rtsp://10.0.0.1:554/stream"),
        ("rtsp://user:secret@[fe80::1]:554/a", "rtsp://[fe80::1]:554/a"),
        ("rtsp://10.0.0.1:554/user=admin&password=secret&channel=1.sdp", "rtsp://10.0.0.1:554"),
        ("rtsp://10.0.0.1/live/user=admin_password=secret_channel=1", "rtsp://10.0.0.1/live"),
        ("rtsp://10.0.0.1/ch=1&PWD=secret", "rtsp://10.0.0.1/ch="),
        ("http://10.0.0.1/video.cgi?user=a&pwd=secret", "http://10.0.0.1/video.cgi"),
        ("http://10.0.0.1/video;token=secret", "http://10.0.0.1/video"),
        ("rtsp://user:secret@10.0.0.1", "rtsp://10.0.0.1"),
        ("/films/user@home.mp4", "/films/user@home.mp4"),
        ("file:///films/user@home.mp4", "file:///films/user@home.mp4"),
    ],
)
def test_no_secret_of_a_url_is_shown(url, shown):
    assert redacted(settings.section_settings(settings.SourceSettings, url=url).url) == shown
    assert "secret" not in source_name(url, set())


@pytest.mark.parametrize("password", ["se/cret", "se?cret", "se#cret", "/secret", "12/se:cret@"])
def test_a_password_that_splits_its_url_is_not_accepted_nor_shown(monkeypatch, tmp_path, password):
    url = f"rtsp://admin:x{password}@10.0.0.1/stream"
    with pytest.raises(AppError, match="percent-encode the password: / is %2F") as refusal:
        settings.section_settings(settings.SourceSettings, url=url)
    assert "cret" not in str(refusal.value)
    config(monkeypatch, tmp_path, f'[sources.door]\nurl = "{url}"\n')
    with pytest.raises(AppError, match=r"'sources\.door\.url' is not valid: percent-encode") as refusal:
        settings.load_settings()
    assert "cret" not in str(refusal.value)


@pytest.mark.parametrize("url, live", [("a.mp4", False), ("rtsp://cam/1", True), ("http://host/a.mp4", False)])
def test_what_is_live(url, live):
    assert settings.SourceSettings(url=url).live is live
    assert settings.SourceSettings(url=url, realtime=True).live


def test_the_page_of_settings_is_up_to_date():
    committed = (Path(__file__).parents[2] / "deploy" / "SETTINGS.md").read_text()
    assert committed == page(), (
        "regenerate it: python -m peoplecounter.deploy.report.settings_table > deploy/SETTINGS.md"
    )


def test_relative_paths_of_a_settings_file_are_relative_to_the_file(monkeypatch, tmp_path):
    text = '[engine]\nmodel = "model.onnx"\n[sources.door]\nurl = "clips/a.mp4"\n[sources.cam]\nurl = "rtsp://cam/1"\n'
    config(monkeypatch, tmp_path, text)
    loaded = settings.load_settings()
    assert loaded.engine.model == str(tmp_path / "model.onnx")
    assert [source.url for source in loaded.sources.values()] == [str(tmp_path / "clips/a.mp4"), "rtsp://cam/1"]


def test_what_the_command_line_calls_a_source(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "day=1.mp4").write_bytes(b"")
    asked = ["door=a.mp4", "day=1.mp4", "rtsp://cam/live?x=1", "-", "/dev/video0"]
    named = json.loads(overrides(asked, None, [], None, False, False, None)["PEOPLECOUNTER_SOURCES"])
    assert {name: source["url"] for name, source in named.items()} == {
        "door": str(tmp_path / "a.mp4"),
        "day-1": str(tmp_path / "day=1.mp4"),
        "live": "rtsp://cam/live?x=1",
        "stdin": f"/proc/{os.getpid()}/fd/0",
        "video0": "/dev/video0",
    }


@pytest.mark.parametrize("values", [{"rotate": 45}, {"pixel_aspect": "2"}, {"pixel_aspect": "0:1"}, {"transport": "x"}])
def test_a_picture_or_transport_that_makes_no_sense_is_an_error(values):
    with pytest.raises(AppError, match=next(iter(values))):
        settings.section_settings(settings.SourceSettings, url="a.mp4", **values)


def test_a_source_may_want_other_views_than_its_group(monkeypatch, tmp_path):
    text = """
        [views]
        smallest_person_px = 200
        overlap = 0.3
        [sources.door]
        url = "a.mp4"
        [sources.yard]
        url = "b.mp4"
        views = { levels = [1.0, 0.5] }
        [sources.hall]
        url = "c.mp4"
        views = { smallest_person_px = 64, overlap = 0.1 }
    """
    config(monkeypatch, tmp_path, text)
    loaded = settings.load_settings()
    door, yard, hall = (loaded.sources[name].views.within(loaded.views) for name in ("door", "yard", "hall"))
    assert (door.smallest_person_px, door.levels, door.overlap) == (200, None, 0.3)
    assert (yard.smallest_person_px, yard.levels, yard.overlap) == (None, (1.0, 0.5), 0.3)
    assert (hall.smallest_person_px, hall.levels, hall.overlap) == (64, None, 0.1)
    assert len(door.table(3840, 2160, (640, 640))) < len(hall.table(3840, 2160, (640, 640)))


@pytest.mark.parametrize(
    "text, message",
    [
        ("[views]\nlevels = [0.5]\nsmallest_person_px = 90", "set one of them"),
        ("[views]\nlevels = [0]", "greater than 0"),
        ("[views]\noverlap = 0.9", "less than or equal to 0.5"),
        ("[preprocess]\noverlap = 0.2", "'views.overlap'"),
    ],
)
def test_views_that_cannot_be_are_one_clear_error(monkeypatch, tmp_path, text, message):
    config(monkeypatch, tmp_path, text)
    with pytest.raises(AppError, match=message):
        settings.load_settings()


def test_levels_may_be_called_auto(monkeypatch, tmp_path):
    config(monkeypatch, tmp_path, '[views]\nlevels = "auto"')
    assert settings.load_settings().views.levels is None
