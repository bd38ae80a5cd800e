"""Sources on several GPUs: evenly, few move, and those of a GPU that was lost go to the others and come back."""

from collections import Counter

import pytest

from peoplecounter.common.errors import CONFIG, RESTART, SOFTWARE, AppError, GpuLost, NoGpu
from peoplecounter.common.process.gpus import (
    FILE,
    REST_NS,
    RETRY_NS,
    Gpus,
    Placement,
    choose,
    establish,
    exit_code,
    gpus_of,
    healthy_uuids,
    may_start,
)
from peoplecounter.common.settings import Settings
from peoplecounter.common.topology import BY_NAME

UUIDS = [f"GPU-00000000-0000-0000-0000-00000000000{i}" for i in range(3)]
NAMES = [f"cam{i}" for i in range(14)]
NOW_NS = 10 * REST_NS


def placed(gpus, names, now_ns=NOW_NS):
    placement = Placement(UUIDS[:gpus])
    for name in names:
        placement.place(name, names, now_ns)
    return placement


def settle(placement, now_ns):
    """Lets sources move until none wants to; returns how many have moved."""
    for moves in range(100):
        found = {name: placement.better(name, now_ns) for name in placement.sources}
        movers = {name: to for name, to in found.items() if to is not None}
        if not movers:
            return moves
        name = min(movers)
        placement.sources[name] = movers[name]
    raise AssertionError("sources move for ever")


@pytest.mark.parametrize("gpus", [1, 2, 3])
def test_each_gpu_has_as_many_sources_as_any_other(gpus):
    placement = placed(gpus, NAMES)
    loads = Counter(placement.sources.values())
    assert len(loads) == gpus and max(loads.values()) - min(loads.values()) <= 1
    assert settle(placement, NOW_NS) == 0


def test_a_source_keeps_its_gpu_when_its_decoder_starts_again_or_others_come_and_go():
    placement = placed(2, NAMES)
    before = dict(placement.sources)
    for name in [*NAMES, "new"]:
        placement.place(name, [*NAMES, "new"], NOW_NS)
    assert {name: placement.sources[name] for name in NAMES} == before


def test_sources_that_are_gone_do_not_count():
    placement = placed(2, NAMES)
    kept = [name for name, number in placement.sources.items() if number == 0]
    assert {placement.place(f"new{i}", [*kept, *(f"new{i}" for i in range(7))], NOW_NS) for i in range(7)} == {1}
    assert placement.sources.keys() == {*kept, *(f"new{i}" for i in range(7))}


def test_the_sources_of_a_lost_gpu_go_to_the_others_and_come_back():
    placement = placed(3, NAMES)
    lost = [name for name, number in placement.sources.items() if number == 1]
    placement.lost_ns[1] = NOW_NS
    assert all(placement.better(name, NOW_NS) in (0, 2) for name in lost)
    for name in lost:
        placement.place(name, NAMES, NOW_NS + 1)
    assert sorted(Counter(placement.sources.values()).values()) == [7, 7]
    assert settle(placement, NOW_NS + REST_NS - 1) == 0
    assert settle(placement, NOW_NS + REST_NS) == 4
    assert sorted(Counter(placement.sources.values()).values()) == [4, 5, 5]


def test_one_source_moves_at_a_time():
    placement = placed(2, NAMES)
    placement.sources = dict.fromkeys(NAMES, 0)
    assert sum(placement.better(name, NOW_NS) is not None for name in NAMES) == 1


def test_a_worker_waits_before_it_tries_a_lost_gpu_again():
    placement = placed(2, NAMES)
    placement.lost_ns[1] = NOW_NS
    assert placement.rests(1, NOW_NS) and not placement.rests(0, NOW_NS)
    assert not placement.rests(1, NOW_NS + RETRY_NS)


def test_when_all_are_lost_each_is_tried_at_once():
    placement = placed(2, NAMES)
    placement.lost_ns = {0: NOW_NS, 1: NOW_NS}
    assert placement.healthy(NOW_NS) == [0, 1]
    assert not placement.rests(0, NOW_NS) and settle(placement, NOW_NS) == 0


