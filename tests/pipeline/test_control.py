"""Asking and telling a running group: what it is, which of it is down, restart one, take up another source."""

import json
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import msgspec

from peoplecounter.common.ipc.memory import memory_kind
from peoplecounter.common.ipc.messages import SCHEMA, Hello, Refuse, Welcome, namespaces
from peoplecounter.common.settings import Settings, SourceSettings
from peoplecounter.common.sources import write_change
from tests.link.test_link import World
from tests.support.cli import ROOT, command, peoplecounter
from tests.support.group import SERVICES
from tests.support.squares import VARIABLES

LIVE = {"realtime": True, "loop": True}
LOOPING = ("--realtime", "--loop")


def ps(run_dir):
    done = peoplecounter(run_dir, "ps", "--json")
    assert done.returncode == 0, done.stderr
    return {row["service"].split(".")[0]: row for row in json.loads(done.stdout)}


def test_ps_shows_every_process_and_restart_changes_one(running, run_dir):
    before = ps(run_dir)
    assert before.keys() == {name.split(".")[0] for name in SERVICES}
    assert {row["state"] for row in before.values()} == {"ready"}
    assert {row["supervisor"] for row in before.values()} == {"run"}
    assert sum(before["decoder"]["slots"].values()) == 4 and before["decoder"]["epoch"]
    assert before["infer_tiles"]["counters"]["parts_inferred"] > 0 and before["infer_tiles"]["rss_mb"] > 10

    done = peoplecounter(run_dir, "restart", "infer_tiles")
    assert done.returncode == 0 and "is ready again after" in done.stdout, done.stderr
    os.kill(before["infer_global"]["pid"], signal.SIGSTOP)
    done = peoplecounter(run_dir, "restart", "infer_global")
    assert done.returncode == 0 and "does not answer: killed" in done.stdout, done.stderr
    after = ps(run_dir)
    changed = {name for name in before if before[name]["pid"] != after[name]["pid"]}
    assert changed == {"infer_tiles", "infer_global"}
    assert {name: row["restarts"] for name, row in after.items()} == {name: int(name in changed) for name in after}

    lines = peoplecounter(run_dir, "ps").stdout.splitlines()
    assert lines[0].split()[:3] == ["service", "state", "pid"] and len(lines) == 1 + len(SERVICES)
    assert any("ONNX Runtime" in line and "threads: 1" in line for line in lines if line.startswith("infer_tiles.0"))


