"""A group with several GPUs: what is on one stays there, and a GPU that is lost hands its sources to the others.

Here two sets of processes on a CPU, as the file in the run directory says; tests/gpu has them on two GPUs.
"""

import json
import signal
import time

import pytest

from peoplecounter.common.errors import RESTART
from peoplecounter.common.process.gpus import REST_NS, RETRY_NS, Gpus
from peoplecounter.common.process.runtime import SETTLED
from tests.support.dashboard import Dashboard, acknowledge, parts
from tests.support.rtsp import free_port

WORKERS = [f"{service}.{number}" for service in ("infer_global", "infer_tiles", "preprocess") for number in (0, 1)]
DECODERS = ["decoder.a", "decoder.b"]


@pytest.fixture
def gpus(run_dir):
    """Two that need not exist: the CPU backend asks for none."""
    found = Gpus(run_dir)
    with found.change() as placement:
        placement.uuids = [f"GPU-00000000-0000-0000-0000-00000000000{i}" for i in range(2)]
        placement.asked = ["all"]
    return found


@pytest.fixture
def pair(group, gpus, clip):
    """A group of two live sources on two GPUs."""

    def make(**settings):
        camera = {"url": str(clip), "loop": True, "realtime": True, "fps": 20}
        return group({"a": camera, "b": camera}, gpus="all", **settings)

    return make


def rows_of(g) -> dict[str, dict]:
    return {row["service"]: row for row in json.loads(g.peoplecounter("ps", "--json").stdout)}


def counted(g, source: str, more: int) -> float:
    """Waits for `more` complete counts of a source from now on; returns the seconds that it took."""
    before = len(g.of("counts", source))
    return g.wait_for(
        lambda: sum(c["complete"] for c in g.of("counts", source)[before:]) >= more, f"counts of {source}"
    )


def test_each_gpu_has_its_sources_and_workers(pair, gpus):
    g = pair()
    g.start("fusion.0", *WORKERS, *DECODERS)
    counted(g, "a", 20)
    counted(g, "b", 20)
    rows, sources = rows_of(g), gpus.placement.sources
    assert sorted(sources.values()) == [0, 1]
    assert [rows[name]["gpu"] for name in WORKERS] == [0, 1] * 3 and rows["fusion.0"]["gpu"] is None
    assert [rows[name]["gpu"] for name in DECODERS] == [sources["a"], sources["b"]]
    for number in (0, 1):
        assert rows[f"preprocess.{number}"]["counters"]["frames_preprocessed"] >= 15
        assert rows[f"infer_global.{number}"]["counters"]["parts_inferred"] >= 15
    assert "GPU 1" in g.peoplecounter("ps").stdout
    for source in ("a", "b"):
        g.check_books(source)


@pytest.mark.parametrize("held_s", [0, 8])
def test_a_spare_decoder_takes_the_source_of_a_lost_gpu(pair, gpus, held_s):
    """Also when the driver holds the process that decoded it, which ends at some time."""
    g = pair()
    g.start("fusion.0", *(name for name in WORKERS if name != "preprocess.1"))
    g.start(*DECODERS, fault=("--slow-exit", str(held_s)))
    g.wait_for(lambda: set(DECODERS) <= rows_of(g).keys(), "both decoders")
    g.start("decoder")
    (moved,) = (source for source, number in gpus.placement.sources.items() if number == 1)
    g.start("preprocess.1", fault=("--lose-gpu-at", "30"))
    g.wait_for(lambda: gpus.placement.sources[moved] == 0, "a move")
    owner = g.run_dir / f"control.decoder.{moved}.lock"
    g.wait_for(lambda: owner.read_text() == str(g.processes["decoder"].pid), "a decoder that was spare")
    assert not held_s or g.processes[f"decoder.{moved}"].poll() is None
    print(f"twenty complete counts after {counted(g, moved, 20):.1f} s")
    assert g.wait_exit(f"decoder.{moved}", held_s + 10) == RESTART
    counted(g, moved, 20)
    assert g.of("service", f"decoder.{moved}")[-1]["state"] == "up"
    g.killed |= {path.name for path in g.run_dir.glob("*1*.s*")}  # of preprocess.1


def test_the_sources_of_a_lost_gpu_are_counted_by_the_others(pair, gpus):
    g = pair()
    g.start("fusion.0", *(name for name in WORKERS if name != "preprocess.1"), *DECODERS)
    g.start("preprocess.1", fault=("--lose-gpu-at", "30"))
    assert g.wait_exit("preprocess.1") == RESTART
    (moved,) = (source for source, number in gpus.placement.sources.items() if number == 1)
    assert g.wait_exit(f"decoder.{moved}") == RESTART
    g.start("preprocess.1", f"decoder.{moved}")  # as its supervisor does
    print(f"twenty complete counts {counted(g, moved, 20):.1f} s after the start of its decoder on the other GPU")
    assert set(gpus.placement.sources.values()) == {0}
    assert f"Another process has lost GPU 1: {moved} moves to another one." in g.tail()
    assert "preprocess.1" not in rows_of(g)  # it waits before it tries that GPU again
    g.wait_for(lambda: rows_of(g).get("preprocess.1", {}).get("state") == "ready", "its return", RETRY_NS / 1e9 + 20)
    assert set(gpus.placement.sources.values()) == {0}  # until the GPU has rested
    with gpus.change() as placement:
        placement.lost_ns[1] -= REST_NS
    g.wait_for(lambda: any(g.processes[name].poll() == RESTART for name in DECODERS), "a decoder that moves back")
    (back,) = (name for name in DECODERS if g.processes[name].poll() == RESTART)
    g.start(back)
    counted(g, back.partition(".")[2], 20)
    assert sorted(gpus.placement.sources.values()) == [0, 1]
    for source in ("a", "b"):
        g.check_books(source)


def test_a_gpu_on_which_nobody_answers_is_lost(pair, gpus):
    g = pair(link__silent_ms="400", link__beat_ms="100")
    g.start("fusion.0", *WORKERS, *DECODERS)
    time.sleep(SETTLED * 0.4 + 1)
    counted(g, "a", 10)
    counted(g, "b", 10)
    (moved,) = (source for source, number in gpus.placement.sources.items() if number == 1)
    g.signal("preprocess.1", signal.SIGSTOP)  # as one does that is stuck in the driver
    assert g.wait_exit(f"decoder.{moved}") == RESTART
    g.start(f"decoder.{moved}")
    counted(g, moved, 20)
    assert set(gpus.placement.sources.values()) == {0} and list(gpus.placement.lost_ns) == [1]
    assert f"No process that reads surfaces.{moved} answers on GPU 1" in g.tail()


def test_the_dashboard_shows_the_pictures_of_all(pair):
    port = free_port()
    g = pair(dashboard__listen=f"127.0.0.1:{port}")
    g.start("fusion.0", *WORKERS, *DECODERS, "dashboard.0")
    dashboard = Dashboard(port)
    dashboard.wait()
    counted(g, "a", 5)
    counted(g, "b", 5)
    seen = set()
    with dashboard.live(*({"source": source, "width": 160, "fps": 20} for source in ("a", "b"))) as looking:
        while seen != {"a", "b"}:
            about, jpeg = parts(looking.recv(timeout=20))
            assert len(about["boxes"]) == about["count"] and jpeg
            seen.add(about["source"])
            acknowledge(looking, about)
