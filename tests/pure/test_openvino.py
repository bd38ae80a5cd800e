"""OpenVINO gives the persons that ONNX Runtime gives, reads slots in place, and is taken only where it gains."""

import mmap
import stat

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from peoplecounter.common import backend
from peoplecounter.common.engine import loading
from peoplecounter.common.engine import openvino as engines
from peoplecounter.common.engine.model import read_model
from peoplecounter.common.engine.onnx_file import has_pairs, is_fp8, is_int8_for_cpus
from peoplecounter.common.engine.onnxruntime import OnnxEngine
from peoplecounter.common.engine.openvino import OpenVinoEngine
from peoplecounter.common.engine.placing import each_alone
from peoplecounter.common.errors import CONFIG, AppError
from peoplecounter.common.ipc.messages import TensorLayout
from peoplecounter.common.settings import EngineSettings
from tests.support.squares import SIZE, make_model, picture

FP32 = {"precision": "fp32"}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CACHE_DIRECTORY", str(tmp_path / "cache"))
    return tmp_path / "cache" / "openvino"


def images(count=2, dtype=np.float32):
    pictures = [picture(seq, SIZE, SIZE).transpose(2, 0, 1) for seq in range(count)]
    return np.stack(pictures).astype(dtype) / dtype(255)


def both(path, **settings):
    chosen = EngineSettings(model=str(path), **FP32, **settings)
    return OnnxEngine(chosen), OpenVinoEngine(chosen)


@pytest.mark.parametrize(
    "options", [{}, {"batch": 1}, {"batch": 4}, {"dtype": TensorProto.FLOAT16}, {"channels_last": True}, {"width": 112}]
)
def test_it_finds_what_onnx_runtime_finds(tmp_path, options):
    plain, other = both(make_model(tmp_path / "m.onnx", **options))
    assert other.input == plain.input and other.batch(9) == plain.batch(9)
    other.warm_up()
    given = np.zeros((plain.batch(9), *plain.input.image_shape), plain.input.dtype)
    given.reshape(-1)[::3] = 1
    np.testing.assert_allclose(other.run(given), plain.run(given), rtol=1e-3)
    assert other.about.startswith("OpenVINO 20") and "FP32, threads: 1" in other.about


def test_weights_in_another_file(tmp_path):
    plain, other = both(make_model(tmp_path / "m.onnx", external="weights.bin"))
    np.testing.assert_allclose(other.run(images(1)), plain.run(images(1)), rtol=1e-3)


def test_slots_are_read_in_place_from_a_mapping_that_cannot_be_written(tmp_path):
    """A write would end this process: that it does not is the proof that OpenVINO only reads."""
    plain, other = both(make_model(tmp_path / "m.onnx"))
    (tmp_path / "slot").write_bytes(images(3).tobytes())
    with (tmp_path / "slot").open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    slot, layout = np.frombuffer(mapped, np.uint8), TensorLayout(3, other.input)
    assert not slot.flags.writeable
    for first in (0, 1, 2, 1):
        placing = each_alone(other.input.size, 1, first)
        boxes, gpu_ns = other.start(slot, layout, placing)()
        expected = placing.rows(plain.run(images(3)[first : first + 1]))
        np.testing.assert_allclose(np.frombuffer(boxes, np.float32).reshape(-1, 8), expected, rtol=1e-3)
        assert len(expected) and gpu_ns == 0


def test_compiled_models_are_kept_for_this_user_alone(tmp_path, cache):
    path = make_model(tmp_path / "m.onnx")
    first = both(path)[1]
    (blob,) = cache.glob("*.blob")
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700
    np.testing.assert_array_equal(both(path)[1].run(images()[:1]), first.run(images()[:1]))
    assert list(cache.glob("*.blob")) == [blob]


