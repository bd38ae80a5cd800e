"""Real RTSP cameras die, freeze, change and stay silent: every picture is counted right, and nothing leaks.

From one frame to the next a clip shows 7 squares more (or less, played backwards), modulo 23, also where it begins
again: an opening's counts are right when they all belong to one place in the clip.
"""

import json
import socket
from itertools import groupby
from pathlib import Path

import av
import pytest

from peoplecounter.common.process.runtime import usage
from tests.support.group import SERVICES
from tests.support.lossy import LossyProxy
from tests.support.rtsp import PASSWORD, RtspCamera, missing
from tests.support.squares import picture

pytestmark = pytest.mark.skipif(bool(lacking := missing()), reason=f"this machine lacks {lacking}")

SMALL, LARGE = (208, 144), (272, 208)  # 3 x 2 and 4 x 3 tiles
LAP = 2 * 23  # frames of a clip: its counts go on over its end
QUICK = {
    "decoder__open_timeout_s": "6",
    "decoder__read_timeout_s": "1",
    "decoder__backoff_min_s": "0.2",
    "decoder__backoff_max_s": "1",
}
ENOUGH = 20  # complete counts that show that counting has resumed
CYCLES, SETTLED = 20, 3
GROWTH_MB = 8


def encode(path: Path, size=SMALL, codec="libx264", fps=30, backwards=False) -> Path:
    """A clip whose keyframes are a fifth of a second apart."""
    options = {"preset": "ultrafast", "crf": "12", "g": str(max(1, fps // 5)), "bf": "0"}
    options |= {"x265-params": "log-level=error:bframes=0"} if codec == "libx265" else {}
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps, options=options)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for seq in range(LAP)[:: -1 if backwards else 1]:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(seq, *size), "rgb24")))
        container.mux(stream.encode())
    return path


@pytest.fixture
def camera():
    """Makes cameras; none survives the test."""
    made = []

    def make(*files, **options):
        made.append(RtspCamera(*files, **options))
        return made[-1].start()

    yield make
    for one in made:
        one.kill()


@pytest.fixture
def counting(group):
    """Starts a group for {source: URL} and waits until it counts them; the password is never readable."""
    groups = []

    def make(urls):
        g = group({name: {"url": url} for name, url in urls.items()}, **QUICK)
        groups.append(g)
        g.start(*(name for name in SERVICES if name != "decoder.cam"), *(f"decoder.{name}" for name in urls))
        g.wait_for(lambda: all(complete(g, name) >= ENOUGH for name in urls), "every camera to be counted", 60)
        return g

    yield make
    for g in groups:
        assert PASSWORD in json.dumps(g.environment)
        assert PASSWORD not in json.dumps(g.messages)
        assert PASSWORD not in Path(g.log.name).read_text()


def complete(g, source) -> int:
    return sum(content["complete"] for content in g.of("counts", source))


def state(g, source="cam") -> str:
    return g.of("status", source)[-1]["state"]


def lost(g, source="cam") -> float:
    """Seconds until the source is reported as gone, and why."""
    seconds = g.wait_for(lambda: state(g, source) == "reconnecting", "the loss to be noticed")
    assert g.of("status", source)[-1]["detail"]
    return seconds


def runs(counts: list[dict]) -> int:
    """Into how few pieces, each of consecutive frames of a clip, the counts fall: 10 * 7 = 1 (mod 23)."""
    number, places = 0, set()
    for content in counts:
        frame = (content["count"] - 1) * 10
        here = {(sign, (frame - sign * content["seq"]) % 23) for sign in (1, -1)}
        places = places & here
        if not places:
            number, places = number + 1, here
    return number


