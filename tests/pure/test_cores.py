"""The rule by which a group shares the cores of a machine."""

import os

import pytest

from peoplecounter.common import cores
from peoplecounter.common.process.gpus import Gpus
from peoplecounter.common.settings import Settings


def shares(number, **settings):
    """(infer_tiles processes, their threads, threads of infer_global) on a machine with so many cores."""
    chosen = Settings(cores=number, **settings)
    return cores.process_count(chosen, "infer_tiles"), *(
        cores.threads(chosen, f"infer_{n}") for n in ("tiles", "global")
    )


@pytest.mark.parametrize(
    "number, expected",
    [(1, (1, 1, 1)), (2, (2, 1, 2)), (4, (4, 1, 4)), (16, (16, 1, 8)), (24, (16, 2, 8)), (64, (16, 4, 8))],
)
def test_every_core_has_one_thread_for_tiles(number, expected):
    assert shares(number) == expected


def test_settings_override_the_rule():
    assert shares(8, workers={"infer_tiles": 2}) == (2, 4, 8)
    assert shares(8, engine={"threads": 3}) == (8, 3, 3)
    assert shares(64, workers={"infer_tiles": 1}) == (1, 8, 8)  # more threads of one process gain nothing
    assert cores.process_count(Settings(workers={"infer_global": 2, "preprocess": 3}), "preprocess") == 3


@pytest.mark.parametrize(
    "affinity, quotas, expected", [(8, (), 8), (8, (2.0,), 2), (8, (1.5, 4), 2), (8, (0.1,), 1), (2, (64.0,), 2)]
)
def test_quotas_and_affinity_limit_the_cores(affinity, quotas, expected):
    assert cores.available(set(range(affinity)), *quotas) == expected


def test_the_cores_of_this_machine_follow_the_affinity():
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert cores.count(Settings()) == 1
    finally:
        os.sched_setaffinity(0, before)
    assert 1 <= cores.count(Settings()) <= len(before)


def test_the_quota_of_a_control_group_is_read_with_those_around_it(tmp_path):
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    (tmp_path / "a" / "cpu.max").write_text("150000 100000\n")
    (inner / "cpu.max").write_text("max 100000\n")
    assert cores.quotas("12:cpu:/x\n0::/a/b\n", tmp_path) == [1.5]
    assert cores.quotas("12:cpu:/x\n", tmp_path) == []
    assert cores.quotas("0::/elsewhere\n", tmp_path) == []


UUIDS = [f"GPU-00000000-0000-0000-0000-00000000000{i}" for i in range(2)]
# 9 processes with 2 infer_tiles: 2 decoders, preprocess, infer_global, fusion, history, dashboard
GPU = {"backend": "cuda", "sources": {"a": {"url": "a.mp4"}, "b": {"url": "b.mp4"}}}


@pytest.mark.parametrize(
    "number, chosen, expected",
    [
        (9, {}, True),
        (8, {}, False),
        (8, {"link": {"poll": "on"}}, True),
        (64, {"link": {"poll": "off"}}, False),
        (64, {"backend": "cpu"}, False),
        (64, {"backend": "auto", "engine": {"model": "tcp://host:8500"}}, False),
        (9, {"workers": {"infer_tiles": 3}}, False),
        (9, {"workers": {"infer_tiles": 2, "fusion": 2}}, False),
    ],
)
def test_processes_poll_where_each_can_have_a_core(tmp_path, number, chosen, expected):
    wanted = {"workers": {"infer_tiles": 2}, **GPU, **chosen}
    assert cores.poll(Settings(run_dir=tmp_path, cores=number, **wanted)) is expected


def test_every_gpu_has_processes_of_its_own(tmp_path):
    """Whatever the settings of one process name: a worker's own GPU, or those that are healthy."""
    with Gpus(tmp_path).change() as placement:
        placement.uuids = UUIDS
    for own in ({"gpus": ("0", "1")}, {"gpu": UUIDS[1]}, {"gpus": UUIDS[1:]}):
        wanted = {**GPU, **own, "workers": {"infer_tiles": 2}}
        assert [cores.poll(Settings(run_dir=tmp_path, cores=n, **wanted)) for n in (12, 13)] == [False, True]
