"""Detectors cut to persons and made for another size: the same persons, by real models and by hand-made heads."""

import lzma
import subprocess
from pathlib import Path

import av
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from peoplecounter.common.engine.model import DEMO_MODEL
from peoplecounter.common.engine.onnxruntime import OnnxEngine
from peoplecounter.common.errors import CONFIG, NO_INPUT, AppError
from peoplecounter.common.settings import EngineSettings
from peoplecounter.deploy.engine.edit import cut_to_persons, resize
from tests.support.cli import ROOT, argv


@pytest.fixture(scope="module")
def street(footage):
    """Images of 640 px of a street, float32 [4, 3, 640, 640]."""
    with av.open(str(footage / "towncentre_1080p.mp4")) as clip:
        rgb = next(clip.decode(video=0)).to_ndarray(format="rgb24")
    places = [(0, 0), (200, 600), (300, 1000), (440, 1280)]
    return np.stack([rgb[y : y + 640, x : x + 640].transpose(2, 0, 1) for y, x in places]).astype(np.float32) / 255


def persons(path, images, **settings):
    engine = OnnxEngine(EngineSettings(model=str(path), **settings))
    return [engine.run(image[None]) for image in images]


def outputs(path, images):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {"images": images})[0]


def test_a_real_detector_cut_to_persons_finds_the_same(yolo, street, tmp_path):
    out = tmp_path / "persons.onnx"
    cut_to_persons(yolo, out)
    found = persons(yolo, street)
    assert sum(map(len, found)) > 5
    for before, after in zip(found, persons(out, street)):
        np.testing.assert_allclose(after, before, atol=1e-3)
    assert out.stat().st_size < yolo.stat().st_size
    assert outputs(out, street[:3]).shape == (3, 300, 6)  # the batch is still free
    with pytest.raises(AppError, match="'person' is class 0"):
        OnnxEngine(EngineSettings(model=str(out), person_class=3))


def test_a_real_detector_of_another_size(yolo, street, tmp_path):
    wide, back = tmp_path / "wide.onnx", tmp_path / "back.onnx"
    resize(yolo, wide, 1280, 736)
    resize(wide, back, 640, 640)
    np.testing.assert_array_equal(outputs(back, street), outputs(yolo, street))
    assert OnnxEngine(EngineSettings(model=str(wide))).input.size == (1280, 736)
    image = np.full((1, 3, 736, 1280), 114 / 255, np.float32)
    image[0, :, 64:704, 256:896] = street[1]
    (inside,), (alone,) = persons(wide, image), persons(yolo, street[1:2])
    sure = alone[alone[:, 5] > 0.5]
    assert len(sure) > 1
    for person in sure:  # the same people, at their new place
        assert np.abs(inside[:, 1:5] - person[1:5] - [256, 64, 256, 64]).max(1).min() < 20


def test_a_real_dense_detector_with_masks_of_another_size(footage, street, tmp_path):
    packed = footage.parent / "models" / "yolo11n-seg_fp32_b1.onnx.xz"
    model, wide, back = (tmp_path / f"{name}.onnx" for name in ("yolo11n-seg", "wide", "back"))
    model.write_bytes(lzma.decompress(packed.read_bytes()))
    resize(model, wide, 1280, 736)
    resize(wide, back, 640, 640)
    (before,), (after,) = persons(model, street[1:2]), persons(back, street[1:2])
    assert len(before) > 1
    np.testing.assert_array_equal(after, before)
    assert OnnxEngine(EngineSettings(model=str(wide))).input.size == (1280, 736)


