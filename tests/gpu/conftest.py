"""Tests of the CUDA backend: `python -m pytest tests/gpu` on a GPU host; elsewhere Triton's interpreter, where it can.

Environment on a host where the test material does not lie beside the checkout: PLAN (a YOLO26n plan for this GPU),
FOOTAGE (the folder of the 4K clip and its truth).
"""

import os
from pathlib import Path

import pytest

from peoplecounter.common import backend
from tests.support.group import Group

GPU = all(fine for what, fine, _ in backend.cuda_checks() if what == "NVIDIA GPU")
if not GPU:
    os.environ["TRITON_INTERPRET"] = "1"  # before triton is imported


def pytest_collection_modifyitems(items):
    missing = next((f"{what}: {detail}" for what, fine, detail in backend.cuda_checks() if not fine), None)
    for item in items:
        if missing and item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason=f"the cuda backend cannot run here ({missing})"))


@pytest.fixture(scope="session")
def plan():
    path = Path(os.environ.get("PLAN", "/tmp/gpu/plans/yolo26n_coco.trt86vc.sm90.fp16.plan"))
    if not path.is_file():
        pytest.skip(f"no plan at {path}: set PLAN")
    return path


@pytest.fixture(scope="session")
def street():
    path = Path(os.environ.get("FOOTAGE", ".gpu/footage")) / "towncentre_4k_mosaic_h264.mp4"
    if not path.is_file():
        pytest.skip(f"no clip at {path}: set FOOTAGE")
    return path.absolute()


@pytest.fixture
def reader(run_dir):
    from tests.gpu.ends import Reader

    one = Reader(run_dir)
    yield one
    one.close()


@pytest.fixture
def gpu_group(run_dir, plan):
    groups = []

    def make(sources, **settings):
        groups.append(Group(run_dir, plan, sources, backend="cuda", **settings))
        return groups[-1]

    yield make
    for group in groups:
        try:
            group.close()
        finally:
            for process in group.processes.values():
                if process.poll() is None:
                    process.kill()
                    process.wait()
