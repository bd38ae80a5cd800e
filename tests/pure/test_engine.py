"""Models are told apart by their shapes; wrong ones give a clear error; each layout gives the same persons."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from peoplecounter.common.boxes import iou_matrix, nms, overlapping_pairs
from peoplecounter.common.engine.heads import head
from peoplecounter.common.engine.onnxruntime import OnnxEngine
from peoplecounter.common.errors import CONFIG, NO_INPUT, AppError, ModelOutputError
from peoplecounter.common.settings import EngineSettings
from tests.support.squares import SIZE, make_model

PERSON = [[10, 20, 30, 60, 0.9], [100, 20, 130, 90, 0.5]]  # x1, y1, x2, y2, score


@pytest.mark.parametrize(
    "shapes, dense_classes",
    [
        ([["B", 300, 6]], 0),
        ([["B", 300, 38], ["B", 32, 160, 160]], 0),
        ([["B", 84, 8400]], 80),
        ([["B", 116, 8400], ["B", 32, 160, 160]], 80),
        ([[1, 5, 8400]], 1),
        ([[1, 84, "anchors"]], 80),
    ],
)
def test_layouts(shapes, dense_classes):
    assert head(shapes, 0).dense_classes == dense_classes


@pytest.mark.parametrize(
    "shapes", [[], [[1, 1000]], [["B", 300, 7]], [["B", 3, 640, 640]], [["B", 4, 8400]], [["B", 8400, 84]]]
)
def test_what_is_no_detector_is_refused(shapes):
    with pytest.raises(AppError, match="outputs are not supported"):
        head(shapes, 0)


def test_a_class_the_model_does_not_have_is_refused():
    with pytest.raises(AppError, match="class 80"):
        head([["B", 84, 8400]], 80)


def rows_output(width=6):
    output = np.zeros((1, 300, width), np.float32)
    output[0, :2, :5] = PERSON
    output[0, 2, :6] = [0, 0, 9, 9, 0.99, 2]  # a car
    output[0, 3, :5] = [0, 0, 9, 9, 0.1]  # too weak
    return output


def dense_output(channels=84):
    output = np.zeros((1, channels, 8400), np.float32)
    for i, (x1, y1, x2, y2, score) in enumerate(PERSON):
        output[0, :5, 100 * i] = (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1, score
        output[0, :5, 100 * i + 1] = (x1 + x2) / 2 + 1, (y1 + y2) / 2, x2 - x1, y2 - y1, score - 0.1  # a second view
    output[0, 4 + 2, 7000] = 0.99  # a car
    return output


@pytest.mark.parametrize(
    "shapes, output",
    [
        ([["B", 300, 6]], rows_output()),
        ([["B", 300, 38], ["B", 32, 160, 160]], rows_output(38)),
        ([["B", 84, 8400]], dense_output()),
        ([["B", 116, 8400], ["B", 32, 160, 160]], dense_output(116)),
    ],
)
def test_every_layout_gives_the_same_persons(shapes, output):
    found = head(shapes, 0).persons(np.vstack([output, output]), 0.25)
    np.testing.assert_allclose(found[:, 1:], np.vstack([PERSON, PERSON]), rtol=1e-6)
    assert found[:, 0].tolist() == [0] * len(PERSON) + [1] * len(PERSON)


@pytest.mark.parametrize("column", range(6))
def test_nan_in_rows_is_an_error(column):
    output = rows_output()
    output[0, 200, column] = np.nan
    with pytest.raises(ModelOutputError, match="not a number"):
        head([["B", 300, 6]], 0).persons(output, 0.25)


@pytest.mark.parametrize("channel", [0, 3, 4, 83])
def test_nan_in_a_dense_output_is_an_error(channel):
    output = dense_output()
    output[0, channel, 5000] = np.nan
    with pytest.raises(ModelOutputError, match="not a number"):
        head([["B", 84, 8400]], 0).persons(output, 0.25)


def test_no_rows_and_masks_that_are_nan_are_no_error():
    assert len(head([["B", "n", 6]], 0).persons(np.zeros((1, 0, 6), np.float32), 0.25)) == 0
    output = rows_output(38)
    output[..., 6:] = np.nan
    assert len(head([["B", 300, 38], ["B", 32, 160, 160]], 0).persons(output, 0.25)) == len(PERSON)


def test_nms_keeps_the_best_and_the_far():
    boxes = np.array([[0, 0, 10, 10, 0.9], [1, 0, 11, 10, 0.8], [50, 50, 60, 60, 0.7]], np.float32)
    assert nms(boxes, 0.5)[:, 4].tolist() == pytest.approx([0.9, 0.7])


def test_iou_of_empty_and_known_boxes():
    a = np.array([[0, 0, 10, 10], [0, 0, 0, 0]], np.float32)
    b = np.array([[5, 0, 15, 10], [2, 2, 4, 4]], np.float32)
    np.testing.assert_allclose(iou_matrix(a, b), [[1 / 3, 0.04], [0, 0]], atol=1e-6)
    assert iou_matrix(a, np.zeros((0, 4), np.float32)).shape == (2, 0)


def test_overlapping_pairs_give_the_share_of_the_smaller_box():
    first, second, iou, ios = overlapping_pairs(np.array([[0, 0, 10, 10], [5, 0, 15, 10], [2, 2, 4, 4]], np.float32))
    assert list(zip(first, second)) == [(0, 1), (0, 2)]
    np.testing.assert_allclose(iou, [1 / 3, 0.04], atol=1e-6)
    np.testing.assert_allclose(ios, [0.5, 1.0], atol=1e-6)


def save(path, inputs, outputs, op="Identity"):
    """The smallest model with these inputs and outputs: name -> (type, shape)."""
    infos = [helper.make_tensor_value_info(n, t, s) for n, (t, s) in inputs.items()]
    outs = [helper.make_tensor_value_info(n, t, s) for n, (t, s) in outputs.items()]
    constant = numpy_helper.from_array(
        np.zeros([1 if isinstance(d, str) else d for d in outs and outputs[outs[0].name][1]], np.float32), "c"
    )
    nodes = [helper.make_node(op, ["c"], [outs[0].name])]
    model = helper.make_model(
        helper.make_graph(nodes, "g", infos, outs, [constant]),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=9,
    )
    onnx.save(model, str(path))
    return str(path)


GOOD = {"output0": (TensorProto.FLOAT, [1, 300, 6])}


@pytest.mark.parametrize(
    "inputs",
    [
        {"images": (TensorProto.FLOAT, [1, 3, 640, 480])},
        {"images": (TensorProto.FLOAT, [1, 1, 640, 640])},
        {"images": (TensorProto.FLOAT, [4, 3, 640, 640])},
        {"images": (TensorProto.UINT8, [1, 3, 640, 640])},
        {"images": (TensorProto.FLOAT, [1, 3])},
        {"images": (TensorProto.FLOAT, [1, 3, 64, 64]), "sizes": (TensorProto.FLOAT, [1])},
    ],
)
def test_a_wrong_input_is_rejected_with_a_clear_error(tmp_path, inputs):
    with pytest.raises(AppError, match=r"expected one float32 or float16 input \[B, 3, S, S\]") as refusal:
        OnnxEngine(EngineSettings(model=save(tmp_path / "m.onnx", inputs, GOOD)))
    assert refusal.value.code == CONFIG


def test_a_missing_a_broken_and_a_foreign_file(tmp_path):
    with pytest.raises(AppError, match="does not exist") as refusal:
        OnnxEngine(EngineSettings(model=str(tmp_path / "no.onnx")))
    assert refusal.value.code == NO_INPUT
    whole = make_model(tmp_path / "squares.onnx").read_bytes()
    for name, data in (("cut", whole[: len(whole) // 2]), ("text", b"hello"), ("empty", b"")):
        (tmp_path / f"{name}.onnx").write_bytes(data)
        with pytest.raises(AppError, match="cannot be loaded") as refusal:
            OnnxEngine(EngineSettings(model=str(tmp_path / f"{name}.onnx")))
        assert "\n" not in str(refusal.value)


def test_the_engine_says_what_it_reads_and_finds_what_is_there(tmp_path):
    engine = OnnxEngine(EngineSettings(model=str(make_model(tmp_path / "m.onnx"))))
    assert (engine.input.size_px, engine.input.dtype) == (SIZE, "float32")
    images = np.zeros((1, 3, SIZE, SIZE), np.float32)
    images[0, :, 16:32, 32:48] = 1
    engine.warm_up()
    found = engine.run(images)
    np.testing.assert_allclose(found, [[0, 35, 19, 45, 29, 1]], rtol=1e-6)
