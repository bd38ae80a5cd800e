"""Which group counts which camera: each camera has one group, evenly, and few move when a group comes or goes."""

from collections import Counter

import pytest

from peoplecounter.common.errors import AppError
from peoplecounter.common.settings import Settings
from peoplecounter.common.sources import known_sources
from peoplecounter.deploy.group.client import RunningGroup
from peoplecounter.deploy.group.share import GONE_S, GroupDirectory, SharedCamera, apply, owner, read_cameras

CAMERAS = {f"cam{i}": SharedCamera(url=f"rtsp://10.0.0.{i}/1") for i in range(240)}


def owners(members):
    return {name: owner(name, camera, members) for name, camera in CAMERAS.items()}


def test_every_camera_has_one_group_and_few_move():
    three, four = owners({0, 1, 2}), owners({0, 1, 2, 3})
    assert min(Counter(three.values()).values()) > 60
    moved = {name for name in CAMERAS if three[name] != four[name]}
    assert {four[name] for name in moved} == {3}
    assert 40 < len(moved) < 80
    assert owner("x", SharedCamera(url="a", group=7), {0, 1}) == 7


def test_a_group_that_is_away_for_a_moment_keeps_its_cameras():
    there, now = {"g-0.g", "g-2.g"}, [0.0]

    def resolve(name):
        if name not in there:
            raise OSError("no such host")

    groups = GroupDirectory("g-{}.g", own=0, groups_max=4, resolve=resolve, now_s=lambda: now[0])
    assert groups.find() == {0, 2}
    there.remove("g-2.g")
    now[0] = GONE_S
    assert groups.find() == {0, 2}
    now[0] = GONE_S + 1
    assert groups.find() == {0}


def test_the_list_becomes_the_sources_of_this_group(tmp_path):
    group = RunningGroup(Settings(run_dir=tmp_path))
    pinned = {"a": SharedCamera(url="a.mp4", group=0, loop=True), "b": SharedCamera(url="b.mp4", group=1)}
    assert apply(group, pinned, {0, 1}, own=0) == ["a: counted by this group"]
    assert known_sources(group.settings)["a"].source.loop
    assert apply(group, pinned, {0, 1}, own=0) == []
    moved = {"a": SharedCamera(url="a.mp4", group=1), "b": SharedCamera(url="b.mp4", group=0)}
    assert apply(group, moved, {0, 1}, own=0) == ["a: no longer counted by this group", "b: counted by this group"]
    assert list(known_sources(group.settings)) == ["b"]


@pytest.mark.parametrize(
    "text, message",
    [
        ('[a]\nurl = "rtsp://u:secret@h"\nrealtim = true', "invalid at realtim"),
        ("a = [", "not valid TOML"),
        ('["a/b"]\nurl = "x"', "Invalid camera name 'a/b'"),
    ],
)
def test_a_wrong_list_gives_an_error_without_its_passwords(tmp_path, text, message):
    (tmp_path / "cameras.toml").write_text(text)
    with pytest.raises(AppError, match=message) as refusal:
        read_cameras(tmp_path / "cameras.toml")
    assert "secret" not in str(refusal.value)
