"""Which group counts which camera: every one somebody, evenly, and few move when a group comes or goes."""

from collections import Counter

import pytest

from peoplecounter.common import sources
from peoplecounter.common.errors import Refused
from peoplecounter.common.ipc.link import Timing
from peoplecounter.common.settings import Settings
from peoplecounter.deploy.group.client import Group
from peoplecounter.deploy.group.share import GONE_S, Camera, Members, apply, owner, read

CAMERAS = {f"cam{i}": Camera(url=f"rtsp://10.0.0.{i}/1") for i in range(240)}


def owners(members):
    return {name: owner(name, camera, members) for name, camera in CAMERAS.items()}


def test_every_camera_has_one_group_and_few_move():
    three, four = owners({0, 1, 2}), owners({0, 1, 2, 3})
    assert min(Counter(three.values()).values()) > 60
    moved = {name for name in CAMERAS if three[name] != four[name]}
    assert {four[name] for name in moved} == {3}
    assert 40 < len(moved) < 80
    assert owner("x", Camera(url="a", group=7), {0, 1}) == 7


def test_a_group_that_is_away_for_a_moment_keeps_its_cameras():
    there, now = {"g-0.g", "g-2.g"}, [0.0]

    def resolve(name):
        if name not in there:
            raise OSError("no such host")

    members = Members("g-{}.g", own=0, most=4, resolve=resolve, now=lambda: now[0])
    assert members.look() == {0, 2}
    there.remove("g-2.g")
    now[0] = GONE_S
    assert members.look() == {0, 2}
    now[0] = GONE_S + 1
    assert members.look() == {0}


def test_the_list_becomes_the_sources_of_this_group(tmp_path):
    group = Group(Settings(run_dir=tmp_path), tmp_path, Timing.of_ms(250, 2000))
    pinned = {"a": Camera(url="a.mp4", group=0, loop=True), "b": Camera(url="b.mp4", group=1)}
    assert apply(group, pinned, {0, 1}, own=0) == ["a: counted here"]
    assert sources.known(group.settings)["a"].source.loop
    assert apply(group, pinned, {0, 1}, own=0) == []
    moved = {"a": Camera(url="a.mp4", group=1), "b": Camera(url="b.mp4", group=0)}
    assert apply(group, moved, {0, 1}, own=0) == ["a: no longer counted here", "b: counted here"]
    assert list(sources.known(group.settings)) == ["b"]


@pytest.mark.parametrize(
    "text, said",
    [
        ('[a]\nurl = "rtsp://u:secret@h"\nrealtim = true', "wrong at realtim"),
        ("a = [", "not valid TOML"),
        ('["a/b"]\nurl = "x"', "'a/b' is no name"),
    ],
)
def test_a_wrong_list_is_a_sentence_without_its_passwords(tmp_path, text, said):
    (tmp_path / "cameras.toml").write_text(text)
    with pytest.raises(Refused, match=said) as refusal:
        read(tmp_path / "cameras.toml")
    assert "secret" not in str(refusal.value)