def test_without_a_cache_folder_models_are_compiled_each_time(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("CACHE_DIRECTORY", str(tmp_path / "file"))
    assert len(both(make_model(tmp_path / "m.onnx"))[1].run(images(1)))


def test_what_cannot_be_loaded_is_one_line(tmp_path):
    whole = make_model(tmp_path / "m.onnx").read_bytes()
    for name, data in (("cut", whole[: len(whole) // 2]), ("text", b"hello"), ("empty", b"")):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(AppError) as refusal:
            OpenVinoEngine(EngineSettings(model=str(tmp_path / name)))
        assert "\n" not in str(refusal.value) and name in str(refusal.value) and refusal.value.code == CONFIG


def quantized(path, kind):
    """The squares' model whose images pass a Q/DQ pair of this type."""
    model = onnx.load(str(make_model(path)))
    zero = helper.make_tensor("middle", kind, [], [-128 if kind == TensorProto.INT8 else 0])
    scale = numpy_helper.from_array(np.array(1 / 255 if kind != TensorProto.FLOAT8E4M3FN else 1, np.float32), "step")
    model.graph.initializer.extend([scale, zero])
    (reader,) = [node for node in model.graph.node if "images" in node.input]
    reader.input[0] = "rounded"
    for i, (operator, source, target) in enumerate(
        [("QuantizeLinear", "images", "small"), ("DequantizeLinear", "small", "rounded")]
    ):
        model.graph.node.insert(i, helper.make_node(operator, [source, "step", "middle"], [target]))
    model.opset_import[0].version = 19
    onnx.save(model, str(path))
    return path


@pytest.mark.parametrize("kind", [TensorProto.INT8, TensorProto.UINT8])
def test_pairs_of_other_tools_are_computed_as_they_stand(tmp_path, kind):
    plain, other = both(quantized(tmp_path / "m.onnx", kind))
    assert len(plain.run(images(1)))
    np.testing.assert_allclose(other.run(images(1)), plain.run(images(1)), rtol=1e-2)


def test_types_are_read_from_the_file_itself(tmp_path):
    plain = make_model(tmp_path / "m.onnx").read_bytes()
    int8, fp8 = (
        quantized(tmp_path / "q.onnx", kind).read_bytes() for kind in (TensorProto.INT8, TensorProto.FLOAT8E4M3FN)
    )
    assert [has_pairs(data) for data in (plain, int8, fp8, b"", b"\xff" * 99)] == [False, True, True, False, False]
    assert [is_fp8(data) for data in (plain, int8, fp8, b"", b"\xff" * 99)] == [False, False, True, False, False]
    assert not any(is_int8_for_cpus(data) for data in (plain, int8, fp8))


def test_auto_takes_it_only_where_it_gains(tmp_path, monkeypatch):
    settings = EngineSettings(model=str(make_model(tmp_path / "m.onnx")))
    for able, kind in ((["FP32", "BF16"], OpenVinoEngine), (["FP32", "INT8"], OnnxEngine)):
        monkeypatch.setattr(engines, "capabilities", lambda able=able: able)
        assert engines.gains(read_model(settings), settings) == (kind is OpenVinoEngine)
        assert not engines.gains(read_model(settings), settings.model_copy(update=FP32))
    monkeypatch.setattr(engines, "gains", lambda model, settings: True)
    assert isinstance(loading.cpu_engine(settings), OpenVinoEngine)
    assert isinstance(loading.cpu_engine(settings.model_copy(update={"runtime": "onnxruntime"})), OnnxEngine)
    foreign = EngineSettings(model=str(quantized(tmp_path / "q.onnx", TensorProto.INT8)))
    monkeypatch.undo()
    assert not engines.gains(read_model(foreign), foreign)


def test_auto_falls_back_on_onnx_runtime(tmp_path, monkeypatch):
    def fails(*_):
        raise AppError("The model m.onnx cannot be loaded by OpenVINO: no.")

    monkeypatch.setattr(engines, "gains", lambda model, settings: True)
    monkeypatch.setattr(engines, "OpenVinoEngine", fails)
    settings = EngineSettings(model=str(make_model(tmp_path / "m.onnx")))
    assert isinstance(loading.cpu_engine(settings), OnnxEngine)
    with pytest.raises(AppError, match="by OpenVINO"):
        loading.cpu_engine(settings.model_copy(update={"runtime": "openvino"}))


def test_where_it_is_not_installed_that_is_said(monkeypatch):
    monkeypatch.setattr(backend, "importable", lambda module: False)
    with pytest.raises(AppError, match="install the extra 'openvino'"):
        loading.cpu_engine(EngineSettings(runtime="openvino"))
    assert isinstance(loading.cpu_engine(EngineSettings()), OnnxEngine)
