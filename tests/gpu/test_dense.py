"""Dense heads on the GPU give the persons that heads.py gives on the CPU; elsewhere in Triton's interpreter."""

import numpy as np
import pytest

from peoplecounter.common.engine.heads import Head, head
from peoplecounter.common.engine.layouts import HEADS, Context, Output
from peoplecounter.common.errors import ModelOutputError
from tests.gpu.conftest import GPU

torch = pytest.importorskip("torch", reason="torch is installed for Python 3.11 only, see the extra 'dev'")
pytest.importorskip("triton")
from peoplecounter.common.engine.dense import rows  # noqa: E402

DEVICE = "cuda" if GPU else "cpu"


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
    found = rows([torch.from_numpy(output).to(DEVICE)], one, 0.3, anchors=1024).cpu().numpy()
    expected = one.persons([output.astype(np.float32)], 0.3)
    assert len(expected) > 20
    np.testing.assert_allclose(persons(one, found, 0.3), expected, atol=0.1 if dtype == "float16" else 1e-4)


@pytest.mark.parametrize("name", [kind.name for kind in HEADS if kind.dense])
def test_every_dense_layout_is_decoded_alike(name):
    """The decoders are the same code for NumPy and torch."""
    kind = next(kind for kind in HEADS if kind.name == name)
    size, random = (64, 64), np.random.default_rng(5)
    places = {"yolov5": 252}.get(name, 84)
    shapes = {"yolo": [(2, 7, places)], "yolonas": [(2, places, 4), (2, places, 3)]}.get(name, [(2, places, 8)])
    outputs = [random.random(shape).astype(np.float32) for shape in shapes]
    one = Head(kind, tuple(f"o{i}" for i in range(len(shapes))), 1, size)
    for ours, theirs in zip(one.decode(outputs), one.decode([torch.from_numpy(o).to(DEVICE) for o in outputs])):
        np.testing.assert_allclose(theirs.cpu().numpy(), ours, rtol=1e-4)


def test_a_head_that_gives_fewer_anchors_than_rows():
    output = np.zeros((1, 84, 4), np.float32)
    output[0, :5, 2] = 50, 50, 10, 20, 0.9
    found = rows([torch.from_numpy(output).to(DEVICE)], _head(), 0.3, anchors=64)
    np.testing.assert_allclose(persons(_head(), found.cpu().numpy(), 0.3), [[0, 45, 40, 55, 60, 0.9]])


@pytest.mark.parametrize("channel", [0, 3, 4])
def test_nan_reaches_the_check_on_the_cpu(channel):
    output = np.zeros((2, 84, 400), np.float32)
    output[:, :5, 2] = 50, 50, 10, 20, 0.9
    output[1, channel, 2] = np.nan
    found = rows([torch.from_numpy(output).to(DEVICE)], _head(), 0.3, anchors=64)
    with pytest.raises(ModelOutputError, match="not a number"):
        persons(_head(), found.cpu().numpy(), 0.3)


def persons(one, found, score):
    return one.of_boxes(found[..., :4], found[..., 4], score, suppressed=True)


def _head():
    return head([Output("output0", ["B", 84, "anchors"])], Context((640, 640)))
