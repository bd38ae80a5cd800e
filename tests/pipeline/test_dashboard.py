"""The dashboard of a real group: what is shown is what was counted, and looking at it costs the counting nothing."""

import json
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosedError, ConnectionClosedOK

from peoplecounter.deploy.dashboard import live
from tests.support.dashboard import JPEG, Dashboard, acknowledge, parts, pixels
from tests.support.group import SERVICES
from tests.support.rtsp import free_port
from tests.support.squares import CELL, HEIGHT, WIDTH, expected
from tests.support.walk import FPS, make_walk, walking_model
from tests.support.walk import LINE as WALK_LINE

LOOKING = {"source": "cam", "width": WIDTH, "fps": 60}
LINE = {"points": [[0.5, 0.0], [0.5, 1.0]], "inside": [0.9, 0.5]}
ALL = (*SERVICES, "dashboard.0")


@pytest.fixture
def shown(group):
    """A group with a dashboard, and that dashboard."""

    def make(sources, *names, **settings):
        port = free_port()
        g = group(sources, dashboard__listen=f"127.0.0.1:{port}", **settings)
        g.start(*(names or ALL))
        dashboard = Dashboard(port)
        dashboard.wait()
        return g, dashboard

    return make


def slots_of(g) -> dict:
    """How many slots of the camera's ring are in each state."""
    rows = json.loads(g.peoplecounter("ps", "--json").stdout)
    return next(row["slots"] for row in rows if row["service"] == "decoder.cam")


def maps_a_ring(process) -> bool:
    return "surfaces." in Path(f"/proc/{process.pid}/maps").read_text()


