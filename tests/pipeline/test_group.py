"""Five real processes on clips whose truth is known: every frame counted, exactly, once, in order."""

import signal
import socket
import subprocess
import sys

import pytest

from tests.support.squares import FRAMES, HEIGHT, WIDTH, expected, make_clip, make_model


def run_to_end(group, timeout_s=60):
    group.start()
    group.wait_for(group.ended, "the end of the source", timeout_s)
    group.check_books()
    return group.of("counts")


def test_every_frame_is_counted_exactly(group, clip):
    g = group({"cam": {"url": str(clip)}})
    counts = run_to_end(g)
    assert [c["seq"] for c in counts] == list(range(FRAMES))
    assert [c["missing"] for c in counts] == [{}] * FRAMES
    assert [c["count"] for c in counts] == [expected(seq) for seq in range(FRAMES)]
    assert g.totals() == {"frames": FRAMES, "counted": FRAMES, "incomplete": 0, "dropped": {}}
    assert g.wait_exit("decoder.cam") == 0  # the end reached the subscribers, its work is done


def test_what_subscribers_read(group, clip):
    """The published JSON has what the README promises, and its times are in order."""
    counts = run_to_end(g := group({"cam": {"url": str(clip)}}))
    first = counts[0]
    promised = "source seq pts_s time count complete missing end_to_end_ms stages_ms hops_ms totals"
    assert first.keys() == set(promised.split())
    assert first["stages_ms"].keys() == {"decode", "copy", "preprocess", "infer_global", "infer_tiles", "fusion"}
    for c in counts:
        assert all(ms >= 0 for ms in (*c["stages_ms"].values(), *c["hops_ms"].values()))
        assert c["end_to_end_ms"] >= max(c["stages_ms"].values())
    assert [c["pts_s"] for c in counts] == pytest.approx([seq / 30 for seq in range(FRAMES)], abs=1e-3)
    for c, d in zip(counts, g.of("detections")):
        assert (d["seq"], len(d["boxes"])) == (c["seq"], c["count"])
        assert all(0 <= x1 < x2 <= WIDTH and 0 <= y1 < y2 <= HEIGHT for x1, y1, x2, y2, _ in d["boxes"])


def test_several_sources_and_resolutions_at_once(group, tmp_path, clip):
    small = make_clip(tmp_path / "small.mp4", 40, ((176, 80),))
    tiny = make_clip(tmp_path / "tiny.mp4", 30, ((64, 64),))  # smaller than a tile
    g = group({"cam": {"url": str(clip)}, "small": {"url": str(small)}, "tiny": {"url": str(tiny)}})
    g.start(
        "fusion.0", "infer_global.0", "infer_tiles.0", "preprocess.0", "decoder.cam", "decoder.small", "decoder.tiny"
    )
    g.wait_for(lambda: all(g.ended(name) for name in ("cam", "small", "tiny")), "the end of all three")
    for source, frames in (("cam", FRAMES), ("small", 40)):
        g.check_books(source)
        assert [c["count"] for c in g.of("counts", source)] == [expected(seq) for seq in range(frames)]
    assert g.totals("tiny")["counted"] == 30


def test_each_source_has_views_of_its_own(group, clip):
    """The whole frame alone is one part; with levels there are others, and more images a frame."""
    sources = {"cam": {"url": str(clip)}, "near": {"url": str(clip), "views": {"levels": []}}}
    g = group(sources)
    g.start("fusion.0", "infer_global.0", "infer_tiles.0", "preprocess.0", "decoder.cam", "decoder.near")
    g.wait_for(lambda: all(g.ended(name) for name in sources), "the end of both")
    assert [c["count"] for c in g.of("counts", "cam")] == [expected(seq) for seq in range(FRAMES)]
    assert g.totals("near")["counted"] == FRAMES
    for c in g.of("counts", "near"):
        assert c["complete"] and "infer_tiles" not in c["stages_ms"]


def test_a_resolution_that_changes_within_the_stream(group, tmp_path):
    clip = make_clip(tmp_path / "changes.ts", 40, ((WIDTH, HEIGHT), (176, 80)))
    counts = run_to_end(group({"cam": {"url": str(clip)}}))
    assert [c["count"] for c in counts] == [expected(seq % 20) for seq in range(40)]


@pytest.mark.parametrize(
    "model",
    [
        {"batch": 1},
        {"batch": 4},
        {"dtype": 10},
        {"width": 160},
        {"channels_last": True},
        {"channels_last": True, "dtype": 2},
        {"external": "weights.bin"},
    ],
    ids=["batch of 1", "batch of 4", "float16", "wide", "channels last", "bytes", "external weights"],
)
def test_other_inputs(group, clip, tmp_path, model):
    model = make_model(tmp_path / "other.onnx", **model)
    counts = run_to_end(group({"cam": {"url": str(clip)}}, engine__model=str(model)))
    assert [c["count"] for c in counts] == [expected(seq) for seq in range(FRAMES)]


def test_engines_restarted_with_another_model_get_tensors_of_its_size(group, clip, tmp_path):
    """And while one of the old ones is there, a model with another input is refused in words."""
    larger = make_model(tmp_path / "larger.onnx", size=160)
    g = group({"cam": {"url": str(clip), "loop": True}})
    g.start()
    g.wait_counts(20)
    g.environment["PEOPLECOUNTER_ENGINE__MODEL"] = str(larger)
    g.start("infer_tiles.1")
    assert g.wait_exit("infer_tiles.1") == 78
    assert "float32 80x80, infer_tiles.1 reads float32 160x160" in g.tail()
    for name in ("infer_tiles.0", "infer_global.0"):
        g.signal(name, signal.SIGKILL)
    g.start("infer_tiles.0", "infer_global.0")
    g.wait_counts(20)
    g.check_books()
    assert all(c["count"] == expected(c["seq"]) for c in g.of("counts") if c["complete"])


