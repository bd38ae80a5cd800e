"""Lines, zones and areas in a real group: killed, rebooted, changed while it runs, and written into a history."""

import json
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from peoplecounter.common import events
from peoplecounter.common.events import Crossing, ZoneChange
from tests.support import squares
from tests.support.cli import ROOT, command
from tests.support.group import SERVICES, Group
from tests.support.walk import CROSSINGS, LONG, WALKERS, make_three

LINE = {"points": [[0.5, 0.0], [0.5, 1.0]], "inside": [0.9, 0.5]}
ZONE = {"points": [[0.6, 0.0], [0.95, 0.0], [0.95, 1.0], [0.6, 1.0]], "enter_s": 0.2, "leave_s": 0.2}


@pytest.fixture(scope="session")
def walk(tmp_path_factory):
    return make_three(tmp_path_factory.mktemp("walk"))


def source_of(clip):
    return {"url": str(clip), "start_time": "2026-11-26T08:00:00", "lines": {"door": LINE}, "zones": {"desk": ZONE}}


@pytest.fixture
def make(group, walk, tmp_path):
    """A group whose walkers cross a line, with its data in a folder that stays."""
    clip, model = walk

    def start(data=True, lines=True, **settings):
        source = source_of(clip) | ({} if lines else {"lines": {}, "zones": {}}) | settings.pop("source", {})
        given = {"engine__model": str(model), **({"data_dir": str(tmp_path / "data")} if data else {}), **settings}
        return group({"cam": source}, **given)

    return start


def logged(folder, *kinds, source="cam"):
    read = [r for path in events.files(folder / events.FOLDER, source) for r, _ in events.read(path)]
    return [r for r in read if isinstance(r, kinds)]


def dwells(folder):
    return [r.dwell_s for r in logged(folder, ZoneChange)]


def crossings(folder):
    return [(r.number, r.direction, r.time_s) for r in logged(folder, Crossing)]


@pytest.fixture(scope="session")
def undisturbed(walk, tmp_path_factory):
    """(crossings, seconds of visits) of a group that nobody kills."""
    folder = Path(tempfile.mkdtemp(prefix="pc-test-", dir="/dev/shm"))
    data = tmp_path_factory.mktemp("undisturbed") / "data"
    g = Group(folder, walk[1], {"cam": source_of(walk[0])}, data_dir=str(data), **squares.VIEWS)
    g.start()
    g.wait_for(g.ended, "the end of the source", 60)
    g.close()
    shutil.rmtree(folder)
    folder.with_suffix(".log").unlink()
    return crossings(data), dwells(data)


def test_what_subscribers_read_of_lines_zones_areas_and_alerts(make, tmp_path):
    alert = {"full": {"area": "room", "above": 1}}
    g = make(areas=json.dumps({"room": {"lines": ["cam.door", "yard.door"]}}), alerts=json.dumps(alert))
    g.start()
    g.wait_for(g.ended, "the end of the source", 60)
    crossed, changes = g.of("crossings"), g.of("zones")
    assert [c["number"] for c in crossed] == list(range(1, 1 + CROSSINGS))
    assert crossed[-1]["totals"] == {"in": 15, "out": 15}
    assert {c["direction"] for c in crossed} == {"in", "out"} and all(c["complete"] for c in crossed)
    assert crossed[0]["time"].startswith("2026-11-26T08:00:0") and crossed[0]["pts_s"] == pytest.approx(0.5, abs=0.2)
    assert [c["number"] for c in changes] == list(range(1, len(changes) + 1))
    assert changes[-1]["totals"]["entered"] == changes[-1]["totals"]["left"] == 15
    run = crossed[0]["track"].split("/")[1]
    assert {c["track"] for c in crossed} == {f"cam/{run}/{number}" for number in (1, 2, 3)}
    counts, detections = g.of("counts"), g.of("detections")
    assert all(len(d["ids"]) == len(d["boxes"]) == c["count"] == WALKERS for c, d in zip(counts, detections))
    assert {i for d in detections for i in d["ids"]} == {c["track"] for c in crossed}
    status = g.of("status")[-1]
    assert (status["lines"], status["zones"]["desk"]["people"]) == ({"door": {"in": 15, "out": 15}}, 0)
    area = g.of("areas")[-1]
    assert (area["occupancy"], area["in"], area["out"], area["missing"]) == (0, 15, 15, ["yard.door"])
    assert [(a["state"], a["value"]) for a in g.of("alerts")][:2] == [("raised", 2), ("cleared", 1)]
    assert [r.number for r in logged(tmp_path / "data", Crossing)] == [c["number"] for c in crossed]
    assert not list((g.run_dir / "data").glob("*"))