def cells(rgb: np.ndarray) -> np.ndarray:
    """bool [rows, columns]: which cells of a picture of squares are white."""
    light = rgb.mean(2).reshape(HEIGHT // CELL, CELL, WIDTH // CELL, CELL).mean((1, 3))
    assert not ((light > 60) & (light < 195)).any()
    return light > 128


def check_sync(about: dict, jpeg: bytes) -> None:
    """Every box lies on a square of its own picture, and every square has a box."""
    white = cells(pixels(jpeg))
    boxes = np.array([box[:4] for box in about["boxes"]]).reshape(-1, 4)
    at = ((boxes[:, :2] + boxes[:, 2:]) / 2 // CELL).astype(int)
    assert white[at[:, 1], at[:, 0]].all() and white.sum() == len(boxes) == expected(about["seq"]) == about["count"]


def test_every_box_list_belongs_to_its_picture(shown, clip):
    """A thousand messages to two clients, while others want the same pictures smaller, each in a size of its own."""
    g, dashboard = shown({"cam": {"url": str(clip), "loop": True}})
    seen: dict[int, list[int]] = {WIDTH: [], WIDTH + 1: [], 136: [], 100: [], 64: []}  # width asked for -> seqs

    def follow(width):
        with dashboard.live({**LOOKING, "width": width}) as connection:
            while len(seen[WIDTH]) + len(seen[WIDTH + 1]) < 1000:
                about, jpeg = parts(connection.recv(20))
                assert about["complete"] and about["video"] == "on" and len(about["ids"]) == len(about["boxes"])
                if width >= WIDTH:
                    check_sync(about, jpeg)
                else:
                    assert pixels(jpeg).shape == (round(HEIGHT * width / WIDTH), width, 3)
                seen[width].append(about["seq"])
                acknowledge(connection, about)

    with ThreadPoolExecutor(len(seen)) as threads:
        list(threads.map(follow, seen))  # raises what one of them has raised
    for seqs in seen.values():
        assert seqs == sorted(set(seqs)) and len(seqs) > 100  # none twice, none out of order
    g.signal("dashboard.0", signal.SIGTERM)
    assert g.wait_exit("dashboard.0") == 0


def test_nobody_looking_maps_nothing_and_looking_ends(shown, clip):
    g, dashboard = shown({"cam": {"url": str(clip), "loop": True, "realtime": True}})
    g.wait_counts(10)
    process = g.processes["dashboard.0"]
    assert not maps_a_ring(process)
    with dashboard.live(LOOKING) as connection:
        _, jpeg = parts(connection.recv(10))
        assert jpeg.startswith(JPEG) and maps_a_ring(process)
    g.wait_for(lambda: not maps_a_ring(process), "the ring is let go", 10)
    status, headers, jpeg = dashboard.ask("/api/v1/sources/cam/picture?width=64")
    assert (status, headers["content-type"]) == (200, "image/jpeg") and pixels(jpeg).shape == (49, 64, 3)
    g.wait_for(lambda: not maps_a_ring(process), "the ring is let go", 10)


def test_a_client_that_never_acknowledges_gets_one_picture_and_is_forgotten(shown, clip):
    g, dashboard = shown({"cam": {"url": str(clip), "loop": True, "realtime": True}})
    with dashboard.live(LOOKING) as silent:
        about, _ = parts(silent.recv(10))
        with pytest.raises(TimeoutError):
            silent.recv(2)
        process = g.processes["dashboard.0"]
        g.wait_for(lambda: not maps_a_ring(process), "it does not look", live.ASLEEP_S + 5)
        acknowledge(silent, about)
        assert parts(silent.recv(10))[0]["seq"] > about["seq"]


def test_a_frozen_dashboard_costs_the_counting_nothing(shown, clip):
    """It holds a slot of a lossless source: all frames are counted, and the source ends all the same."""
    g, dashboard = shown({"cam": {"url": str(clip), "loop": True}})
    with dashboard.live({**LOOKING, "width": 16}) as connection:
        connection.recv(20)
        g.signal("dashboard.0", signal.SIGSTOP)  # the next frame is offered to it all the same
        g.wait_counts(120)
        assert slots_of(g)["leased"] >= 1
        g.peoplecounter("source", "remove", "cam")
        g.wait_for(g.ended, "the end", 30)
        assert g.wait_exit("decoder.cam") == 0
        g.signal("dashboard.0", signal.SIGCONT)
    assert not g.totals()["dropped"]
    g.check_books()
    assert all(c["count"] == expected(c["seq"]) for c in g.of("counts"))


def test_a_live_source_counts_on_while_a_viewer_is_frozen_and_killed(shown, clip):
    g, dashboard = shown({"cam": {"url": str(clip), "loop": True, "realtime": True}})
    with dashboard.live(LOOKING) as connection:
        connection.recv(20)
        g.signal("dashboard.0", signal.SIGSTOP)
        before = g.totals()
        g.wait_counts(60)
        g.signal("dashboard.0", signal.SIGKILL)
    g.wait_counts(30)
    lost = sum(g.totals()["dropped"].values()) - sum(before["dropped"].values())
    assert lost < 5  # a busy machine may drop one; a viewer that is waited for costs all 60
    g.start("dashboard.0")
    dashboard.wait()
    with dashboard.live(LOOKING) as connection:
        check_sync(*parts(connection.recv(20)))
    g.check_books()


def test_a_line_drawn_in_the_browser_counts_within_a_second_and_survives(shown, clip):
    source = {"url": str(clip), "loop": True, "realtime": True, "lines": {"fixed": LINE}}
    g, dashboard = shown({"cam": source})
    g.wait_counts(5)
    assert dashboard.json("/api/v1/sources/cam/lines/door", "PUT", LINE) == {"change": "added"}
    statuses = len(g.of("status"))
    g.wait_for(lambda: "door" in g.of("status")[-1].get("lines", {}), "the line is counted")
    assert len(g.of("status")) - statuses <= 2  # they come once a second
    assert dashboard.json("/api/v1/sources/cam/lines/door", "PUT", {**LINE, "band": 0.3}) == {"change": "changed"}
    shown_line = dashboard.json("/api/v1/sources/cam")["lines"]["door"]
    assert (shown_line["band"], shown_line["locked"]) == (0.3, False)
    status, why = dashboard.error("/api/v1/sources/cam/lines/fixed", "PUT", LINE)
    assert status == 409 and "in the settings file" in why
    assert dashboard.error("/api/v1/sources/cam/lines/fixed", "DELETE")[0] == 409
    assert dashboard.error("/api/v1/sources/cam/zones/door", "DELETE")[0] == 404
    g.signal("fusion.0", signal.SIGKILL)
    g.start("fusion.0")
    begin = len(g.of("status"))
    g.wait_for(lambda: any("door" in s.get("lines", {}) for s in g.of("status")[begin:]), "it survives")
    dashboard.json("/api/v1/sources/cam/zones/desk", "PUT", {"points": [[0, 0], [1, 0], [1, 1]]})
    g.wait_for(lambda: "desk" in g.of("status")[-1].get("zones", {}), "the zone is counted")
    dashboard.json("/api/v1/sources/cam/lines/door", "DELETE")
    dashboard.json("/api/v1/sources/cam/zones/desk", "DELETE")
    g.wait_for(lambda: list(g.of("status")[-1]["lines"]) == ["fixed"], "they are gone")
    assert {s["state"] for s in g.of("service", "decoder.cam") + g.of("service", "preprocess.0")} == {"up"}


def test_what_a_draft_would_have_counted(shown, tmp_path):
    """One square walks to and fro: a line in its way counts, one beside it does not, and so do zones and the heat."""
    walk, model = make_walk(tmp_path / "walk.mp4"), walking_model(tmp_path / "walk.onnx")
    source = {"url": str(walk), "loop": True, "realtime": True, "lines": {"door": WALK_LINE}}
    g, dashboard = shown({"cam": source}, engine__model=str(model))
    g.wait_for(lambda: sum(g.of("status")[-1].get("lines", {}).get("door", {"in": 0}).values()) >= 6, "crossings", 60)
    found = dashboard.json("/api/v1/sources/cam/try", "POST", {"line": WALK_LINE})
    truth = g.of("status")[-1]["lines"]["door"]
    assert abs(found["in"] - truth["in"]) <= 1 and abs(found["out"] - truth["out"]) <= 1 and found["in"] >= 2
    assert found["seconds"] == pytest.approx(len(g.of("counts")) / FPS, rel=0.25)
    beside = {"points": [[0.5, 0.0], [0.5, 0.2]], "inside": [0.9, 0.1]}
    assert dashboard.json("/api/v1/sources/cam/try", "POST", {"line": beside})["in"] == 0
    right = {"points": [[0.5, 0.0], [1.0, 0.0], [1.0, 1.0], [0.5, 1.0]], "enter_s": 0.2, "leave_s": 0.2}
    zone = dashboard.json("/api/v1/sources/cam/try", "POST", {"zone": right})
    assert zone["people_max"] == 1 and abs(zone["entered"] - truth["in"]) <= 1
    heat = dashboard.json("/api/v1/sources/cam/heat")
    cells = np.array(heat["cells"]).reshape(heat["rows"], heat["columns"])
    assert cells.sum() == pytest.approx(found["seconds"], rel=0.1)  # one person, all the time
    assert (np.flatnonzero(cells.sum(1)) == np.flatnonzero(cells.sum(1))[0]).all()  # whose feet keep to one row
    assert dashboard.error("/api/v1/sources/cam/try", "POST", {})[0] == 422


def everything(dashboard: Dashboard) -> list[tuple[str, str]]:
    """(method, path) of every operation of the OpenAPI document, for the source cam, and of the pages."""
    document = dashboard.json("/api/v1/openapi.json")
    names = {"source": "cam", "name": "x", "area": "a", "service": "infer_tiles"}
    found = [("GET", "/"), ("GET", "/api/v1/openapi.json")]
    for path, operations in document["paths"].items():
        for key, value in names.items():
            path = path.replace("{" + key + "}", value)
        found += [(method.upper(), path) for method in operations if "restart" not in path]
    return found


@pytest.mark.parametrize("video", ["off", "pixelated", "background"])
def test_what_is_not_to_be_seen_is_shown_nowhere(shown, clip, video):
    """Every operation of the API is tried, and the WebSocket, by all of their ways to ask for a picture."""
    g, dashboard = shown({"cam": {"url": str(clip), "loop": True, "realtime": True}}, dashboard__video=video)
    g.wait_counts(5)
    assert dashboard.json("/api/v1/session")["video"] == video
    widest = 0
    for method, path in everything(dashboard):
        if path.endswith("/events"):
            continue
        for query in ("", "?width=16", "?width=1920"):
            body = {} if method in ("PUT", "POST") else None
            _, headers, content = dashboard.ask(path + query, method, body)
            assert "image/jpeg" not in headers.get("content-type", "") or video == "pixelated", path
            if content.startswith(JPEG):
                widest = max(widest, pixels(content).shape[1])
            assert JPEG not in content[3:], path
    with dashboard.live({**LOOKING, "width": 1920}) as connection:
        for _ in range(20):
            about, jpeg = parts(connection.recv(10))
            assert about["video"] == video and len(about["boxes"]) == about["count"]
            assert bool(jpeg) == (video == "pixelated")  # no background is known in a few seconds
            widest = max(widest, pixels(jpeg).shape[1] if jpeg else 0)
            acknowledge(connection, about)
        assert maps_a_ring(g.processes["dashboard.0"]) == (video != "off")
    assert widest == (48 if video == "pixelated" else 0)


def test_wrong_messages_end_the_websocket_and_nothing_else(shown, clip):
    g, dashboard = shown({"cam": {"url": str(clip), "loop": True, "realtime": True}})
    wrong = ["", "{", "[]", "null", '{"watch":[{"source":1}]}', '{"watch":[{"source":"cam","width":9999999}]}',
             '{"watch":[{"source":"cam","fps":0}]}', '{"what":1}', json.dumps({"watch": [LOOKING] * 65}),
             '{"ack":"cam","seq":1e400}', "x" * (1 << 17), b"\x00\x01"]  # fmt: skip
    for message in wrong:
        with dashboard.live() as connection:
            connection.send(message)
            with pytest.raises(Exception) as ended:
                for _ in range(3):
                    connection.recv(10)
            assert ended.type in (ConnectionClosedError, ConnectionClosedOK), message
    with dashboard.live({"source": "nobody"}) as connection, pytest.raises(TimeoutError):
        connection.recv(1)
    with dashboard.live(LOOKING) as connection:
        check_sync(*parts(connection.recv(10)))
    assert g.processes["dashboard.0"].poll() is None
