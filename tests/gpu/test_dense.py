"""Dense heads on the GPU give the persons that heads.py gives on the CPU; elsewhere in Triton's interpreter."""

import numpy as np
import pytest

from peoplecounter.common.engine.heads import Head, head
from peoplecounter.common.engine.layouts import HEADS, Context, Output
from peoplecounter.common.engine.placing import each_alone
from peoplecounter.common.errors import ModelOutputError

torch = pytest.importorskip("torch", reason="torch is installed for Python 3.11 only, see the extra 'dev'")
pytest.importorskip("triton")
from peoplecounter.common.engine.dense import WARPS, dense_layout, kernel_calls, scratch  # noqa: E402
from tests.support import kernels  # noqa: E402
from tests.support.select import selected  # noqa: E402


def rows(outputs, head, score, anchors):
    """The kernels on arrays of outputs: float32 [B, anchors, 5]."""
    layout = dense_layout(head, [output.shape for output in outputs])
    images = len(outputs[0])
    flat = [torch.from_numpy(output).to(kernels.DEVICE).reshape(-1) for output in outputs]
    places = {name: getattr(layout, name) or layout.score for name in ("boxes", "score", "objectness")}
    arrays = {name: flat[place.output][place.first :] for name, place in places.items()}
    arrays |= {name: torch.from_numpy(a).to(kernels.DEVICE) for name, a in scratch(layout, images, anchors).items()}
    arrays["rows"][:] = float("nan")  # of the frame before
    for call in kernel_calls(layout, images, head.size, score, anchors):
        given = [*(arrays[name] for name in call.arrays), *call.numbers]
        kernels.run(call.kernel, call.grid, given, call.constants, WARPS[call.kernel])
    return arrays["rows"].cpu().numpy()


@pytest.mark.parametrize(
    "channels, anchors, dtype", [(84, 400, "float16"), (84, 400, "float32"), (116, 2100, "float32")]
)
def test_the_same_persons_as_on_the_cpu(channels, anchors, dtype):
    random = np.random.default_rng(3)
    output = random.random((3, channels, anchors)).astype(dtype)
    output[:, :2] *= 200  # centres close enough to overlap
    output[:, 2:4] = 20 + 40 * output[:, 2:4]
    output[:, 4] = random.permuted(np.tile(np.linspace(0, 1, anchors) ** 3, (3, 1)), axis=1)  # no two alike, few high
    output[2, 4] = 0  # and in the last image none
    outputs = [Output("output0", ["B", channels, anchors])]
    outputs += [Output("output1", ["B", 32, 160, 160])] if channels == 116 else []
    one = head(outputs, Context((640, 640)))
    found = rows([output], one, 0.3, 1024)
    expected = one.persons([output.astype(np.float32)], 0.3)
    assert len(expected) > 20
    np.testing.assert_allclose(
        picked(one, found, 0.3), placed(one, expected, 3), atol=0.1 if dtype == "float16" else 1e-4
    )


@pytest.mark.parametrize("name", [kind.name for kind in HEADS if kind.dense])
def test_every_dense_layout_gives_what_it_gives_on_the_cpu(name):
    kind = next(kind for kind in HEADS if kind.name == name)
    size, random = (64, 64), np.random.default_rng(5)
    places = {"yolov5": 252}.get(name, 84)
    shapes = {"yolo": [(2, 7, places)], "yolonas": [(2, places, 4), (2, places, 3)]}.get(name, [(2, places, 8)])
    outputs = [random.random(shape).astype(np.float32) for shape in shapes]
    if name != "yolox":  # whose sizes are powers, and whose places lie apart
        boxes = outputs[0][:, :4] if name == "yolo" else outputs[0][..., :4]
        boxes *= 60
        if name == "yolonas":
            boxes[..., 2:] += boxes[..., :2] + 1
    one = Head(kind, tuple(f"o{i}" for i in range(len(shapes))), 1, size)
    expected = one.persons(outputs, 0.3)
    assert len(expected) > 5
    found = picked(one, rows(outputs, one, 0.3, 256), 0.3)
    np.testing.assert_allclose(found, placed(one, expected, 2), rtol=1e-4, atol=1e-4)


def test_the_best_are_kept_when_there_are_more_than_rows():
    random = np.random.default_rng(7)
    output = np.zeros((1, 84, 400), np.float32)
    output[0, 0], output[0, 1] = 30 * (np.arange(400) % 20), 30 * (np.arange(400) // 20)  # none overlaps another
    output[0, 2:4], output[0, 4] = 10, random.permutation(np.linspace(0.31, 0.99, 400))
    output[0, 4, 10:20] = 0.995  # alike: the first ones come first
    found = picked(_head(), rows([output], _head(), 0.3, 64), 0.3)
    expected = _head().persons([output], 0.3)[:64]
    np.testing.assert_allclose(found, placed(_head(), expected, 1), atol=1e-4)


def test_a_head_that_gives_fewer_anchors_than_rows():
    output = np.zeros((1, 84, 4), np.float32)
    output[0, :5, 2] = 50, 50, 10, 20, 0.9
    found = rows([output], _head(), 0.3, 64)
    np.testing.assert_allclose(picked(_head(), found, 0.3), [[45, 40, 55, 60, 0.9, 0, 0, 1]])


@pytest.mark.gpu
def test_on_the_buffers_of_an_engine():
    """As TensorRT has them: any number of images of the largest batch, one frame after the other."""
    from peoplecounter.common import cuda
    from peoplecounter.common.engine.dense import GpuDenseHead
    from peoplecounter.common.engine.tensorrt_io import OutputBuffer
    from peoplecounter.common.ipc.loop import Loop
    from peoplecounter.common.ipc.memory import memory_kind

    random = np.random.default_rng(3)
    output = random.random((8, 84, 8400)).astype(np.float16)
    output[:, :2] *= 600
    output[:, 2:4] = 20 + 60 * output[:, 2:4]
    output[:, 4] = random.permuted(np.tile(np.linspace(0, 0.999, 8400) ** 40, (8, 1)), axis=1)
    work, buffer = (
        memory_kind("cuda").work_queue(Loop()),
        OutputBuffer("o", cuda.upload(output), output.shape, "float16"),
    )
    dense = GpuDenseHead([buffer], _head(), 0.3, work.stream)
    for images in (8, 3, 8):
        dense.run(images)
        work.finish()
        found = np.empty(dense.shape, np.float32)
        to_host = cuda.cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost
        cuda.check(cuda.cudart.cudaMemcpy(found.ctypes.data, dense.address, found.nbytes, to_host))
        expected = _head().persons([output[:images].astype(np.float32)], 0.3)
        assert len(expected) > 20 * images
        np.testing.assert_allclose(picked(_head(), found[:images], 0.3), placed(_head(), expected, images), atol=0.5)
    dense.close()


@pytest.mark.parametrize("channel", [0, 3, 4])
def test_nan_reaches_the_check_on_the_cpu(channel):
    output = np.zeros((2, 84, 400), np.float32)
    output[:, :5, 2] = 50, 50, 10, 20, 0.9
    output[1, channel, 2] = np.nan
    found = rows([output], _head(), 0.3, 64)
    with pytest.raises(ModelOutputError, match="not a number"):
        picked(_head(), found, 0.3)


def picked(one, found, score):
    """What the host gets of rows float32 [B, n, 5]."""
    return selected(one, found, score, each_alone(one.size, len(found)), classes=False)


def placed(one, persons, images):
    return each_alone(one.size, images).rows(persons)


def _head():
    return head([Output("output0", ["B", 84, "anchors"])], Context((640, 640)))