def dense(path, joined=False, strange=False, classes=3):
    """A detector [B, 4 + classes, places] of 64 px images: each class' score is the mean of a cell times its number.

    `joined`: boxes and scores of a grid are brought together and split again, as YOLOv8 to YOLO12 do. `strange`: its
    images are reshaped in a way that depends on their size.
    """
    weights = np.zeros((4 + classes, 3, 8, 8), np.float32)
    weights[4:] = (np.arange(classes)[:, None, None, None] + 1) / (3 * 64)
    nodes, parts = [], []
    for stride in (8, 16, 32):
        tiled = np.kron(weights, np.ones((1, 1, stride // 8, stride // 8), np.float32)) / (stride // 8) ** 2
        for name, rows in (("box", tiled[:4]), ("class", tiled[4:])):
            kernel, shape = f"{name}{stride}.W", f"{name}{stride}.shape"
            cells = (64 // stride) ** 2
            parts += [numpy_helper.from_array(rows, kernel)]
            parts += [numpy_helper.from_array(np.array([-1, len(rows), cells]), shape)]
            nodes.append(helper.make_node("Conv", ["images", kernel], [f"{name}{stride}"], strides=[stride, stride]))
            if not joined:
                nodes.append(helper.make_node("Reshape", [f"{name}{stride}", shape], [f"{name}{stride}.flat"]))
        if joined:
            shape = f"both{stride}.shape"
            parts.append(numpy_helper.from_array(np.array([-1, 4 + classes, cells]), shape))
            nodes.append(helper.make_node("Concat", [f"box{stride}", f"class{stride}"], [f"both{stride}"], axis=1))
            nodes.append(helper.make_node("Reshape", [f"both{stride}", shape], [f"both{stride}.flat"]))
    for name in ("both",) if joined else ("box", "class"):
        nodes.append(helper.make_node("Concat", [f"{name}{s}.flat" for s in (8, 16, 32)], [name], axis=2))
    if joined:
        parts.append(numpy_helper.from_array(np.array([4, classes]), "sizes"))
        nodes.append(helper.make_node("Split", ["both", "sizes"], ["box", "class"], axis=1))
    strides = np.concatenate([np.full((1, (64 // s) ** 2), s, np.float32) for s in (8, 16, 32)], 1)
    parts.append(numpy_helper.from_array(strides, "strides"))
    nodes.append(helper.make_node("Constant", [], ["nothing"], value_float=1.0))  # not all constants are tensors
    nodes.append(helper.make_node("Mul", ["box", "nothing"], ["box.same"]))
    nodes.append(helper.make_node("Mul", ["box.same", "strides"], ["box.px"]))
    nodes.append(helper.make_node("Sigmoid", ["class"], ["scores"]))
    nodes.append(helper.make_node("Concat", ["box.px", "scores"], ["output0"], axis=1))
    if strange:
        for name, sides in (("there", [1, 3 * 64 * 64]), ("back", [-1, 3, 64, 64])):
            parts.append(numpy_helper.from_array(np.array(sides), f"{name}.shape"))
        for node in nodes:
            node.input[:] = ["back" if name == "images" else name for name in node.input]
        nodes.insert(0, helper.make_node("Reshape", ["images", "there.shape"], ["there"]))
        nodes.insert(1, helper.make_node("Reshape", ["there", "back.shape"], ["back"]))
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, 64, 64])
    output = helper.make_tensor_value_info("output0", TensorProto.FLOAT, ["batch", 4 + classes, 84])
    model = helper.make_model(helper.make_graph(nodes, "dense", [images], [output], parts), ir_version=8)
    model.opset_import[0].version = 17
    helper.set_model_props(model, {"names": "{0: 'car', 1: 'person', 2: 'dog'}"})
    onnx.save(model, str(path))
    return path


@pytest.mark.parametrize("joined", [False, True])
def test_a_dense_head_keeps_the_right_class(tmp_path, joined):
    before, after = dense(tmp_path / "m.onnx", joined), tmp_path / "persons.onnx"
    cut_to_persons(before, after)
    images = np.random.default_rng(0).random((2, 3, 64, 64), np.float32)
    whole, cut = outputs(before, images), outputs(after, images)
    assert cut.shape == (2, 5, 84)
    np.testing.assert_allclose(cut, whole[:, [0, 1, 2, 3, 5]], rtol=1e-6)
    assert OnnxEngine(EngineSettings(model=str(after))).head.person_class == 0


def test_a_dense_head_of_another_size_has_as_many_more_places(tmp_path):
    wide = tmp_path / "wide.onnx"
    resize(dense(tmp_path / "m.onnx"), wide, 128, 64)
    assert outputs(wide, np.zeros((2, 3, 64, 128), np.float32)).shape == (2, 7, 168)


def test_a_model_that_would_not_run_is_not_written(tmp_path):
    with pytest.raises(AppError, match=r"cannot be changed: the result does not run|not built as expected"):
        resize(dense(tmp_path / "m.onnx", strange=True), tmp_path / "wide.onnx", 128, 64)
    assert not (tmp_path / "wide.onnx").exists()


def test_rows_of_an_unknown_number_are_refused(yolo, tmp_path):
    model = onnx.load(str(yolo))
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_param = "rows"
    onnx.save(model, str(tmp_path / "free.onnx"))
    with pytest.raises(AppError, match=r"its rows are not \[B, number, 6\]"):
        cut_to_persons(tmp_path / "free.onnx", tmp_path / "persons.onnx")


@pytest.mark.parametrize(
    "arguments, code, message",
    [
        (("persons", "none.onnx"), NO_INPUT, "does not exist"),
        (("persons", DEMO_MODEL), CONFIG, "cannot be changed"),
        (("resize", DEMO_MODEL, "--size", "640x384"), CONFIG, "cannot be changed"),
        (("resize", DEMO_MODEL, "--size", "650x640"), CONFIG, "multiples of 32"),
        (("resize", DEMO_MODEL, "--size", "wide"), CONFIG, "use WIDTHxHEIGHT"),
        (("resize", DEMO_MODEL, "--size", "0x640"), CONFIG, "multiples of 32"),
    ],
)
def test_what_cannot_be_changed_is_said_in_one_line(tmp_path, arguments, code, message):
    command, source, *options = arguments
    out = tmp_path / "x.onnx"
    done = subprocess.run(argv("engine", command, source, out, *options), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == code and message in done.stderr and len(done.stderr.splitlines()) == 1
    assert not Path(out).exists()
