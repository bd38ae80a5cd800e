"""ONNX Runtime on the CPU: the engine that needs no GPU."""

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime

from peoplecounter.common.engine import model
from peoplecounter.common.engine.heads import head
from peoplecounter.common.errors import Refused
from peoplecounter.common.ipc.messages import Input, TensorLayout
from peoplecounter.common.settings import Engine as EngineSettings

DEMO_MODEL = Path(__file__).with_name("plaza.onnx")
FREE_SIZE_PX = 640  # of a model whose height and width are free
QUANTIZED = b"DequantizeLinear"  # the operator that a model with Q/DQ pairs is full of
DTYPES = {"tensor(float)": "float32", "tensor(float16)": "float16"}


class OnnxEngine:
    """A detector in an ONNX file. Images are run one by one: on a CPU a batch is no faster, only later."""

    def __init__(self, settings: EngineSettings, processes: int = 1, counters: Counter | None = None):
        self.counters: Counter[str] = Counter() if counters is None else counters
        found = model.read(settings if settings.model else settings.model_copy(update={"model": str(DEMO_MODEL)}))
        path = found.name
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = settings.threads or max(1, len(os.sched_getaffinity(0)) // processes)
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # the cores are shared
        options.log_severity_level = 3
        if QUANTIZED in found.data:  # in ONNX Runtime 1.32 further optimization ruins FP8, and INT8 gets slower by it
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
            options.add_session_config_entry("session.disable_quant_qdq", "1")
        try:
            self._session = onnxruntime.InferenceSession(found.data, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime has a dozen exception types of its own
            raise Refused(f"The model {path} cannot be loaded: {str(error).splitlines()[0]}") from None
        (image, *others), outputs = self._session.get_inputs(), self._session.get_outputs()
        self._name, self._outputs, self._score = image.name, [outputs[0].name], settings.score
        self.input = _input(path, image, others)
        self._head = head([output.shape for output in outputs], settings.person_class)

    def warm_up(self) -> None:
        self.run(np.zeros((1, 3, self.input.size_px, self.input.size_px), self.input.dtype))

    def batch(self, images: int) -> int:
        return 1

    def start(self, slot: np.ndarray, layout: TensorLayout, first: int, count: int) -> Callable:
        images = slot.view(layout.dtype).reshape(layout.shape)
        persons = self.run(images[first : first + count])
        return lambda: (persons, 0)

    def run(self, images: np.ndarray) -> np.ndarray:
        """Images [1, 3, S, S] -> persons, see protocol."""
        self.counters["batches_plain"] += 1
        (output,) = self._session.run(self._outputs, {self._name: images})
        return self._head.persons(output, self._score)

    def close(self) -> None:
        self._session = None


def _input(path: str, image: onnxruntime.NodeArg, others: list) -> Input:
    shape, dtype = list(image.shape), DTYPES.get(image.type)
    batch, channels, *sides = shape if len(shape) == 4 else (0, 0)
    free = all(not isinstance(side, int) for side in sides)
    square = len(sides) == 2 and (free or sides[0] == sides[1])
    if others or dtype is None or not square or channels != 3 or (isinstance(batch, int) and batch != 1):
        raise Refused(
            f"The model {path} reads {image.name} {image.type} {shape}{' and more' if others else ''}: expected one "
            "float32 or float16 input [B, 3, S, S] with a batch of 1 or free."
        )
    return Input(FREE_SIZE_PX if free else sides[0], dtype)
