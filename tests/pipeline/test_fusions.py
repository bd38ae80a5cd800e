"""Two fusions in one group: each counts sources of its own, the first one speaks for the group. Killed in turns."""

import json
import signal
import subprocess
import sys

import pytest
import zmq

from peoplecounter.common.events import Crossing
from tests.pipeline.test_flow_of_people import LINE, ZONE, logged
from tests.pipeline.test_metrics import of, scrape
from tests.support.cli import ROOT
from tests.support.group import SERVICES
from tests.support.rtsp import free_port
from tests.support.walk import CROSSINGS, LONG, make_three

FIRST, SECOND = "cam", "door"  # the sources that fusion.0 and fusion.1 count, by their names
NAMES = (*SERVICES, "fusion.1", f"decoder.{SECOND}")


@pytest.fixture(scope="module")
def walk(tmp_path_factory):
    return make_three(tmp_path_factory.mktemp("walk"))


@pytest.fixture
def make(group, walk, tmp_path):
    """A group of two fusions with a source for each, whose line and zone are one area and one alert."""
    clip, model = walk

    def start(**settings):
        source = {
            "url": str(clip),
            "start_time": "2026-11-26T08:00:00",
            "lines": {"door": LINE},
            "zones": {"desk": ZONE},
        }
        areas = {"room": {"lines": [f"{FIRST}.door", f"{SECOND}.door"]}}
        alerts = {"busy": {"zone": f"{SECOND}.desk", "above": 0}}
        given = {
            "engine__model": str(model), "data_dir": str(tmp_path / "data"), "workers__fusion": "2",
            "areas": json.dumps(areas), "alerts": json.dumps(alerts), **settings,
        }  # fmt: skip
        return group(given.pop("sources", {FIRST: source, SECOND: source}), **given)

    return start


def ended(g):
    return g.ended(FIRST) and g.ended(SECOND)


def test_subscribers_of_one_address_get_everything(make, tmp_path):
    port = free_port()
    g = make(telemetry__prometheus=f"127.0.0.1:{port}")
    g.start(*NAMES)
    g.wait_for(lambda: ended(g), "the end of both sources", 90)
    for name in (FIRST, SECOND):
        assert g.check_books(name) == 0 and g.totals(name)["counted"] == LONG
        assert [c["number"] for c in g.of("crossings", name)] == list(range(1, 1 + CROSSINGS))
        assert len(g.of("detections", name)) == LONG
    g.wait_for(lambda: g.of("areas")[-1]["in"] == CROSSINGS, "the area")
    area = g.of("areas")[-1]
    assert (area["occupancy"], area["out"], "missing" in area) == (0, CROSSINGS, False)
    assert [(a["state"], a["zone"]) for a in g.of("alerts")][:2] == [
        ("raised", f"{SECOND}.desk"), ("cleared", f"{SECOND}.desk")
    ]  # fmt: skip
    found = scrape(port)
    for name in (FIRST, SECOND):
        assert found["peoplecounter_frames_counted_total"][("source", name),] == LONG
        crossed = (("direction", "in"), ("line", "door"), ("source", name))
        assert found["peoplecounter_line_crossings_total"][crossed] == CROSSINGS / 2
        assert found["peoplecounter_source_online"][("source", name),] == 0
    assert found["peoplecounter_process_up"][of("fusion.1")] == 1
    assert "do not exist" not in g.tail() and "does not exist" not in g.tail()


def test_each_fusion_may_be_killed_and_nothing_is_lost_or_counted_twice(make, tmp_path):
    g = make()
    g.start(*NAMES)
    for victim, name, crossings in (("fusion.1", SECOND, 5), ("fusion.0", FIRST, 8), ("fusion.1", SECOND, 14)):
        g.wait_for(lambda name=name, n=crossings: len(g.of("crossings", name)) >= n, f"crossings of {name}", 60)
        g.signal(victim, signal.SIGKILL)
        g.start(victim)
    g.wait_for(lambda: ended(g), "the end of both sources", 90)
    for name in (FIRST, SECOND):
        assert g.totals(name)["frames"] == g.totals(name)["counted"] == LONG
        rows = logged(tmp_path / "data", Crossing, source=name)
        assert [r.number for r in rows] == list(range(1, 1 + CROSSINGS)) and all(r.complete for r in rows)
        published = [c["number"] for c in g.of("crossings", name)]
        assert len(set(published)) == len(published)
    g.wait_for(lambda: g.of("areas")[-1]["in"] == CROSSINGS, "the area")
    assert (g.of("areas")[-1]["occupancy"], g.of("areas")[-1]["out"]) == (0, CROSSINGS)
    g.wait_for(lambda: g.state("fusion.1") == "up", "fusion.1")