def check(g, source="cam", backwards=False, cut=0):
    """Frames were counted right, as many times anew as the source was opened; the last ones are of the clip now played.

    Every frame was counted or dropped with a reason, and no process has ended. `cut`: breaks of an HEVC stream, whose
    last picture may be half of one: FFmpeg fills in the other half, and says so in H.264 alone.
    """
    counts = [content for content in g.of("counts", source) if content["complete"]]
    opened = [key for key, _ in groupby(c["state"] for c in g.of("status", source))].count("online")
    shown = [(content["seq"], content["count"], content["pts_s"]) for content in counts]
    assert runs(counts) <= opened + cut, str(shown)
    sign = -1 if backwards else 1
    assert len({(count["count"] * 10 - sign * count["seq"]) % 23 for count in counts[-ENOUGH // 2 :]}) == 1, str(shown)
    g.check_books(source)
    assert all(process.poll() is None for process in g.processes.values())


def test_a_camera_that_offers_udp_only_is_counted(counting, camera, tmp_path):
    """`auto` asks for TCP, is refused, and takes UDP."""
    g = counting({"cam": camera(encode(tmp_path / "clip.mp4"), transport="udp").url})
    check(g)


@pytest.mark.parametrize("transport", ["tcp", "udp"])
@pytest.mark.parametrize("codec", ["libx264", "libx265"])
def test_no_count_of_a_lossy_link_is_wrong(group, camera, tmp_path, transport, codec):
    """Packets are lost, repeated and swapped: what is counted as complete is right, and the books balance."""
    cam = camera(encode(tmp_path / "clip.mp4", codec=codec), transport=transport)
    proxy = LossyProxy(cam.port, rate=0.004)
    url = cam.url.replace(str(cam.port), str(proxy.port))
    g = group({"cam": {"url": url, "transport": transport}}, **QUICK)
    g.start()
    g.wait_for(lambda: complete(g, "cam") >= 150 and proxy.faults["lost"] >= 5, "frames to be counted", 90)
    proxy.close()
    g.check_books()
    counts = [c for c in g.of("counts", "cam") if c["complete"]]
    opened = [key for key, _ in groupby(c["state"] for c in g.of("status", "cam"))].count("online")
    # frame n of the clip shows 1 + 7n % 23, and 7 * 10 = 1 (mod 23): this is the same for all frames of an opening
    places = [((c["count"] - 1) * 10 - round(c["pts_s"] * 30)) % 23 for c in counts if c["pts_s"] is not None]
    assert len(list(groupby(places))) <= opened, (places, proxy.faults)
    assert g.totals()["dropped"].get("decode_error", 0) > 0


@pytest.mark.parametrize("how", ["killed", "frozen"])
def test_a_camera_that_was_gone_is_counted_again(counting, camera, tmp_path, how):
    cam = camera(encode(tmp_path / "clip.mp4"))
    g = counting({"cam": cam.url})
    gone, back = (cam.kill, cam.start) if how == "killed" else (cam.stop, cam.cont)
    gone()
    noticed_s = lost(g)
    back()
    online_s = g.wait_for(lambda: state(g) == "online", "it to be online")
    print(
        f"{how}: noticed after {noticed_s:.2f} s, online {online_s:.2f} s, counts {g.wait_counts(ENOUGH):.2f} s later"
    )
    check(g)


def test_a_camera_may_come_back_with_another_size_and_codec(counting, camera, tmp_path):
    cam = camera(encode(tmp_path / "small.mp4"))
    g = counting({"cam": cam.url})
    for clip, backwards, cut in [
        (encode(tmp_path / "large.ts", LARGE, backwards=True), True, 0),
        (encode(tmp_path / "hevc.mp4", LARGE, "libx265"), False, 0),
        (encode(tmp_path / "small.ts", SMALL, backwards=True), True, 1),
    ]:
        cam.restart(clip)
        lost(g)
        print(f"{clip.name}: {ENOUGH} counts {g.wait_counts(ENOUGH):.2f} s after the loss")
        check(g, backwards=backwards, cut=cut)


def test_a_camera_that_comes_and_goes_costs_the_decoder_no_memory(counting, camera, tmp_path):
    cam = camera(encode(tmp_path / "clip.mp4", fps=60))
    g = counting({"cam": cam.url})

    def holds() -> tuple[float, int, int]:
        """Resident memory, MB; file descriptors; threads."""
        used = usage(g.processes["decoder.cam"].pid)
        return used["memory_bytes"] / 2**20, used["descriptors"], used["threads"]

    for cycle in range(CYCLES):
        if cycle == SETTLED:
            early = holds()
        cam.restart()
        lost(g)
        g.wait_for(lambda: state(g) == "online", "it to be online")
        g.wait_counts(3)
    late = holds()
    print(f"after {SETTLED} and {CYCLES} cycles: {early}, {late}")
    assert late[0] < early[0] + GROWTH_MB
    assert late[1:] == early[1:]
    g.wait_counts(ENOUGH)
    check(g)


def test_three_dead_cameras_of_ten_do_not_slow_down_the_others(counting, camera, tmp_path):
    """One that is down, one that accepts and says nothing, one that freezes while it is played."""
    clip = encode(tmp_path / "clip.mp4", (144, 80), fps=5)
    seven, (down, mute, frozen) = camera(*[clip] * 7), [camera(clip) for _ in range(3)]
    alive = {f"alive{i}": seven.url_of(f"cam{i}") for i in range(7)}
    dead = {"down": down.url, "mute": mute.url, "frozen": frozen.url}
    g = counting(alive | dead)

    def counts_s() -> float:
        """Seconds that each of the seven takes for so many more counts."""
        target = {name: complete(g, name) + ENOUGH for name in alive}
        return g.wait_for(lambda: all(complete(g, name) >= more for name, more in target.items()), "the seven")

    all_s, dropped = counts_s(), {name: g.totals(name)["dropped"] for name in alive}
    frozen.stop()
    down.kill()
    mute.kill()
    with socket.create_server(("127.0.0.1", mute.port)):
        for name in dead:
            lost(g, name)
        seven_s = counts_s()
        print(
            f"{ENOUGH} counts of seven cameras: {all_s:.2f} s beside three that live, {seven_s:.2f} s beside dead ones"
        )
        assert seven_s < 1.5 * all_s
        assert {name: state(g, name) for name in dead} == dict.fromkeys(dead, "reconnecting")
    assert {name: g.totals(name)["dropped"] for name in alive} == dropped
    for name in alive:
        check(g, name)
