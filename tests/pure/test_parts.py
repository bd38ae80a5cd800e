"""How preprocess cuts a frame into parts, for the engines that are there."""

import os
from types import SimpleNamespace

import pytest

from peoplecounter.common.ipc.messages import SCHEMA, Hello
from peoplecounter.common.settings import PreprocessSettings
from peoplecounter.common.topology import GLOBAL, TILES
from peoplecounter.common.views import table
from peoplecounter.services.preprocess.service import Preprocess

VIEWS = table(3840, 2160, (640, 640), levels=(1.0,))  # the whole, and 32 tiles


def parts(kind, *images_max, group=0):
    """Numbers of views of the parts that infer_tiles gets; each engine says how many images suit it."""
    engines = [Hello(SCHEMA, f"infer_tiles.{i}", os.getpid(), TILES, images_max=n) for i, n in enumerate(images_max)]
    engines.append(Hello(SCHEMA, "infer_global.0", os.getpid(), GLOBAL, images_max=1))
    settings = SimpleNamespace(preprocess=PreprocessSettings(group=group))
    rt = SimpleNamespace(work=SimpleNamespace(kind=kind), settings=settings)
    whole, *tiles = Preprocess.parts(SimpleNamespace(rt=rt, tensors=SimpleNamespace(consumers=engines)), VIEWS)
    assert whole.key == (GLOBAL, 0) and len(whole.views) == 1
    assert sum((part.views for part in tiles), ()) == VIEWS[1:] and {part.of for part in tiles} == {1 + len(tiles)}
    return [len(part.views) for part in tiles]


@pytest.mark.parametrize(
    "images_max, sizes",
    [
        ((32,), [32]),  # one batch of 32 takes less time than two of 16
        ((64,), [32]),
        ((8,), [8] * 4),
        ((32, 32), [16, 16]),  # each worker gets as many
        ((32, 16), [16, 16]),
        ((32, 4), [4] * 8),
        ((0,), [16, 16]),  # an engine that does not say
        ((), [16, 16]),  # none is there yet
    ],
)
def test_parts_on_a_gpu_are_as_large_as_the_plans_take(images_max, sizes):
    assert parts("cuda", *images_max) == sizes


def test_the_setting_bounds_them():
    assert parts("cuda", 32, group=8) == [8] * 4


def test_parts_on_a_cpu_are_small():
    assert parts("shm", 0) == [4] * 8 and parts("shm", 0, 0) == [2] * 16