@pytest.fixture
def settings(run_dir):
    with Gpus(run_dir).change() as placement:
        placement.uuids, placement.asked = UUIDS[:2], ["all"]
    return Settings(run_dir=run_dir, backend="cpu", gpus="all")


def test_processes_agree_by_a_file(settings):
    decoder, worker, fusion = (BY_NAME[name] for name in ("decoder", "infer_tiles", "fusion"))
    first = choose(settings, decoder, "a", ["a", "b"])
    other = choose(settings, decoder, "b", ["a", "b"])
    assert {first.number, other.number} == {0, 1} and first.uuid == UUIDS[first.number]
    assert choose(settings, decoder, "a", ["a", "b"]).number == first.number
    assert [choose(settings, worker, str(i), []).number for i in range(4)] == [0, 1, 0, 1]
    assert choose(settings, fusion, "0", []) is None
    assert first.is_of_source("a") and not first.is_of_source("b") and not first.is_of_source("unknown")
    assert other.is_of_worker("3") == (other.number == 1) and not other.is_of_worker("x")
    with pytest.raises(AppError, match=r"infer_tiles\.x .* needs a number"):
        choose(settings, worker, "x", [])


def test_a_process_that_loses_its_gpu_ends_to_be_started_elsewhere(settings):
    worker, decoder = BY_NAME["preprocess"], BY_NAME["decoder"]
    lost = choose(settings, worker, "1", [])
    sources = [f"cam{i}" for i in range(6)]
    decoders = {name: choose(settings, decoder, name, sources) for name in sources}
    assert lost.others_are_healthy() and decoders["cam0"].others_are_healthy()
    assert may_start(settings, worker, "1") and healthy_uuids(settings) == (UUIDS[0], UUIDS[1])
    assert exit_code(GpuLost("it failed"), lost) == RESTART
    assert not may_start(settings, worker, "1") and may_start(settings, worker, "0")
    assert may_start(settings, BY_NAME["fusion"], "0") and healthy_uuids(settings) == (UUIDS[0],)
    for name, gpu in decoders.items():
        assert gpu.others_are_healthy() == (gpu.number == 1)
        if gpu.number == 1:
            with pytest.raises(GpuLost, match=f"{name} moves to another one"):
                gpu.moves(name)
        else:
            assert not gpu.moves(name)
    assert {choose(settings, decoder, name, sources).number for name in sources} == {0}


def test_what_is_no_fault_of_the_gpu_ends_as_before(settings):
    gpu = choose(settings, BY_NAME["preprocess"], "0", [])
    assert exit_code(AppError("a bad setting"), gpu) == CONFIG
    assert exit_code(GpuLost("the only one"), None) == SOFTWARE
    assert exit_code(NoGpu("none"), None) == CONFIG
    assert healthy_uuids(settings) == tuple(UUIDS[:2])


def test_a_group_with_one_gpu_or_none_has_no_file(run_dir):
    assert gpus_of(Settings(run_dir=run_dir)) is None
    assert gpus_of(Settings(run_dir=run_dir, backend="cpu", gpus="all")) is None
    assert choose(Settings(run_dir=run_dir), BY_NAME["decoder"], "a", ["a"]) is None
    assert not (run_dir / FILE).exists()


def test_a_damaged_file_is_one_error(settings, run_dir):
    (run_dir / FILE).write_text("{")
    with pytest.raises(AppError, match=r"gpus\.json is damaged"):
        healthy_uuids(settings)


def test_what_was_lost_before_a_reboot_is_not_lost():
    placement = placed(2, NAMES)
    placement.lost_ns[1] = NOW_NS + 1  # of another clock
    assert placement.is_healthy(1, NOW_NS) and not placement.rests(1, NOW_NS)


def test_another_setting_is_another_placement(settings):
    choose(settings, BY_NAME["decoder"], "a", ["a"])
    establish(settings)
    assert gpus_of(settings).placement.sources.keys() == {"a"}
    establish(settings.model_copy(update={"backend": "cuda", "gpus": (UUIDS[2],)}))
    changed = gpus_of(settings).placement
    assert (changed.uuids, changed.asked, changed.sources) == ([UUIDS[2]], [UUIDS[2]], {})
