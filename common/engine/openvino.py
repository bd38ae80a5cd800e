"""OpenVINO on the CPU: the extra `openvino`. It computes in BF16 or INT8 where the processor can.

Its outputs are those of ONNX Runtime but for the rounding of these types. Q/DQ pairs of other tools than `engine
precision` are computed as they stand, without INT8: OpenVINO 2026.4 finds nobody in a model with signed activations.
"""

import ctypes
import fcntl
import io
import tempfile
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import openvino

from peoplecounter.common.engine.cpu import CpuEngine
from peoplecounter.common.engine.heads import Output
from peoplecounter.common.engine.model import Model, read_model
from peoplecounter.common.engine.onnx_file import FOR_ONNX_RUNTIME, has_pairs, is_int8_for_cpus
from peoplecounter.common.engine.onnx_io import ModelInput, OnnxDetector, describe
from peoplecounter.common.errors import AppError
from peoplecounter.common.files import cache_folder, make_private_folder
from peoplecounter.common.settings import EngineSettings

VERSION = openvino.__version__.partition("-")[0]
NAMES = {"bf16": "BF16", "f32": "FP32", "f16": "FP16"}


class OpenVinoEngine(CpuEngine):
    """A compiled model. Raises AppError for one that cannot be loaded or is no supported detector."""

    def __init__(
        self,
        settings: EngineSettings,
        threads: int = 1,
        counters: Counter[str] | None = None,
        model: Model | None = None,
    ):
        model = model or read_model(settings)
        core, int8 = openvino.Core(), is_int8_for_cpus(model.data)
        options = {
            "INFERENCE_NUM_THREADS": threads,
            "ENABLE_CPU_PINNING": False,  # pinned processes of a group would share one core
            "PERFORMANCE_HINT": "LATENCY",
        }
        if settings.precision == "fp32":
            options["INFERENCE_PRECISION_HINT"] = "f32"
        if not int8:
            options["LP_TRANSFORMS_MODE"] = False
        try:
            with ExitStack() as opened:  # weights in files of their own are mapped until the model is compiled
                graph = _read(core, model, opened)
                described = describe(model, _inputs(graph), _outputs(graph), settings)
                _fix_sizes(graph, described)
                if int8:
                    _drop_pairs(graph)
                compiled = _compile(core, graph, options)
        except AppError:
            raise
        except Exception as error:  # OpenVINO raises RuntimeError with a page of text
            raise AppError(f"The model {model.name} cannot be loaded by OpenVINO: {_first_line(error)}") from None
        self._request = compiled.create_infer_request()
        kind = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
        about = f"OpenVINO {VERSION} {'INT8' if int8 else NAMES.get(kind, kind)}, threads: {threads}"
        super().__init__(described, settings.score, about, counters)

    def _outputs(self, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        kept = {name: _writable(array) for name, array in inputs.items()}
        for name, array in kept.items():
            self._request.set_tensor(name, openvino.Tensor(array, shared_memory=True))
        self._request.infer()
        return [np.array(self._request.get_tensor(name).data) for name in self.head.outputs]

    def close(self) -> None:
        self._request = None


def gains(model: Model, settings: EngineSettings) -> bool:
    """True when OpenVINO is faster than ONNX Runtime on this processor: in BF16, and in INT8 as it wants it."""
    if has_pairs(model.data):
        return is_int8_for_cpus(model.data)
    return settings.precision == "auto" and "BF16" in capabilities()


def capabilities() -> list[str]:
    """The types that this processor computes in, as OpenVINO names them."""
    return openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def _read(core: openvino.Core, model: Model, opened: ExitStack) -> openvino.Model:
    if not model.files:
        return core.read_model(io.BytesIO(model.data))
    folder = Path(opened.enter_context(tempfile.TemporaryDirectory()))
    for name, data in {**model.files, "model.onnx": model.data}.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return core.read_model(folder / "model.onnx")


def _inputs(graph: openvino.Model) -> list[ModelInput]:
    return [
        ModelInput(
            i.get_any_name(),
            [None if side.is_dynamic else side.get_length() for side in i.partial_shape],
            i.element_type.to_dtype().name,
        )
        for i in graph.inputs
    ]


def _outputs(graph: openvino.Model) -> list[Output]:
    return [
        Output(o.get_any_name(), [None if side.is_dynamic else side.get_length() for side in o.partial_shape])
        for o in graph.outputs
    ]


def _fix_sizes(graph: openvino.Model, described: OnnxDetector) -> None:
    """Free sides get their length, so that the model is compiled for it."""
    batch = described.batch or 1
    shapes: dict[str, list[int]] = {described.images: [batch, *described.input.image_shape]}
    if described.sizes:
        shapes[described.sizes] = [batch, 2]
    graph.reshape(shapes)


def _drop_pairs(graph: openvino.Model) -> None:
    """Leaves out the Q/DQ pairs that only ONNX Runtime needs, so that convolutions and x·sigmoid(x) become one."""
    nodes = {node.get_friendly_name(): node for node in graph.get_ordered_ops()}
    for name, node in nodes.items():
        if name.startswith(FOR_ONNX_RUNTIME) and name.endswith(":DQ"):
            quantized = nodes[name.removesuffix("DQ") + "Q"].input_value(0).get_node()
            for target in node.output(0).get_target_inputs():
                target.replace_source_output(quantized.input_value(0))
    graph.validate_nodes_and_infer_types()


def _compile(core: openvino.Core, graph: openvino.Model, options: dict) -> openvino.CompiledModel:
    """Compiles the model, or takes it from this user's cache; one process at a time, as OpenVINO locks nothing."""
    try:
        folder = cache_folder() / "openvino"
        make_private_folder(folder, "cache")
        lock = (folder / "lock").open("w")
    except (OSError, AppError):
        return core.compile_model(graph, "CPU", options)
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return core.compile_model(graph, "CPU", {**options, "CACHE_DIR": str(folder)})


def _writable(array: np.ndarray) -> np.ndarray:
    """The same memory as OpenVINO accepts it. It only reads: slots are mapped read-only, a write would end the process.

    The array, and with it the mapping, outlives the call of infer() that reads it.
    """
    array = np.ascontiguousarray(array)  # slots are
    if array.flags.writeable:
        return array
    values = (ctypes.c_uint8 * array.nbytes).from_address(array.ctypes.data)
    return np.ctypeslib.as_array(values).view(array.dtype).reshape(array.shape)


def _first_line(error: Exception) -> str:
    """What OpenVINO complains of, without the places in its source."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if not line.startswith(("Exception from", "Check '"))]
    return (telling or lines or ["no reason given"])[0][:300]