def test_without_a_data_dir_totals_live_in_the_run_directory(make):
    g = make(data=False)
    g.start()
    g.wait_for(lambda: len(g.of("crossings")) >= 5, "crossings", 60)
    g.signal("fusion.0", signal.SIGKILL)
    g.start("fusion.0")
    g.wait_for(g.ended, "the end of the source", 60)
    assert g.of("status")[-1]["lines"] == {"door": {"in": 15, "out": 15}}
    assert len(crossings(g.run_dir / "data")) == 30


def test_fusion_is_killed_again_and_again_and_no_event_is_lost_or_doubled(make, undisturbed, tmp_path):
    """The log of the killed group is that of one left in peace, and its topic's numbers never come twice."""
    g, rng = make(), random.Random(7)
    g.start()
    while len(g.of("counts")) < LONG - 60:
        g.signal("fusion.0", signal.SIGKILL)
        g.start("fusion.0")
        told = len(g.of("status"))
        heard = len(g.of("counts")) + 1 + rng.randrange(60)
        g.wait_for(lambda: len(g.of("counts")) >= heard or g.ended(), "counts, or the end", 60)  # noqa: B023
        if g.ended():  # the counts that were lost with fusion are not heard again
            break
    g.wait_for(lambda: any(s["state"] == "ended" for s in g.of("status")[told:]), "the end, from the last fusion", 60)
    assert (crossings(tmp_path / "data"), dwells(tmp_path / "data")) == undisturbed
    numbers = [c["number"] for c in g.of("crossings")]
    assert numbers == sorted(set(numbers))
    assert g.of("status")[-1]["lines"] == {"door": {"in": 15, "out": 15}}


def test_totals_go_on_after_a_reboot(make, tmp_path, run_dir):
    """The run directory is gone, and with it every journal."""
    for expected in (15, 30):
        g = make(source={"zones": {}})
        g.start()
        g.wait_for(g.ended, "the end of the source", 60)
        assert g.of("status")[-1]["lines"] == {"door": {"in": expected, "out": expected}}
        g.close()
        shutil.rmtree(run_dir)
        run_dir.mkdir(mode=0o700)
    assert [number for number, *_ in crossings(tmp_path / "data")] == list(range(1, 61))


def test_lines_are_added_moved_and_removed_while_the_group_runs(make, tmp_path):
    g = make(lines=False, source={"loop": True, "realtime": True, "start_time": ""})
    g.start()
    g.wait_counts(5)
    added = g.peoplecounter("line", "add", "cam", "door", "--points", "0.5,0 0.5,1", "--inside", "0.9,0.5")
    assert (added.returncode, added.stdout) == (0, "cam.door was added\n"), added.stderr
    g.wait_for(lambda: len(g.of("crossings")) >= 3, "crossings of the new line")
    g.peoplecounter("line", "add", "cam", "door", "--points", "0.4,0 0.4,1", "--inside", "0.9,0.5")
    g.wait_for(lambda: any(c["revision"] == 2 for c in g.of("crossings")), "crossings of its second revision")
    g.peoplecounter("zone", "add", "cam", "desk", "--points", "0,0 1,0 1,1 0,1", "--enter-s", "0.1")
    g.wait_for(lambda: g.of("zones"), "somebody in the new zone")
    listed = g.peoplecounter("line", "list").stdout.splitlines()
    assert sorted(listed) == ["line  cam.door  0.4,0 0.4,1, inside 0.9,0.5, feet, crossings",
                      "zone  cam.desk  0,0 1,0 1,1 0,1, feet"]  # fmt: skip
    assert g.peoplecounter("line", "remove", "cam", "door").stdout == "cam.door was removed\n"
    g.wait_for(lambda: "lines" not in g.of("status")[-1], "a status without lines")
    before = g.of("crossings")[-1]["number"]
    for arguments, code, error in (
        (("line", "remove", "cam", "door"), 66, "cam has no line or zone 'door'"),
        (
            ("line", "add", "yard", "x", "--points", "0,0 1,1", "--inside", "0,1"),
            66,
            "The source 'yard' does not exist",
        ),
        (("line", "add", "cam", "x", "--points", "0,0 1,1", "--inside", "0.5,0.5"), 78, "inside lies on the line"),
        (("line", "add", "cam", "x", "--points", "0,0 2,1", "--inside", "0,1"), 78, "less than or equal to 1"),
        (("line", "add", "cam", "x", "--points", "a", "--inside", "0,1"), 78, "Invalid points 'a'"),
        (("zone", "add", "cam", "x", "--points", "0,0 1,1 0.5,0.5"), 78, "the zone has no area"),
    ):
        refused = g.peoplecounter(*arguments)
        assert refused.returncode == code and error in refused.stderr and "Traceback" not in refused.stderr
    assert before == len(logged(tmp_path / "data", Crossing))