def test_run_starts_a_worker_for_each_core(run_dir, clip, model):
    words, environment = command(
        run_dir, "run", clip, "--model", model, "--loop", "--json", PEOPLECOUNTER_CORES="3", **VARIABLES
    )
    group = subprocess.Popen(words, env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert group.stdout.readline().startswith(b"{")
    about = {row["service"]: row["about"] for row in json.loads(peoplecounter(run_dir, "ps", "--json").stdout)}
    tiles = [text for name, text in about.items() if name.startswith("infer_tiles.")]
    assert len(tiles) == 3 and all(text.endswith("threads: 1") for text in tiles)
    assert about["infer_global.0"].endswith("threads: 3")
    group.send_signal(signal.SIGINT)
    group.communicate(timeout=20)
    assert group.returncode == 0


def processes(run_dir) -> dict:
    """Name -> pid of what is ready."""
    rows = json.loads(peoplecounter(run_dir, "ps", "--json").stdout)
    return {row["service"]: row["pid"] for row in rows if row["state"] == "ready"}


def test_a_service_is_scaled_while_the_others_go_on(running, run_dir):
    before = processes(run_dir)
    done = peoplecounter(run_dir, "scale", "infer_tiles", 3)
    assert done.stdout == "infer_tiles: 3 ready, before: 1\n", done.stderr
    more = processes(run_dir)
    assert more.items() > before.items() and more.keys() - before.keys() == {"infer_tiles.1", "infer_tiles.2"}
    assert peoplecounter(run_dir, "scale", "infer_tiles", 1).returncode == 0
    fewer = processes(run_dir)
    assert sum(name.startswith("infer_tiles.") for name in fewer) == 1 and more.items() > fewer.items()
    for arguments, output in ((("fusion", 2), "cannot be scaled"), (("infer_tiles", 0), "1 to 32")):
        done = peoplecounter(run_dir, "scale", *arguments)
        assert done.returncode == 78 and output in done.stderr


def test_sources_come_and_go_while_the_group_runs(running, run_dir, clip, tmp_path):
    """Each has its own decoder; one that cannot be played is reported by the command that adds it."""
    before = processes(run_dir)
    done = peoplecounter(run_dir, "source", "add", "yard", clip, "--realtime", "--loop", "--smallest-person-px", 40)
    assert done.stdout == "yard is online\n", done.stderr
    stored = json.loads((run_dir / "sources" / "yard.json").read_text())["source"]
    assert stored["views"]["smallest_person_px"] == 40
    assert processes(run_dir).keys() - before.keys() == {"decoder.yard"}
    (tmp_path / "text.mp4").write_text("no video")
    for arguments, output in (
        (("add", "yard", clip), "exists already"),
        (("add", "text", tmp_path / "text.mp4"), "invalid data"),
        (("add", "none", tmp_path / "none.mp4"), "no such file"),
        (("add", "a/b", clip), "Invalid source name"),
        (("remove", "nobody"), "The source 'nobody' does not exist"),
    ):
        done = peoplecounter(run_dir, "source", *arguments)
        assert done.returncode in (66, 78) and output in done.stderr, done.stderr
    rows = {row["source"]: row for row in json.loads(peoplecounter(run_dir, "source", "list", "--json").stdout)}
    assert {row["state"] for name, row in rows.items() if name in ("clip", "yard")} == {"online"}
    assert rows["yard"]["url"] == str(clip) and rows["yard"]["totals"]["counted"] > 0
    assert peoplecounter(run_dir, "source", "remove", "yard").stdout == "yard was removed\n"
    assert processes(run_dir) == before
    listed = peoplecounter(run_dir, "source", "list").stdout
    assert "clip " in listed and "yard" not in listed


def test_a_group_without_sources_waits_for_one(running, run_dir, clip):
    for options in (LOOPING, LOOPING, LOOPING, ()):  # at once, while the end of the one before is still being told
        assert peoplecounter(run_dir, "source", "remove", "clip").returncode == 0
        done = peoplecounter(run_dir, "source", "add", "clip", clip, *options)
        assert done.stdout == "clip is online\n", done.stderr
    running.communicate(timeout=30)  # it is played once: that is the end
    assert running.returncode == 0


def test_what_is_wrong_gives_a_clear_error(running, run_dir, tmp_path):
    for arguments, output in (
        (["restart", "infer_tile"], "No process 'infer_tile' in this group"),
        (["log", "fusion", "loud"], "Unknown level 'loud'"),
        (["ps", "--run-dir", tmp_path], "No group runs in"),
    ):
        done = peoplecounter(run_dir, *arguments)
        assert done.returncode in (66, 78) and output in done.stderr, done.stderr
        assert "Traceback" not in done.stderr


def test_what_was_started_by_hand_is_not_restarted_and_has_no_supervisor_to_start_more(group, clip):
    g = group({"cam": {"url": str(clip), **LIVE}})
    g.start()
    g.wait_counts(5)
    done = g.peoplecounter("restart", "fusion")
    assert done.returncode == 70 and "has no supervisor" in done.stderr
    assert g.processes["fusion.0"].poll() is None
    for arguments in (("scale", "infer_tiles", 2), ("source", "add", "yard", clip)):
        done = g.peoplecounter(*arguments)
        assert done.returncode == 78 and "started by hand" in done.stderr


def test_a_log_level_is_changed_while_it_runs(group, clip):
    g = group({"cam": {"url": str(clip), **LIVE}}, log_format="json")
    g.start()
    g.wait_counts(5)
    assert g.peoplecounter("log", "infer_tiles", "error").stdout == "infer_tiles.0: log level error\n"
    rows = g.peoplecounter("ps", "--json").stdout
    assert {r["service"]: r["log_level"] for r in json.loads(rows)}["infer_tiles.0"] == "error"
    assert all(json.loads(line)["service"] for line in g.tail().splitlines())


def test_who_is_down_is_published_until_it_is_back(group, clip):
    g = group({"cam": {"url": str(clip), **LIVE}})
    g.start()
    g.wait_counts(5)

    def state():
        return next((c["state"] for k, n, c in reversed(g.messages) if (k, n) == ("service", "infer_tiles.0")), None)

    g.signal("infer_tiles.0", signal.SIGKILL)
    g.wait_for(lambda: state() == "down", "it to be missed")
    g.start("infer_tiles.0")
    g.wait_for(lambda: state() == "up", "it to be back")
    g.signal("infer_tiles.0", signal.SIGSTOP)
    g.wait_for(lambda: state() == "silent", "its silence")
    g.signal("infer_tiles.0", signal.SIGCONT)
    g.wait_for(lambda: state() == "up", "it to be heard")


def test_a_frozen_fusion_does_not_take_the_others_for_silent(group, clip):
    g = group({"cam": {"url": str(clip), **LIVE}}, link__beat_ms="100", link__silent_ms="1000")
    g.start()
    g.wait_counts(5)
    g.signal("fusion.0", signal.SIGSTOP)
    time.sleep(2.5)  # longer than silent_ms: the others beat less often now
    g.signal("fusion.0", signal.SIGCONT)
    g.wait_counts(100)
    assert {c["state"] for c in g.of("service")} == {"up"}


def test_a_source_comes_and_goes_and_comes_again_while_the_group_runs(group, clip):
    """A decoder without a name takes the source that has none; seq goes on where it was."""
    g = group({"cam": {"url": str(clip), **LIVE}})
    g.start()
    settings = Settings(run_dir=g.run_dir)
    g.wait_counts(5)
    first = 0
    for _ in range(2):
        write_change(settings, "yard", SourceSettings(url=str(clip)))
        process = subprocess.Popen(
            [sys.executable, "-m", "peoplecounter.services.decoder"], env=g.environment, stdout=g.log, stderr=g.log
        )
        g.processes["decoder.yard"] = process
        g.wait_for(lambda: g.ended("yard"), "its end")
        assert process.wait(20) == 0
        write_change(settings, "yard", None)
        g.wait_for(lambda: g.of("status")[-1]["source"] != "yard" and g.of("status")[-2]["source"] != "yard", "silence")
        counted = [c["seq"] for c in g.of("counts", "yard")]
        assert counted[first:] == list(range(first, first + 60))
        first += 60
        g.messages = [m for m in g.messages if m[0] != "status"]
    g.check_books("yard")


def test_a_gpu_ring_refuses_a_process_of_another_ipc_namespace(run_dir):
    """CUDA IPC would not reach it: it is told so, and nothing slower is tried."""
    world = World(run_dir)
    owner = world.owner(world.loop())
    here, there = namespaces(), (namespaces()[0], namespaces()[1] + 1)
    hello = Hello(SCHEMA, "preprocess.0", os.getpid(), "frame", 1, namespaces=there)
    assert isinstance(owner._welcome(hello), Welcome)  # shared memory is a file: it may
    owner._work = SimpleNamespace(kind="cuda")
    refused = owner._welcome(hello)
    assert isinstance(refused, Refuse) and "another IPC namespace" in refused.reason
    assert isinstance(owner._welcome(msgspec.structs.replace(hello, namespaces=here)), Welcome)
    owner._work = memory_kind("shm").work_queue(world.loops[0])
    for loop in world.loops:
        loop.close()


def test_a_process_of_another_pid_namespace_is_refused_in_words(run_dir):
    """Its pid means another process here, or none: two containers, each with a pid 1."""
    hello = Hello(SCHEMA, "infer_tiles.0", os.getpid(), namespaces=(namespaces()[0] + 1, namespaces()[1]))
    world = World(run_dir)
    owner = world.owner(world.loop())
    sent = []
    owner._link._send = lambda identity, message: sent.append(message) or True
    owner._link._greet(b"stranger", msgspec.msgpack.decode(msgspec.msgpack.encode(hello), type=Hello))
    assert isinstance(sent[0], Refuse) and "one PID namespace" in sent[0].reason
    for loop in world.loops:
        loop.close()
