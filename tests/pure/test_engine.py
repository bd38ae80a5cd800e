"""Models are told apart by their shapes; wrong ones give a clear error; each layout gives the same persons."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from peoplecounter.common.boxes import iou_matrix, nms_keep, overlapping_pairs
from peoplecounter.common.engine.heads import Head, head
from peoplecounter.common.engine.images import read_shape, with_pixels
from peoplecounter.common.engine.layouts import HEADS, NAMES, Context, Output
from peoplecounter.common.engine.metadata import Metadata, read_metadata
from peoplecounter.common.engine.model import read_model
from peoplecounter.common.engine.onnx_file import external_files, metadata
from peoplecounter.common.engine.onnxruntime import OnnxEngine
from peoplecounter.common.errors import CONFIG, NO_INPUT, AppError, ModelOutputError
from peoplecounter.common.files import sha256
from peoplecounter.common.ipc.messages import Input
from peoplecounter.common.settings import EngineSettings
from tests.support.squares import SIZE, make_model


def outputs_of(*shapes):
    return [Output(f"output{i}", shape) for i, shape in enumerate(shapes)]


def read_as(*shapes, size=(640, 640), wanted="auto", person=None, inputs=1, **metadata):
    return head(outputs_of(*shapes), Context(size, inputs, Metadata(**metadata)), wanted, person)


COCO = {0: "person", 1: "bicycle"} | {i: f"thing {i}" for i in range(2, 80)}


@pytest.mark.parametrize(
    "shapes, more, kind",
    [
        ([["B", 300, 6]], {}, "rows"),
        ([["B", "n", 6]], {}, "rows"),
        ([["B", 300, 38], ["B", 32, 160, 160]], {}, "rows"),
        ([["B", 84, 8400]], {}, "yolo"),
        ([["B", 116, 8400], ["B", 32, 160, 160]], {}, "yolo"),
        ([[1, 5, 8400]], {}, "yolo"),
        ([[1, 84, "anchors"]], {}, "yolo"),
        ([[1, 56, 8400]], {"task": "pose", "names": {0: "person"}}, "yolo"),
        ([[1, 25200, 85]], {}, "yolov5"),
        ([[1, 25200, 6]], {"names": {0: "person"}}, "yolov5"),
        ([[1, 6300, 6]], {"size": (320, 320)}, "yolov5"),
        ([[1, 8400, 85]], {}, "yolox"),
        ([[1, 3549, 85]], {"size": (416, 416)}, "yolox"),
        ([[1, 5040, 85]], {"size": (640, 384)}, "yolox"),
        ([[1, 8400, 85]], {"wanted": "yolov6"}, "yolov6"),
        ([[1, 8400, 4], [1, 8400, 80]], {}, "yolonas"),
        ([[1, 300, 84]], {}, "rtdetr"),
        ([[1, 300, 6]], {"description": "Ultralytics RTDETR-l model", "names": {0: "person", 1: "dog"}}, "rtdetr"),
        ([[1, 300, 6]], {"wanted": "rtdetr"}, "rtdetr"),
        ([[1, 300, 4], [1, 300, 80]], {}, "detr"),
        ([[1, 300, 80], [1, 300, 4]], {}, "detr"),  # scores before boxes
    ],
)
def test_layouts(shapes, more, kind):
    assert read_as(*shapes, **more).kind.name == kind


@pytest.mark.parametrize(
    "named, inputs, kind",
    [
        ({"dets": [1, 300, 4], "labels": [1, 300, 91]}, 1, "rfdetr"),
        ({"labels": [1, 300], "boxes": [1, 300, 4], "scores": [1, 300]}, 2, "dfine"),
        ({"num_dets": [1, 1], "det_boxes": [1, 100, 4], "det_scores": [1, 100], "det_classes": [1, 100]}, 1, "nms"),
    ],
)
def test_layouts_told_by_their_names(named, inputs, kind):
    found = head([Output(name, shape) for name, shape in named.items()], Context((640, 640), inputs))
    assert found.kind.name == kind


@pytest.mark.parametrize(
    "shapes, more",
    [
        ([], {}),
        ([[1, 1000]], {}),
        ([["B", 300, 7]], {"names": COCO}),
        ([["B", 3, 640, 640]], {}),
        ([["B", 4, 8400]], {}),
        ([["B", 8400, 84]], {}),  # a transposed YOLOv8, or a YOLOX of 79 classes
        ([["B", 84, 8400]], {"names": {0: "person", 1: "dog"}}),
        ([["B", 6, 8400]], {"names": {0: "person"}}),  # an angle behind the class: oriented boxes
    ],
)
def test_what_is_no_known_detector_is_refused(shapes, more):
    with pytest.raises(AppError, match="are not supported"):
        read_as(*shapes, **more)


@pytest.mark.parametrize("task", ["obb", "classify"])
def test_a_model_for_another_task_is_refused(task):
    with pytest.raises(AppError, match=f"made for {task!r}"):
        read_as(["B", 84, 8400], task=task)


@pytest.mark.parametrize(
    "names, person, found",
    [
        ({}, None, 0),
        ({}, 3, 3),
        (COCO, None, 0),
        ({i: str(i) for i in range(80)}, None, 0),  # names that name nothing
        ({**COCO, 0: "bicycle", 1: "Person"}, None, 1),
        ({**COCO, 0: "head", 1: "thing 1"}, 0, 0),
        (COCO, 1, "leave the setting out"),
        ({**COCO, 0: "head"}, None, "no class called 'person'"),
        ({**COCO, 1: "pedestrian"}, None, "several classes of persons"),
        ({**COCO, 1: "pedestrian"}, 1, 1),
        ({}, 80, "no class 80"),
    ],
)
def test_the_class_of_a_person_is_found_by_its_name(names, person, found):
    if isinstance(found, int):
        assert read_as(["B", 84, 8400], names=names, person=person).person_class == found
    else:
        with pytest.raises(AppError, match=found):
            read_as(["B", 84, 8400], names=names, person=person)


def test_metadata_is_read_as_exporters_write_it():
    written = {"names": "{0: 'helmet', 1: 'person'}", "task": "detect", "imgsz": "[384, 640]"}
    read = read_metadata(written)
    assert (read.names, read.task, read.size) == ({0: "helmet", 1: "person"}, "detect", (640, 384))
    assert read_metadata({"names": "['a', 'b']", "imgsz": "640"}).names == {0: "a", 1: "b"}
    for broken in ("{0: ", "__import__('os')", "7", "{'a': 1}"):
        assert read_metadata({"names": broken, "imgsz": broken}).names == {}


SIDE = 64  # of the input of the small models below: 8 x 8, 4 x 4 and 2 x 2 places
PLACES = 84
CENTRES = [[20, 40, 20, 40, 0.9], [44, 30, 16, 30, 0.5]]  # cx, cy, w, h, score of two persons
CORNERS = [[x - w / 2, y - h / 2, x + w / 2, y + h / 2, score] for x, y, w, h, score in CENTRES]


def made(name):
    """The outputs of a hand-made model of this layout that sees the two persons, and a car of class 2."""
    rows = np.zeros((1, 20, 6), np.float32)
    rows[0, :2, :5], rows[0, 2] = CORNERS, [0, 0, 9, 9, 0.99, 2]
    shares = np.array([[x / SIDE, y / SIDE, w / SIDE, h / SIDE] for x, y, w, h, _ in CENTRES], np.float32)
    if name == "rows":
        return [rows]
    if name in ("rtdetr", "rfdetr", "detr"):
        boxes, scores = np.zeros((1, 20, 4), np.float32), np.full((1, 20, 3), 1e-4, np.float32)
        boxes[0, :2], scores[0, :2, 0] = shares, [0.9, 0.5]
        boxes[0, 2], scores[0, 2, 2] = 0.5, 0.99
        return [np.concatenate([boxes, scores], 2)] if name == "rtdetr" else [boxes, np.log(scores / (1 - scores))]
    if name == "dfine":
        return [rows[..., 5].astype(np.int64), rows[..., :4], rows[..., 4]]
    if name == "nms":
        return [np.array([[3]], np.int32), rows[..., :4], rows[..., 4], rows[..., 5]]
    boxes, scores = np.zeros((1, PLACES, 4), np.float32), np.zeros((1, PLACES, 3), np.float32)
    boxes[0, :] = [32, 32, 4, 4]
    for i, (x, y, w, h, score) in enumerate(CENTRES):
        boxes[0, 10 * i], scores[0, 10 * i, 0] = [x, y, w, h], score
        boxes[0, 10 * i + 1], scores[0, 10 * i + 1, 0] = [x + 1, y, w, h], score - 0.1  # seen twice
    scores[0, 70, 2] = 0.99
    if name == "yolo":
        return [np.concatenate([boxes, scores], 2).transpose(0, 2, 1)]
    if name == "yolonas":
        corners = np.concatenate([boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., :2] + boxes[..., 2:] / 2], 2)
        return [corners, scores]
    if name == "yolox":  # relative to its grid of 8, 16 and 32 px
        strides = np.repeat([8, 16, 32], [64, 16, 4])
        cells = np.concatenate([np.stack(np.mgrid[:n, :n][::-1], -1).reshape(-1, 2) for n in (8, 4, 2)])
        boxes[0, :, :2] = boxes[0, :, :2] / strides[:, None] - cells
        boxes[0, :, 2:] = np.log(boxes[0, :, 2:] / strides[:, None])
    return [np.concatenate([boxes, np.ones((1, PLACES, 1), np.float32), scores], 2)]


@pytest.mark.parametrize("kind", HEADS, ids=NAMES)
def test_every_layout_gives_the_same_persons(kind):
    outputs = [np.concatenate([output, output]) for output in made(kind.name)]
    found = Head(kind, (), 0, (SIDE, SIDE)).persons(outputs, 0.25)
    np.testing.assert_allclose(found[:, 1:], np.vstack([CORNERS, CORNERS]), rtol=1e-4, atol=1e-3)
    assert found[:, 0].tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("kind", HEADS, ids=NAMES)
def test_nan_is_an_error_in_every_layout(kind):
    for number, output in enumerate(made(kind.name)):
        if output.dtype != np.float32 or (kind.name == "nms" and number == 3):
            continue
        outputs = made(kind.name)
        outputs[number][...] = np.nan
        with pytest.raises(ModelOutputError, match="not a number"):
            Head(kind, (), 0, (SIDE, SIDE)).persons(outputs, 0.25)


@pytest.mark.parametrize("column", range(5))
def test_nan_in_one_value_of_one_row_is_an_error(column):
    (output,) = made("rows")
    output[0, 15, column] = np.nan
    with pytest.raises(ModelOutputError, match="not a number"):
        Head(HEADS[0], (), 0, (SIDE, SIDE)).persons([output], 0.25)


def test_no_rows_and_masks_that_are_nan_are_no_error():
    rows = Head(HEADS[0], (), 0, (SIDE, SIDE))
    assert len(rows.persons([np.zeros((1, 0, 6), np.float32)], 0.25)) == 0
    output = np.full((1, 20, 38), np.nan, np.float32)
    output[..., :6] = made("rows")[0]
    assert len(rows.persons([output], 0.25)) == len(CENTRES)


@pytest.mark.parametrize(
    "really, taken_for, message",
    [
        ("rtdetr", "rows", "no whole numbers"),
        ("detr", "yolonas", "as shares of a side"),
        ("yolov6", "yolox", "far outside|not a number"),
        ("yolonas", "yolonas with logits", "scores are above 1"),
        ("rows", "rows from centres", "end before they begin"),
    ],
)
def test_a_model_that_is_misread_says_what_it_seems_to_be(really, taken_for, message):
    """What the shapes do not tell, the values do."""
    outputs = made(really)
    if really == "rtdetr":  # of two classes, so its shape is that of rows
        outputs[0] = np.concatenate([outputs[0][..., :4], np.tile(np.float32([0.9, 0.3]), (1, 20, 1))], 2)
    if taken_for == "yolonas with logits":
        outputs[1] = outputs[1] + 7
    if taken_for == "rows from centres":
        outputs[0] = np.tile(np.float32([40, 40, 8, 20, 0.9, 0]), (1, 20, 1))
    kind = next(kind for kind in HEADS if kind.name == taken_for.split()[0])
    with pytest.raises(ModelOutputError, match=message):
        Head(kind, (), 0, (SIDE, SIDE)).persons(outputs, 0.25)


def test_nms_keeps_the_best_and_the_far():
    boxes = np.array([[0, 0, 10, 10, 0.9], [1, 0, 11, 10, 0.8], [50, 50, 60, 60, 0.7]], np.float32)
    assert nms_keep(boxes, 0.5).tolist() == [True, False, True]


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
        {"images": (TensorProto.FLOAT, [1, 1, 640, 640])},
        {"images": (TensorProto.INT32, [1, 3, 640, 640])},
        {"images": (TensorProto.FLOAT, [1, 3])},
        {"images": (TensorProto.FLOAT, [1, 3, 16, 640])},
        {"images": (TensorProto.FLOAT, [1, 3, 64, 64]), "sizes": (TensorProto.FLOAT, [1])},
    ],
)
def test_a_wrong_input_is_rejected_with_a_clear_error(tmp_path, inputs):
    with pytest.raises(AppError, match=r"of the model .* not supported .*expected") as refusal:
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
    assert engine.input == Input(SIZE, SIZE)
    images = np.zeros((1, 3, SIZE, SIZE), np.float32)
    images[0, :, 16:32, 32:48] = 1
    engine.warm_up()
    found = engine.run(images)
    np.testing.assert_allclose(found, [[0, 37, 21, 43, 27, 1]], rtol=1e-6)


@pytest.mark.parametrize("free", [{}, {"imgsz": "[128, 160]"}])
def test_free_sides_take_the_size_that_the_model_was_exported_for(free):
    read, batch = read_shape([None, 3, None, None], "float32", read_metadata(free), "m.onnx")
    assert read == (Input(160, 128) if free else Input(640, 640)) and batch is None


def test_the_pixels_are_those_of_the_head_unless_the_settings_say_otherwise():
    yolox = HEADS[NAMES.index("yolox")].pixels
    assert with_pixels(Input(64, 64), yolox, "auto") == Input(64, 64, scale=(255, 255, 255), bgr=True, corner=True)
    assert with_pixels(Input(64, 64), yolox, "rgb") == Input(64, 64, corner=True)
    assert with_pixels(Input(64, 64, "uint8"), {}, "auto").scale == (255, 255, 255)
    assert with_pixels(Input(64, 64), {}, "imagenet").offset[0] == pytest.approx(-2.1179, abs=1e-4)


def test_weights_in_another_file_are_read_hashed_and_confined(tmp_path):
    path = make_model(tmp_path / "m.onnx", external="weights.bin")
    assert external_files(path.read_bytes(), "m") == ["weights.bin"]
    model = read_model(EngineSettings(model=str(path)))
    OnnxEngine(EngineSettings(model=str(path), sha256=sha256(model.blob)))
    before = sha256(model.blob)
    (tmp_path / "weights.bin").write_bytes(bytes(len(model.files["weights.bin"])))
    with pytest.raises(AppError, match="SHA-256"):
        OnnxEngine(EngineSettings(model=str(path), sha256=before))
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(AppError, match="which holds weights of"):
        OnnxEngine(EngineSettings(model=str(path)))


@pytest.mark.parametrize("location", ["../w.bin", "/etc/passwd", "a/../../w.bin"])
def test_weights_outside_of_the_models_folder_are_refused(tmp_path, location):
    (tmp_path / "folder").mkdir()
    path = make_model(tmp_path / "folder" / "m.onnx", external="weights.bin")
    model = onnx.load(str(path), load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    path.write_bytes(model.SerializeToString())
    with pytest.raises(AppError, match="outside of its"):
        OnnxEngine(EngineSettings(model=str(path)))


def test_a_link_out_of_the_models_folder_is_refused(tmp_path):
    (tmp_path / "folder").mkdir()
    path = make_model(tmp_path / "folder" / "m.onnx", external="weights.bin")
    (tmp_path / "folder" / "weights.bin").rename(tmp_path / "weights.bin")
    (tmp_path / "folder" / "weights.bin").symlink_to(tmp_path / "weights.bin")
    with pytest.raises(AppError, match="a link out of its own folder"):
        OnnxEngine(EngineSettings(model=str(path)))


def test_metadata_is_found_without_onnx(tmp_path):
    path = make_model(tmp_path / "m.onnx")
    model = onnx.load(str(path))
    helper.set_model_props(model, {"names": "{0: 'person'}", "task": "detect"})
    assert metadata(model.SerializeToString()) == {"names": "{0: 'person'}", "task": "detect"}
    assert metadata(b"no onnx file") == {}


def test_results_for_fewer_images_than_were_given_are_an_error(tmp_path):
    """None at all, too: that would be a count of 0."""
    engine = OnnxEngine(EngineSettings(model=str(make_model(tmp_path / "m.onnx"))))
    for results in (0, 2):
        engine._outputs = lambda inputs, results=results: [np.zeros((results, 25, 6), np.float32)]
        with pytest.raises(ModelOutputError, match=f"gives {results} results for 1 images"):
            engine.run(np.zeros((1, 3, SIZE, SIZE), np.float32))
