"""A running group gets another model: between two frames, in every infer process or in none, and for good."""

import hashlib
import signal

import pytest

from peoplecounter.common.errors import CONFIG, NO_INPUT, SOFTWARE
from tests.support.squares import expected, make_model

WORKERS = ("infer_global.0", "infer_tiles.0", "infer_tiles.1")


def swap(g, model):
    return g.peoplecounter("engine", "swap", model, "--run-dir", g.run_dir)


@pytest.fixture
def blind(tmp_path):
    """The same network with another weight: it finds no person."""
    return make_model(tmp_path / "blind.onnx", gain=1)


@pytest.fixture
def live(request, group, clip):
    source = {"url": str(clip), "realtime": True, "loop": True, "fps": 10}
    g = group({"cam": source}, engine__runtime=getattr(request, "param", "onnxruntime"), engine__precision="fp32")
    g.start("fusion.0", *WORKERS, "preprocess.0")
    g.wait_for(lambda: {*WORKERS} <= {name for _, name, _ in g.messages}, "the infer processes")
    g.start("decoder.cam")
    g.wait_counts(20)
    return g


def losses(g):
    g.check_books()
    return sum(g.totals()["dropped"].values()) + g.totals()["incomplete"]


@pytest.mark.parametrize("live", ["onnxruntime", "openvino"], indirect=True)
def test_all_change_between_two_frames_and_none_is_lost(live, blind):
    before = losses(live)
    done = swap(live, blind)
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()] == list(WORKERS)
    live.wait_counts(20)
    assert losses(live) == before
    counts = [(c["count"], expected(c["seq"])) for c in live.of("counts")]
    changed = next(i for i, (count, squares) in enumerate(counts) if count != squares)
    assert all(count == squares for count, squares in counts[:changed])
    assert all(count == 0 for count, _ in counts[changed + 2 :])  # two parts of a frame may see the change apart
    assert changed >= 20


def test_a_restarted_process_loads_what_the_group_was_swapped_to(live, blind):
    assert swap(live, blind).returncode == 0
    for name in ("infer_tiles.0", "infer_tiles.1"):
        live.signal(name, signal.SIGKILL)
    live.wait_for(lambda: live.of("counts")[-1]["complete"] is False, "the lack of them")
    live.start("infer_tiles.0")
    live.wait_counts(5)
    assert all(c["count"] == 0 for c in live.of("counts")[-5:])
    live.start("infer_tiles.1")  # which takes its socket away when it ends
    new = live.processes["infer_tiles.1"].pid
    live.wait_for(lambda: any(c["pid"] == new for c in live.of("service", "infer_tiles.1")), "the new process")


@pytest.mark.parametrize("case", ["another size", "no model", "missing"])
def test_a_wrong_model_is_refused_by_all_and_the_old_one_stays(live, tmp_path, case):
    model = tmp_path / "new.onnx"
    if case == "another size":
        make_model(model, size=96)
    elif case == "no model":
        model.write_bytes(b"\x08\x09" * 500)
    done = swap(live, model)
    assert done.returncode in (CONFIG, SOFTWARE, NO_INPUT) and len(done.stderr.splitlines()) == 1, done.stderr
    text = {"another size": "96x96", "no model": "cannot be loaded", "missing": "does not exist"}[case]
    assert text in done.stderr
    first, before = live.counted(), losses(live)
    live.wait_counts(10)
    assert losses(live) == before
    assert all(c["count"] == expected(c["seq"]) for c in live.of("counts")[first:])


def test_with_one_process_frozen_none_changes(live, blind):
    live.signal("infer_tiles.1", signal.SIGSTOP)
    done = swap(live, blind)
    live.signal("infer_tiles.1", signal.SIGCONT)
    assert done.returncode == SOFTWARE
    assert "infer_tiles.1 does not answer, so all keep the old model" in done.stderr
    first = live.counted(complete=True)
    live.wait_counts(20)
    assert all(c["count"] == expected(c["seq"]) for c in live.of("counts")[first + 5 :] if c["complete"])


def test_what_is_swapped_in_is_what_was_asked_for(live, blind):
    """A hash in the message, so a file that changes on the way is refused."""
    assert swap(live, blind).returncode == 0
    record = (live.run_dir / "engine.journal").read_bytes()
    assert hashlib.sha256(blind.read_bytes()).hexdigest().encode() in record
    make_model(blind, gain=2)
    live.signal("infer_global.0", signal.SIGKILL)
    live.start("infer_global.0")
    assert live.wait_exit("infer_global.0") == CONFIG
    assert "has the SHA-256" in live.tail()


def test_swapped_twice_with_no_frame_in_between(group, clip, blind, model, tmp_path):
    g = group({"cam": {"url": str(clip), "realtime": True, "loop": True, "fps": 10}})
    g.start("fusion.0", *WORKERS, "preprocess.0")
    g.wait_for(lambda: {*WORKERS} <= {name for _, name, _ in g.messages}, "the infer processes")
    for new in (blind, model):
        assert swap(g, new).returncode == 0
    g.start("decoder.cam")
    g.wait_counts(10)
    assert all(c["count"] == expected(c["seq"]) for c in g.of("counts"))


def test_without_a_group_it_says_so(run_dir, blind, group, clip):
    g = group({"cam": {"url": str(clip)}})
    done = swap(g, blind)
    assert done.returncode == CONFIG and "No infer service runs" in done.stderr
