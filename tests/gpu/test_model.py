"""A model that is served, and one that is swapped in, on a GPU: same counts, no frame lost, graphs captured again."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.cli import argv
from tests.support.group import Group

pytestmark = pytest.mark.gpu
ROOT = Path(__file__).parents[2]
INFER = ("infer_global.0", "infer_tiles.0")


@pytest.fixture
def live(run_dir, street):
    groups = []

    def make(model):
        g = Group(run_dir, model, {"cam": {"url": str(street), "loop": True, "realtime": True}}, backend="cuda")
        groups.append(g)
        g.start("fusion.0", *INFER, "preprocess.0")
        g.wait_for(lambda: {*INFER} <= {name for _, name, _ in g.messages}, "the engines", 60)
        g.start("decoder.cam")
        g.wait_counts(60, 60)
        return g

    yield make
    for g in groups:
        g.close()


def losses(g):
    return sum(g.totals()["dropped"].values()) + g.totals()["incomplete"]


def test_another_plan_is_swapped_in_while_frames_go_on(live, plan, tmp_path):
    """SECOND_PLAN, or a copy of the plan: loading it takes as long."""
    import os

    second = tmp_path / "second.plan"
    shutil.copy(os.environ.get("SECOND_PLAN", plan), second)
    g = live(plan)
    captured, before = [g.counters(name)["graphs_captured"] for name in INFER], losses(g)
    done = g.peoplecounter("engine", "swap", second, "--run-dir", g.run_dir)
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    first = len(g.of("counts"))
    g.wait_counts(60, 30)
    delays = [c["end_to_end_ms"] for c in g.of("counts")[first:]]
    print(f"{losses(g) - before} frames lost; slowest of the 60 frames behind the swap {max(delays):.1f} ms")
    assert losses(g) == before
    g.wait_for(lambda: all(g.counters(name).get("engines_swapped") for name in INFER), "the reports")
    assert all(g.counters(n)["graphs_captured"] > old for n, old in zip(INFER, captured))
    g.check_books()


def test_a_plan_without_a_refitter_takes_no_other_weights(live, plan, tmp_path):
    onnx = tmp_path / "weights.onnx"
    onnx.write_bytes(b"\x08\x09" * 100)
    g = live(plan)
    done = g.peoplecounter("engine", "swap", onnx, "--run-dir", g.run_dir)
    assert done.returncode and "all keep the old one" in done.stderr, done.stderr
    print(done.stderr)
    before = losses(g)
    g.wait_counts(30, 30)
    assert losses(g) == before


def test_engines_start_from_a_plan_that_is_served(live, plan):
    command = argv("engine", "serve", plan, "--bind", "tcp://127.0.0.1:*")
    server = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        endpoint = [server.stdout.readline() for _ in range(2)][1].split('"')[1]
        g = live(endpoint)
        assert all(c["complete"] for c in g.of("counts")[-30:])
    finally:
        server.terminate()
    assert server.wait(10) == 0
