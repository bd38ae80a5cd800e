"""Which GPU a group uses."""

import os

import pytest

from peoplecounter.common import backend
from peoplecounter.common.errors import AppError
from peoplecounter.common.settings import Settings

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
