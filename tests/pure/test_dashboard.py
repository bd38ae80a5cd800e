"""What the dashboard shows and knows: colours, backgrounds, trails, who gets which frame, today's crossings."""

import asyncio
import json
from io import BytesIO

import av
import numpy as np
import pytest

from peoplecounter.common.errors import AppError
from peoplecounter.common.ipc.messages import SurfaceLayout
from peoplecounter.common.settings import DashboardSettings, Settings
from peoplecounter.deploy.dashboard.background import ENOUGH, EVERY_S, SAMPLES, Background
from peoplecounter.deploy.dashboard.known import Known
from peoplecounter.deploy.dashboard.live import ASLEEP_S, Client, LiveFrames, Wish
from peoplecounter.deploy.dashboard.outlines import ViewOutlines
from peoplecounter.deploy.dashboard.past import NONE, Past
from peoplecounter.deploy.dashboard.trail import COLUMNS, ROWS, Trail
from peoplecounter.deploy.report.pictures import jpeg, small

WIDTH, HEIGHT = 64, 48
NOBODY = np.zeros((0, 4))


def decoded(data: bytes) -> np.ndarray:
    with av.open(BytesIO(data)) as container:
        return next(container.decode(video=0)).to_ndarray(format="rgb24")


@pytest.mark.parametrize("width_max", [WIDTH, 20])
@pytest.mark.parametrize(
    "matrix, full_range, yuv",
    [("bt709", False, (63, 102, 240)), ("bt601", False, (81, 90, 240)), ("bt709", True, (54, 99, 255))],
)
@pytest.mark.parametrize("sample_bytes", [1, 2])
def test_red_is_red_whatever_its_matrix_range_and_depth(matrix, full_range, yuv, sample_bytes, width_max):
    layout = SurfaceLayout(WIDTH, HEIGHT, 70 * sample_bytes, matrix, full_range, sample_bytes)
    rows = np.empty((HEIGHT * 3 // 2, 70, sample_bytes), np.uint8)
    rows[:HEIGHT, :, -1] = yuv[0]
    rows[HEIGHT:, ::2, -1], rows[HEIGHT:, 1::2, -1] = yuv[1:]
    picture = decoded(jpeg(small(layout, rows.reshape(-1), width_max)))
    assert picture.shape == (round(HEIGHT * width_max / WIDTH), width_max, 3)
    assert np.abs(picture.astype(int) - [254, 0, 0]).max() <= 4


def frame(*persons: tuple[int, int, int, int], ground: int = 90) -> av.VideoFrame:
    """A grey place with white persons at x1, y1, x2, y2."""
    rgb = np.full((HEIGHT, WIDTH, 3), ground, np.uint8)
    for x1, y1, x2, y2 in persons:
        rgb[y1:y2, x1:x2] = 255
    return av.VideoFrame.from_ndarray(rgb, "rgb24").reformat(format="yuvj420p")


def shares(*boxes: tuple[int, int, int, int]) -> np.ndarray:
    return np.array(boxes).reshape(-1, 4) / [WIDTH, HEIGHT, WIDTH, HEIGHT]


def test_a_background_shows_the_place_and_nobody():
    """One walks under a box. One without a box stays for five samples. One sits all day and is found in 19 of 20: where
    he sits it stays grey."""
    background = Background()
    for number in range(8 * SAMPLES):
        walker, seated = (3 * number % 50, 4, 3 * number % 50 + 8, 20), (50, 30, 60, 44)
        unseen = [(20, 30, 28, 44)] if number % 40 in range(12, 17) else []
        assert background.is_due(number * EVERY_S)
        boxes = shares(walker, *([seated] if number % 20 else []))
        background.learn(frame(walker, seated, *unseen), boxes, number * EVERY_S)
        assert not background.is_due(number * EVERY_S + EVERY_S / 2)
        assert (background.picture is None) == (number < ENOUGH - 1)  # it is not known before most samples are
        if background.picture is not None:
            shown = background.picture.to_ndarray(format="rgb24").astype(int)
            assert shown.max() < 140
            assert (np.abs(shown[30:44, 20:28] - 90) < 8).all()
            assert (np.abs(shown[32:42, 52:58] - 128) < 8).all()
    background.learn(frame().reformat(32, 24), NOBODY, 1e6)
    assert background.picture is None  # pictures of another size begin anew


def test_a_trail_goes_on_where_the_clock_jumps():
    trail = Trail()
    box = np.array([[0.4, 0.1, 0.6, 0.9]])
    for time_s in (100.0, 100.2, 100.4, 5.0, 5.2, 900.0):
        assert trail.is_due(time_s)
        trail.add(time_s, box, ("cam/a/1",), (1920, 1080), 8e8 + time_s)
        assert not trail.is_due(time_s + 0.05)
    assert trail.seconds == pytest.approx(0.6 + 2 * 0.095)
    cells, since_s = trail.heat()
    assert cells.shape == (ROWS, COLUMNS) and cells.sum() == pytest.approx(0.6 + 3 * 0.095)
    assert cells[int(0.9 * ROWS), COLUMNS // 2] == cells.sum() and since_s == 8e8 + 100
    for number in range(4000):
        trail.add(1000 + number / 5, box, (None,), (1920, 1080), 9e8 + number)
    assert trail.seconds == pytest.approx(180, abs=1)  # bounded
    cells, since_s = trail.heat()
    assert 9e8 + 399 <= since_s <= 9e8 + 4000 - 3300 and cells.sum() < 3600 / 5 + 1  # the last hour


def run(scene):
    asyncio.run(asyncio.wait_for(scene, 10))


def test_the_newest_frame_wins_and_comes_after_the_last_was_acknowledged():
    async def scene():
        live, client, other = LiveFrames(), Client(), Client()
        live.start()
        for one in (client, other):
            assert live.enter(one)
        live.watch(client, [Wish("cam", 640, 60), Wish("yard", 320, 60)])
        live.watch(other, [Wish("cam", 960, 5)])
        cam = live.demand["cam"]
        assert (cam.width, cam.ready, live.demand["yard"].width) == (960, True, 320) and cam.interval_s == 1 / 60
        for seq in range(3):
            live.publish("cam", seq, b"{}", None)
        await asyncio.sleep(0)
        assert [(s, f.seq, w) for s, f, w in [await live.next_frame(client)]] == [("cam", 2, 640)]
        live.publish("cam", 3, b"{}", None)
        live.publish("yard", 7, b"{}", None)
        await asyncio.sleep(0.05)
        assert (await live.next_frame(client))[1].seq == 7  # nothing of cam before it is acknowledged
        live.acknowledge(client, "cam", 99)
        live.acknowledge(client, "cam", 2)
        assert (await live.next_frame(client))[1].seq == 3
        live.leave(client)
        assert set(live.demand) == {"cam"}

    run(scene())


def test_who_does_not_acknowledge_does_not_look(monkeypatch):
    async def scene():
        live, client = LiveFrames(), Client()
        live.start()
        live.enter(client)
        live.watch(client, [Wish("cam")])
        live.publish("cam", 1, b"{}", None)
        await live.next_frame(client)
        assert not live.demand["cam"].ready
        client.unacknowledged["cam"] = (1, client.unacknowledged["cam"][1] - ASLEEP_S - 1)
        live.update()
        assert live.demand == {}
        live.acknowledge(client, "cam", 1)
        assert live.demand["cam"].ready

    run(scene())


def test_a_picture_is_encoded_once_for_each_width(monkeypatch):
    encoded = []
    monkeypatch.setattr("peoplecounter.deploy.dashboard.live.jpeg", lambda *a: encoded.append(a[1]) or b"jpeg")

    async def scene():
        live, clients = LiveFrames(), [Client() for _ in range(6)]
        live.start()
        for number, client in enumerate(clients):
            live.enter(client)
            live.watch(client, [Wish("cam", 32 if number < 3 else 9 * WIDTH)])
        live.publish("cam", 1, b"{}", frame())
        frames = [await live.next_frame(client) for client in clients]
        assert await asyncio.gather(*(live.jpeg(*one) for one in frames)) == [b"jpeg"] * 6

    run(scene())
    assert sorted(encoded) == [32, WIDTH]


def test_today_is_what_was_counted_since_midnight():
    line = {"points": [[0.5, 0], [0.5, 1]], "inside": [0.9, 0.5]}
    known = Known(Settings(sources={"door": {"url": "rtsp://user:secret@camera/1", "lines": {"in": line}}}))
    status = {"state": "online", "live": True, "lines": {"in": {"in": 120, "out": 100}}, "zones": {}, "totals": {}}
    known.add("status", "door", json.dumps(status).encode())
    assert known.public("door")["in_today"] is None  # without a history nobody knows
    known.sources["door"].status = {}
    known.at_midnight = {"door.in": (113, 99)}
    assert known.public("door")["in_today"] is None  # nor before fusion has said anything
    known.add("status", "door", json.dumps(status).encode())
    known.at_midnight = {"door.in": (113, 99)}
    shown = known.public("door")
    assert (shown["in_today"], shown["out_today"], shown["lines"]["in"]["in_today"]) == (7, 1, 7)
    assert shown["lines"]["in"]["locked"] and "secret" not in json.dumps(shown) and known.public("yard") is None
    known.add("dropped", "door", b"{}")
    assert known.sources["door"].loses_frames


def test_an_area_that_stays_the_same_is_no_event():
    events = []
    known = Known(Settings(sources={}), lambda name, data: events.append(name))
    for second, people in enumerate((1, 1, 2, 2)):
        known.add("areas", "hall", json.dumps({"time": f"08:00:0{second}", "occupancy": people}).encode())
    known.add("alerts", "full", b'{"alert": "full", "state": "raised"}')
    known.add("raised", "group", b'{"full": {"area": "hall", "value": 2}}')
    assert events == ["area", "area", "alert"] and known.raised == {"full": {"area": "hall", "value": 2}}


def test_what_a_silent_fusion_said_is_not_the_state_of_now():
    known = Known(Settings(sources={"door": {"url": "rtsp://camera/1"}}))
    status = {"state": "online", "live": True, "seconds_since_frame": 0.1, "totals": {}}
    known.add("status", "door", json.dumps(status).encode())
    known.add("counts", "door", b'{"count": 3, "seq": 1, "time": "t", "complete": true}')
    assert known.public("door")["state"] == "online"
    known.sources["door"].status_s -= 10
    shown = known.public("door")
    assert shown["state"] == "stale" and shown["seconds_since_frame"] >= 10 and "Fusion" in shown["detail"]


def test_views_lie_in_their_frame():
    outlines = ViewOutlines(Settings(sources={}))
    views = outlines.of(Settings(sources={}).views, (1920, 1080), (1920, 1080))
    assert views[0] == {"level": pytest.approx(1 / 3, abs=1e-3), "x1": 0, "y1": 0, "x2": 1920, "y2": 1080}
    assert len(views) == 11 and {view["level"] for view in views} == {0.3333, 0.5, 1.0}
    assert all(0 <= v["x1"] < v["x2"] <= 1920 and 0 <= v["y1"] < v["y2"] <= 1080 for v in views)
    stored = outlines.of(Settings(sources={}).views, (1920, 1080), (960, 1080))  # pixels twice as wide as high
    assert [(v["x1"], v["y1"]) for v in stored] == [(v["x1"] / 2, v["y1"]) for v in views]


@pytest.mark.parametrize(
    "given, problem",
    [
        ({"listen": "0.0.0.0:80"}, "set token_file"),
        ({"listen": "192.168.1.5:443", "token_file": "t"}, "set tls_certificate and tls_key, or behind_proxy"),
        ({"listen": "127.0.0.1:80", "behind_proxy": True}, "set token_file"),
        ({"listen": "127.0.0.1:80", "hosts": ["a.example"]}, "set token_file"),
        ({"listen": "127.0.0.1:80", "tls_key": "k"}, "set both"),
        ({"listen": "127.0.0.1"}, "expected HOST:PORT"),
        ({"listen": "127.0.0.1:99999"}, "expected HOST:PORT"),
        ({"video": "blurred"}, "Input should be"),
    ],
)
def test_a_dashboard_beyond_loopback_is_refused_without_token_and_tls(given, problem):
    with pytest.raises(ValueError, match=problem):
        DashboardSettings(**given)


@pytest.mark.parametrize(
    "given, pictures",
    [
        ({}, "off"), ({"listen": "127.0.0.1:80"}, "on"), ({"listen": "[::1]:80"}, "on"),
        ({"listen": "localhost:80"}, "on"),
        ({"listen": "127.0.0.1:80", "video": "off"}, "off"),
        ({"listen": "0.0.0.0:80", "token_file": "t", "behind_proxy": True}, "off"),
        ({"listen": "0.0.0.0:80", "token_file": "t", "behind_proxy": True, "video": "pixelated"}, "pixelated"),
    ],
)  # fmt: skip
def test_pictures_leave_a_machine_only_when_its_owner_says_so(given, pictures):
    assert DashboardSettings(**given).pictures == pictures


def test_a_history_is_bounded_and_its_absence_is_told():
    none = Past(Settings(sources={}, history={"database": ""}))
    names = {"sources": [], "lines": [], "zones": [], "areas": []}
    with pytest.raises(AppError, match=NONE[:20]):
        none.intervals("hour", "today", "now", "", names)
    assert none.at_midnight() is None
    past = Past(Settings(sources={}, history={"database": "sqlite:////nowhere/history.db"}))
    past._engine = object()  # it is not asked
    for by, begin, end, problem in (
        ("1m", "2026-01-01", "2026-02-01", "too many, 3000 at most"),
        ("day", "2001-01-01", "2026-01-01", "longer than five"),
        ("day", "today", "yesterday", "is empty"), ("second", "today", "now", "Unknown interval"),
        ("day", "soon", "now", "is no time"),
    ):  # fmt: skip
        with pytest.raises(AppError, match=problem):
            past.intervals(by, begin, end, "", names)
    with pytest.raises(AppError, match="Unknown time zone"):
        past.intervals("day", "today", "now", "../etc/passwd", names)