def test_a_fusion_that_nobody_has_started_is_reported_and_the_sources_of_the_other_are_counted(make):
    g = make()
    g.start(*SERVICES, f"decoder.{SECOND}")
    g.wait_for(lambda: g.state("fusion.1") == "down", "the report")
    assert "fusion.1 is down" in g.tail()
    g.wait_for(lambda: g.of("status", SECOND), "the status of its source")
    told = g.of("status", SECOND)[-1]
    assert (told["state"], told["detail"]) == ("stale", "fusion.1 does not answer")
    g.wait_for(lambda: g.ended(FIRST), "the end of the other's source", 90)
    assert g.check_books(FIRST) == 0 and g.totals(FIRST)["counted"] == LONG and not g.of("counts", SECOND)
    context = zmq.Context()
    socket = context.socket(zmq.PUSH)
    socket.connect(f"ipc://{g.run_dir}/publish.sock")
    for garbage in ([b"counts.door"], [b"counts.door", b"no JSON"], [b"\xff.door", b"{}"], [b"counts", b"{}", b"more"]):
        socket.send_multipart(garbage)
    g.wait_for(lambda: g.counters("fusion.0").get("messages_malformed", 0) == 4, "the garbage to be counted")
    context.destroy(linger=0)
    g.start("fusion.1")
    g.wait_for(lambda: ended(g), "the end of both sources", 90)
    assert g.state("fusion.1") == "up"
    assert all(g.check_books(name) == 0 for name in (FIRST, SECOND))


def test_live_sources_of_one_fusion_go_on_while_the_other_is_away(make, walk):
    clip = {"url": str(walk[0]), "realtime": True, "loop": True, "fps": 15}
    g = make(sources={FIRST: clip, SECOND: clip}, areas="{}", alerts="{}")
    g.start(*NAMES)
    g.wait_for(lambda: all(len(g.of("counts", name)) > 30 for name in (FIRST, SECOND)), "counts of both")
    g.signal("fusion.1", signal.SIGKILL)
    before = g.totals(FIRST)
    g.wait_for(lambda: g.totals(FIRST)["frames"] > before["frames"] + 300, "300 more frames of the other", 60)
    after = g.totals(FIRST)
    assert after["counted"] - before["counted"] > 0.8 * (after["frames"] - before["frames"]), (before, after)
    silent = len(g.of("counts", SECOND))
    g.start("fusion.1")
    g.wait_for(lambda: len(g.of("counts", SECOND)) > silent + 30, "counts of its own")
    totals = g.totals(SECOND)
    assert totals["frames"] == totals["counted"] + sum(totals["dropped"].values())


def test_all_processes_of_a_group_know_the_same_number_of_fusions(make):
    """One that was started with another number, as after a change of the settings, ends with an error."""
    g = make()
    g.start(*NAMES)
    g.wait_for(lambda: len(g.of("counts")) > 10, "counts")
    g.signal("fusion.1", signal.SIGKILL)
    g.environment["PEOPLECOUNTER_WORKERS__FUSION"] = "3"
    g.start("fusion.1")
    assert g.wait_exit("fusion.1", 40) == 78
    assert "workers.fusion is 3, but this group runs with 2: stop all its processes, then start" in g.tail()
    g.environment["PEOPLECOUNTER_WORKERS__FUSION"] = "2"
    g.start("fusion.1")
    g.wait_for(lambda: ended(g), "the end of both sources", 90)
    assert all(g.totals(name)["counted"] == LONG for name in (FIRST, SECOND))


def test_two_groups_may_not_write_the_log_of_one_source(make, run_dir):
    """The other group has three fusions, of which the last one counts a source of our second one."""
    g = make(sources={"hall": {"url": "rtsp://127.0.0.1:1/hall"}}, areas="{}", alerts="{}")
    g.start("fusion.0", "fusion.1")
    g.wait_for(lambda: g.of("status", "hall"), "the source")
    other = {**g.environment, "PEOPLECOUNTER_RUN_DIR": str(run_dir / "other"), "PEOPLECOUNTER_WORKERS__FUSION": "3"}
    command = [sys.executable, "-m", "peoplecounter.services.fusion", "2"]
    done = subprocess.run(command, env=other, cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert done.returncode == 78 and "hall.log is written by another process" in done.stderr, done.stderr


@pytest.mark.parametrize(
    ("instance", "error"),
    [
        (("2",), "There is no fusion.2 in this group: workers.fusion is 2, and its first is 0."),
        ((), "'fusion.1' is already owned by process"),
    ],
)
def test_there_is_no_third_fusion(make, instance, error):
    g = make()
    g.start("fusion.0", "fusion.1")
    g.wait_for(lambda: g.state("fusion.1") == "up", "both fusions")
    command = [sys.executable, "-m", "peoplecounter.services.fusion", *instance]
    done = subprocess.run(command, env=g.environment, cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert done.returncode == 78 and error in done.stderr, done.stderr