def test_two_tile_workers_share_the_work(group, clip):
    """Groups of 3 tiles, four a frame: the least recently used worker gets the next."""
    g = group({"cam": {"url": str(clip)}}, preprocess__group="3")
    workers = ("infer_tiles.0", "infer_tiles.1")
    g.start("fusion.0", "infer_global.0", *workers, "preprocess.0")
    g.wait_for(lambda: all(name in {n for _, n, _ in list(g.messages)} for name in workers), "both workers")
    g.start("decoder.cam")
    g.wait_for(g.ended, "the end of the source", 60)
    g.check_books()
    counts = g.of("counts")
    assert all(c["complete"] for c in counts)
    g.wait_for(
        lambda: sum(g.counters(f"infer_tiles.{i}").get("parts_inferred", 0) for i in (0, 1)) == 4 * FRAMES,
        "all reports",
    )
    shares = [g.counters(f"infer_tiles.{i}")["parts_inferred"] for i in (0, 1)]
    assert min(shares) >= FRAMES  # a quarter of the work at least, however the cores were shared


def test_a_worker_added_while_running_takes_load_at_once(group, clip):
    g = group({"cam": {"url": str(clip), "loop": True}}, preprocess__group="3")
    g.start()
    g.wait_counts(20)
    g.start("infer_tiles.1")
    g.wait_for(lambda: g.counters("infer_tiles.1").get("parts_inferred", 0) > 20, "load on the new worker")
    g.check_books()


def test_a_live_source_faster_than_the_machine_stays_bounded(group, clip):
    """Drop-oldest: the delay does not grow, everything dropped has a reason."""
    g = group({"cam": {"url": str(clip), "realtime": True, "loop": True}})
    g.start("fusion.0", "infer_global.0", "preprocess.0", "decoder.cam")
    g.start("infer_tiles.0", fault=("--slow", "12"))  # 12 tiles x 24 ms: 3 to 4 frames a second of 30
    g.wait_counts(12, 60)
    delays = [c["end_to_end_ms"] for c in g.of("counts")]
    frame_ms = 12 * 24
    assert max(delays[-4:]) < 10 * frame_ms  # 3 slots and 2 credits deep at most, however long it runs
    assert max(delays[-4:]) < 2 * max(delays[3:7]) + frame_ms
    assert g.totals()["dropped"].get("no_credit", 0) > 20
    g.check_books()
    assert all(c["count"] == expected(c["seq"]) for c in g.of("counts") if c["complete"])


def test_a_greedy_live_source_does_not_push_another_one_out(group, clip):
    """Together they are too fast: the slow one waits its turn and loses nothing, the fast one drops its own frames."""
    greedy, modest = ({"url": str(clip), "realtime": True, "loop": True, "fps": fps} for fps in (60, 1))
    g = group({"greedy": greedy, "modest": modest})
    g.start("fusion.0", "preprocess.0", "decoder.greedy", "decoder.modest")
    g.start("infer_tiles.0", fault=("--slow", "12"))
    g.start("infer_global.0", fault=("--slow", "144"))  # so that whole frames wait in the tensors ring
    g.wait_for(lambda: len(g.of("counts", "modest")) >= 3, "the modest source, inference has started", 60)
    at_start = g.totals("modest")["dropped"]  # on a busy machine engines load for longer than its ring holds frames
    g.wait_for(lambda: len(g.of("counts", "modest")) >= 11, "8 more frames of the modest source", 60)
    assert g.totals("greedy")["dropped"].get("no_credit", 0) > 20
    assert g.totals("modest")["dropped"] == at_start
    for name in ("greedy", "modest"):
        g.check_books(name)


def test_messages_of_another_schema_are_refused_in_words(group, clip, run_dir):
    """A process of another version is told so and ends with the configuration code; the group goes on."""
    g = group({"cam": {"url": str(clip), "loop": True}})
    g.start()
    g.wait_counts(5)
    code = "import peoplecounter.common.ipc.messages as m; m.SCHEMA += 1; import runpy, sys; sys.argv = ['x', '9'];" \
        "runpy.run_module('peoplecounter.services.infer_tiles', run_name='__main__')"  # fmt: skip
    other = subprocess.run([sys.executable, "-c", code], env=g.environment, capture_output=True, text=True, timeout=30)
    assert other.returncode == 78
    assert "schema" in other.stderr
    g.wait_counts(5)


def test_the_service_manager_is_told_ready_and_then_fed_by_the_loop(group, clip, tmp_path):
    """sd_notify: READY once everything is loaded, WATCHDOG while the loop turns, nothing while it is frozen."""
    address = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address)
        manager.settimeout(10)
        g = group({"cam": {"url": str(clip), "loop": True}})
        g.environment |= {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "300000"}
        g.start("infer_tiles.0")
        assert manager.recv(200) == b"READY=1"
        assert [manager.recv(200) for _ in range(3)] == [b"WATCHDOG=1"] * 3
        g.signal("infer_tiles.0", signal.SIGSTOP)
        manager.settimeout(1)
        with pytest.raises(TimeoutError):
            for _ in range(20):  # what was sent before; then silence
                manager.recv(200)
        g.signal("infer_tiles.0", signal.SIGCONT)
        assert manager.recv(200) == b"WATCHDOG=1"
        g.signal("infer_tiles.0", signal.SIGTERM)
        message = b""
        while message != b"STOPPING=1":
            message = manager.recv(200)
        assert g.wait_exit("infer_tiles.0") == 0