def test_an_area_is_corrected_and_the_history_knows_it_all(make, tmp_path):
    """The history process is killed, too; in the end the database has what the log has."""
    g = make(areas=json.dumps({"room": {"lines": ["cam.door"]}}))

    def stored():
        return [(r["number"], r["direction"]) for r in rows(g, "--rows", "crossings") or ()]

    g.start("history.0", *SERVICES)
    g.wait_for(lambda: len(stored()) >= 5, "crossings in the database", 60)
    g.signal("history.0", signal.SIGKILL)
    corrected = g.peoplecounter("correct", "room", "7", "--note", "by hand")
    assert corrected.returncode == 0 and corrected.stdout.endswith("-> 7 people\n"), corrected.stderr
    refused = g.peoplecounter("correct", "shop", "7")
    assert (refused.returncode, refused.stderr) == (
        78, "peoplecounter: There is no area 'shop': the settings have no table [areas.shop].\n"
    )  # fmt: skip
    g.wait_for(g.ended, "the end of the source", 60)
    g.start("history.0")
    log = [(r.number, r.direction) for r in logged(tmp_path / "data", Crossing)]
    assert len(log) == 30
    g.wait_for(lambda: stored() == log, "the database has what the log has", 20)
    shown = rows(g, "--by", "total", "--line", "cam.door")
    assert [(r["in"], r["out"]) for r in shown] == [(15, 15)]
    corrections = rows(g, "--rows", "corrections")
    assert [(r["kind"], r["after"], r["note"]) for r in corrections] == [("begin", 0, ""), ("correct", 7, "by hand")]
    wrong = g.peoplecounter("history", "--line", "cam.dor")
    assert wrong.returncode == 66 and "has no line 'cam.dor' in this time: it has cam.door" in wrong.stderr


def rows(g, *arguments):
    done = g.peoplecounter("history", "--format", "json", *arguments)
    return [json.loads(line) for line in done.stdout.splitlines()] if not done.returncode else None


def test_a_second_fusion_may_not_write_into_the_same_data_dir(make, run_dir, tmp_path):
    g = make()
    g.start("fusion.0")
    g.wait_for(lambda: g.of("status"), "fusion")
    other = {**g.environment, "PEOPLECOUNTER_RUN_DIR": str(run_dir / "other")}
    done = subprocess.run(
        [sys.executable, "-m", "peoplecounter.services.fusion"], env=other, capture_output=True, text=True
    )
    assert done.returncode == 78
    assert (
        f"'the data_dir {tmp_path / 'data'}' is already owned by process {g.processes['fusion.0'].pid}" in done.stderr
    )


def test_a_history_that_cannot_go_on_does_not_stop_the_counting(run_dir, clip, model, tmp_path):
    """Its database is of another version."""
    data = tmp_path / "data"
    data.mkdir(mode=0o700)
    with sqlite3.connect(data / "history.db") as database:
        database.execute("create table peoplecounter_version (number integer primary key)")
        database.execute("insert into peoplecounter_version values (99)")
    words = ("run", clip, "--model", model, "--json", "--loop", "--realtime")
    argv, environment = command(run_dir, *words, PEOPLECOUNTER_DATA_DIR=str(data))
    with subprocess.Popen(
        argv, env=environment, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as g:
        limit = threading.Timer(60, g.kill)
        limit.start()
        said = ""
        while "history has stopped: counting goes on without it" not in said:
            line = g.stderr.readline()
            assert line, said
            said += line
        counted = [json.loads(g.stdout.readline())["seq"] for _ in range(20)]
        g.send_signal(signal.SIGINT)
        g.communicate()
        limit.cancel()
    assert g.returncode == 0 and counted == sorted(counted)
    assert "has tables of version 99, not 1: use another database" in said
