"""Which GPU a group uses."""

import os
from types import SimpleNamespace

import pytest

from peoplecounter.common import backend
from peoplecounter.common.errors import SOFTWARE, AppError, NoGpu
from peoplecounter.common.process.gpus import exit_code
from peoplecounter.common.settings import Settings
from peoplecounter.common.topology import BY_NAME
from peoplecounter.deploy.group.circus import decoder_count, process_count

UUID = "GPU-093185f4-5e25-0bcf-5fb1-711c25f3f442"


@pytest.fixture(autouse=True)
def visible(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "before")


def test_a_uuid_is_what_cuda_sees():
    backend.select_gpu(Settings(gpu=UUID))
    assert os.environ["CUDA_VISIBLE_DEVICES"] == UUID


def test_without_the_setting_nothing_changes():
    backend.select_gpu(Settings())
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "before"


def test_a_number_that_is_not_there_is_refused():
    with pytest.raises(AppError, match="There is no GPU 63"):
        backend.resolve(Settings(backend="cuda", gpu="63"))


def test_a_group_on_the_cpu_does_not_ask_for_it():
    assert backend.resolve(Settings(backend="cpu", gpu="63")) == "cpu"


@pytest.mark.parametrize("wrong", ["first", "-1", "GPU-", "0,1"])
def test_what_is_no_gpu_is_no_setting(wrong):
    with pytest.raises(ValueError, match="gpu"):
        Settings(gpu=wrong)


@pytest.mark.parametrize(
    ("said", "meant"),
    [("all", ("all",)), ("0,1", ("0", "1")), ("[0, 1]", ("0", "1")), ([0, UUID], ("0", UUID)), (3, ("3",)), ("", ())],
)
def test_several_gpus_are_a_list_or_all(said, meant):
    assert Settings(gpus=said).gpus == meant


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"gpus": "first"}, "gpus"),
        ({"gpus": [0, 0]}, "names a GPU twice"),
        ({"gpus": ["all", 0]}, "names a GPU twice"),
        ({"gpu": "1", "gpus": "all"}, "two ways to say the same"),
    ],
)
def test_several_gpus_are_different_ones_and_named_once(wrong, error):
    with pytest.raises(ValueError, match=error):
        Settings(**wrong)


def test_all_are_those_that_cuda_would_see(monkeypatch):
    other = UUID.replace("GPU-0", "GPU-1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", f"{UUID},{other}")
    settings = Settings(backend="cuda", gpus="all")
    assert backend.gpus(settings) == (UUID, other)
    backend.select_gpu(settings)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == f"{UUID},{other}"
    assert backend.gpus(Settings(backend="cpu", gpus="all")) == ()
    assert backend.gpus(Settings(backend="cuda", gpus=[other])) == (other,)


def test_a_group_has_as_many_workers_on_each_gpu():
    settings = Settings(backend="cuda", gpus=[UUID, UUID.replace("0", "1")], workers={"infer_global": 2})
    assert process_count(BY_NAME["infer_global"], settings) == 4
    assert process_count(BY_NAME["fusion"], settings) == 1


@pytest.mark.parametrize(
    "sources, gpus, expected", [(0, 2, 0), (3, 0, 3), (3, 1, 3), (1, 2, 2), (14, 2, 21), (28, 4, 35), (5, 4, 7)]
)
def test_a_group_with_several_gpus_has_spare_decoders(sources, gpus, expected):
    assert decoder_count(sources, gpus) == expected


@pytest.mark.parametrize("codes, expected", [([807, 805, 0], True), ([100], False), ([807, 100], False)])
def test_a_process_waits_a_little_while_mps_recovers(codes, expected):
    answers = iter(codes)
    assert backend._starts(SimpleNamespace(cuInit=lambda flags: next(answers))) is expected
    assert next(answers, None) is None  # all of them were taken


def test_when_mps_does_not_recover_the_process_ends_to_be_started_again(monkeypatch):
    monkeypatch.setattr(backend, "MPS_S", 0.1)
    with pytest.raises(NoGpu, match="MPS lets no process use the GPU now") as refusal:
        backend._starts(SimpleNamespace(cuInit=lambda flags: 807))
    assert exit_code(refusal.value, None) == SOFTWARE  # not a setting that is wrong
