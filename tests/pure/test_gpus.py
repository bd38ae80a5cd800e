"""Sources on several GPUs: evenly, few move, and those of a GPU that was lost go to the others and come back."""

import time
from collections import Counter

import pytest

from peoplecounter.common.errors import CONFIG, RESTART, SOFTWARE, AppError, GpuLost, NoGpu
from peoplecounter.common.process.control import claim_instance
from peoplecounter.common.process.gpus import (
    FILE,
    REST_NS,
    RETRY_NS,
    Gpus,
    Placement,
    ProcessGpu,
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
    assert settle(placement, NOW_NS + REST_NS) == 0  # nothing has started there again
    placement.found_ns[1] = NOW_NS + 1
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
    first = choose(settings, decoder, "a", lambda: ["a", "b"])
    other = choose(settings, decoder, "b", lambda: ["a", "b"])
    assert {first.number, other.number} == {0, 1} and first.uuid == UUIDS[first.number]
    assert choose(settings, decoder, "a", lambda: ["a", "b"]).number == first.number
    assert [choose(settings, worker, str(i), lambda: []).number for i in range(4)] == [0, 1, 0, 1]
    assert choose(settings, fusion, "0", lambda: []) is None
    assert first.is_of_source("a") and not first.is_of_source("b") and not first.is_of_source("unknown")
    assert other.is_of_worker("3") == (other.number == 1) and not other.is_of_worker("x")
    with pytest.raises(AppError, match=r"infer_tiles\.x .* needs a number"):
        choose(settings, worker, "x", lambda: [])


def test_a_process_that_loses_its_gpu_ends_to_be_started_elsewhere(settings):
    worker, decoder = BY_NAME["preprocess"], BY_NAME["decoder"]
    lost = choose(settings, worker, "1", lambda: [])
    sources = [f"cam{i}" for i in range(6)]
    decoders = {name: choose(settings, decoder, name, lambda: sources) for name in sources}
    assert lost.others_are_healthy() and decoders["cam0"].others_are_healthy()
    assert may_start(settings, worker, "1") and healthy_uuids(gpus_of(settings)) == (UUIDS[0], UUIDS[1])
    assert exit_code(GpuLost("it failed"), lost) == RESTART
    assert not may_start(settings, worker, "1") and may_start(settings, worker, "0")
    assert may_start(settings, BY_NAME["fusion"], "0") and healthy_uuids(gpus_of(settings)) == (UUIDS[0],)
    for name, gpu in decoders.items():
        assert gpu.others_are_healthy() == (gpu.number == 1)
        if gpu.number == 1:
            with pytest.raises(GpuLost, match=f"{name} moves to another one"):
                gpu.should_move(name)
        else:
            assert not gpu.should_move(name)
    assert {choose(settings, decoder, name, lambda: sources).number for name in sources} == {0}


def test_a_lost_gpu_does_not_hold_up_the_workers_of_others(settings):
    """Two workers on each of two GPUs: 0 and 2, 1 and 3. One of each has ended."""
    locks = dict(claim_instance(settings, "preprocess", None) for _ in range(4))
    assert list(locks) == ["0", "1", "2", "3"]
    choose(settings, BY_NAME["preprocess"], "1", list).lose(started=True)
    for number in ("1", "2"):
        locks.pop(number).close()
    again = claim_instance(settings, "preprocess", None)
    assert again is not None and again[0] == "2"
    assert claim_instance(settings, "preprocess", None) is None  # 1 waits, and there is no 4
    for lock in (*locks.values(), again[1]):
        lock.close()


def test_what_is_no_fault_of_the_gpu_ends_as_before(settings):
    gpu = choose(settings, BY_NAME["preprocess"], "0", lambda: [])
    assert exit_code(AppError("a bad setting"), gpu) == CONFIG
    assert exit_code(GpuLost("the only one"), None) == SOFTWARE
    assert exit_code(GpuLost("noted by another process", noted=True), gpu) == RESTART
    assert exit_code(NoGpu("none"), None) == CONFIG
    assert healthy_uuids(gpus_of(settings)) == tuple(UUIDS[:2])


def test_what_mps_refuses_while_another_gpu_fails_says_nothing_of_this_one(settings):
    """After RETRY_NS it does: then all of them may be gone."""
    gpus = gpus_of(settings)
    assert exit_code(GpuLost("it failed"), ProcessGpu(gpus, 1)) == RESTART
    assert exit_code(NoGpu("MPS is busy"), ProcessGpu(gpus, 0)) == RESTART
    assert gpus.placement.healthy(time.monotonic_ns()) == [0]
    assert exit_code(NoGpu("it is lost"), ProcessGpu(gpus, 1)) == RESTART
    with gpus.change() as placement:
        placement.fell_ns[1] -= RETRY_NS
    assert exit_code(NoGpu("none"), ProcessGpu(gpus, 0)) == SOFTWARE
    assert set(gpus.placement.lost_ns) == {0, 1}


def test_a_group_with_one_gpu_or_none_has_no_file(run_dir):
    for settings in (Settings(run_dir=run_dir), Settings(run_dir=run_dir, backend="cpu", gpus="all")):
        establish(settings)
        assert not (run_dir / FILE).exists()
    assert gpus_of(Settings(run_dir=run_dir)) is None
    assert gpus_of(Settings(run_dir=run_dir, backend="cpu", gpus="all")) is None
    assert choose(Settings(run_dir=run_dir), BY_NAME["decoder"], "a", lambda: ["a"]) is None


def test_a_damaged_file_is_one_error(settings, run_dir):
    (run_dir / FILE).write_text("{")
    with pytest.raises(AppError, match=r"gpus\.json is damaged"):
        healthy_uuids(gpus_of(settings))


def test_what_was_lost_before_a_reboot_is_not_lost():
    placement = placed(2, NAMES)
    placement.lost_ns[1] = NOW_NS + 1  # of another clock
    assert placement.is_healthy(1, NOW_NS) and not placement.rests(1, NOW_NS)


def test_another_setting_keeps_sources_where_it_can(settings):
    numbers = {name: choose(settings, BY_NAME["decoder"], name, lambda: ["a", "b"]).number for name in ("a", "b")}
    establish(settings)
    assert gpus_of(settings).placement.sources == numbers
    establish(settings.model_copy(update={"backend": "cuda", "gpus": (UUIDS[2], UUIDS[1])}))
    changed = gpus_of(settings).placement
    (kept,) = (name for name, number in numbers.items() if number == 1)
    assert (changed.uuids, changed.asked, changed.sources) == ([UUIDS[2], UUIDS[1]], [UUIDS[2], UUIDS[1]], {kept: 1})
    establish(settings.model_copy(update={"gpus": ()}))
    assert gpus_of(settings) is None


def test_one_decoder_at_a_time_starts_again_elsewhere(settings):
    """The placement changes when its next process starts: until then the source's frames are read where they are."""
    gpus = {name: choose(settings, BY_NAME["decoder"], name, lambda: ["a", "b"]) for name in ("a", "b")}
    with Gpus(settings.run_dir).change() as placement:
        placement.sources = {"a": 0, "b": 0}
    (mover,) = (name for name, gpu in gpus.items() if gpu.should_move(name))
    assert gpus_of(settings).placement.sources == {"a": 0, "b": 0}
    assert choose(settings, BY_NAME["decoder"], mover, lambda: ["a", "b"]).number == 1
    assert not any(gpu.should_move(name) for name, gpu in gpus.items())


def test_the_only_gpu_or_the_last_one_ends_as_if_it_were_alone(settings):
    first, second = (choose(settings, BY_NAME["preprocess"], str(i), list) for i in range(2))
    assert exit_code(NoGpu("the first"), first) == RESTART
    assert exit_code(NoGpu("the second"), second) == SOFTWARE
    first.find()
    assert gpus_of(settings).placement.found_ns.keys() == {0}
