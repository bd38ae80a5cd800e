"""TensorRT: graphs change nothing, memory of another process changes nothing, bad plans give clear errors."""

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from peoplecounter.common.engine.placing import each_alone
from peoplecounter.common.errors import CONFIG, NO_INPUT, AppError
from peoplecounter.common.settings import EngineSettings
from tests.gpu.ends import Owner
from tests.support.cli import argv

pytestmark = pytest.mark.gpu
PARTS = [(0, 1), (1, 16), (17, 16), (3, 5), (0, 17), (1, 16), (0, 32)]  # first image, count


@pytest.fixture
def make(plan, reader):
    from peoplecounter.common.engine.tensorrt import TensorRTEngine

    engines = []

    def make(**options):
        engines.append(TensorRTEngine(EngineSettings(model=str(plan)), reader.work, **options))
        engines[-1].warm_up()
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


def upload(images):
    """A slot of this process' own with these images."""
    from peoplecounter.common.cuda import check, cudart
    from peoplecounter.common.ipc.memory import Block

    address = int(check(cudart.cudaMalloc(images.nbytes)))
    kind = cudart.cudaMemcpyKind.cudaMemcpyHostToDevice
    check(cudart.cudaMemcpy(address, images.ctypes.data, images.nbytes, kind))
    return Block(address, images.nbytes)


def test_graphs_are_bit_identical_to_plain_launches(make):
    from tests.gpu.owner import IMAGES, random_images

    slots = [upload(random_images(seed, IMAGES.images)) for seed in range(3)]
    plain, graphs = make(graphs=False), make()
    for _ in range(3):  # captured, then replayed, in changing order
        for slot in slots:
            for first, count in PARTS:
                outputs = []
                for engine in (plain, graphs):
                    engine.start(slot, IMAGES, each_alone(IMAGES.input.size, count, first))
                    outputs.append(engine.outputs(count))
                for a, b in zip(*outputs):
                    np.testing.assert_array_equal(a, b)
    assert graphs.counters["graphs_captured"] == len(slots) * len(set(PARTS))
    assert graphs.counters["batches_plain"] == 0 and plain.counters["batches_graph"] == 0


def test_images_in_another_process_memory_give_the_same_bits(make, reader, run_dir):
    from tests.gpu.owner import IMAGES, random_images

    engine = make()
    owner = Owner(run_dir, "images")
    try:
        for seed in range(4):
            own = upload(random_images(seed, IMAGES.images))
            owner.tell("images", seed)
            for _ in range(3):
                taken = reader.take()
                part = taken[1].part
                lease, done = reader.upstream.lease(*taken), []
                placing = each_alone(IMAGES.input.size, len(part.views), part.first)
                collect = engine.start(lease.slot, lease.layout, placing)
                reader.work.on_done(lambda d=done, lease=lease: d.append(lease.release()))
                reader.until(lambda d=done: d, "the inference")
                remote, boxes = engine.outputs(len(part.views)), collect()[0]
                again = engine.start(own, IMAGES, placing)
                for a, b in zip(remote, engine.outputs(len(part.views))):
                    np.testing.assert_array_equal(a, b)
                assert boxes == again()[0]
    finally:
        owner.kill()


def test_more_graphs_than_are_kept_still_give_results(make, monkeypatch):
    from peoplecounter.common.engine import graph_cache
    from tests.gpu.owner import IMAGES, random_images

    monkeypatch.setattr(graph_cache, "GRAPHS_MAX", 3)
    slot = upload(random_images(1, IMAGES.images))
    engine, plain = make(), make(graphs=False)
    for first in [*range(8), *range(8)]:
        for one in (engine, plain):
            one.start(slot, IMAGES, each_alone(IMAGES.input.size, 2, first))
        np.testing.assert_array_equal(engine.outputs(2)[0], plain.outputs(2)[0])
    assert len(engine._graphs) == 3


def test_bad_plans_are_rejected_with_a_clear_error(plan, reader, tmp_path):
    from peoplecounter.common.engine.tensorrt import TensorRTEngine

    data = plan.read_bytes()
    bad = {"cut": data[: len(data) // 2], "header": data[:64], "newer": data[:24] + b"\xff\x09" + data[26:]}
    for name, content in bad.items():
        path = tmp_path / f"{name}.plan"
        path.write_bytes(content)
        with pytest.raises(AppError, match="does not load in TensorRT") as refusal:
            TensorRTEngine(EngineSettings(model=str(path)), reader.work)
        print(f"{name}: {refusal.value}")
        assert refusal.value.code == CONFIG and "\n" not in str(refusal.value)
    (tmp_path / "model.onnx").write_bytes(b"\x08\x09")
    with pytest.raises(AppError, match="not a TensorRT plan"):
        TensorRTEngine(EngineSettings(model=str(tmp_path / "model.onnx")), reader.work)
    with pytest.raises(AppError, match="does not exist") as refusal:
        TensorRTEngine(EngineSettings(model=str(tmp_path / "none.plan")), reader.work)
    assert refusal.value.code == NO_INPUT


def test_a_plan_of_tensorrt_rtx_for_another_gpu_is_rejected_by_name(reader, street, tmp_path):
    """RTX_PLAN: a plan for sm120, built anywhere; this GPU is no RTX 50. Without its sidecar the runtime is missing."""
    from peoplecounter.common.engine.tensorrt import TensorRTEngine

    plan = Path(os.environ.get("RTX_PLAN", ".gpu/rtx/plaza.plan"))
    if not plan.is_file():
        pytest.skip(f"no plan of TensorRT-RTX at {plan}: set RTX_PLAN")
    with pytest.raises(AppError, match=r"was built for sm120, this GPU is .* \(sm90\): build it with another --target"):
        TensorRTEngine(EngineSettings(model=str(plan)), reader.work)
    done = subprocess.run(argv("run", street, "--model", plan), capture_output=True, text=True)
    assert done.returncode == CONFIG and len(done.stderr.splitlines()) == 1 and "built for sm120" in done.stderr
    bare = tmp_path / "bare.plan"
    bare.write_bytes(plan.read_bytes())
    with pytest.raises(AppError, match="needs TensorRT-RTX, which is not installed: install the extra 'gpu-rtx'"):
        TensorRTEngine(EngineSettings(model=str(bare)), reader.work)
