"""ONNX Runtime on the CPU: the engine that needs no GPU."""

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime

from peoplecounter.common.engine.base import Persons
from peoplecounter.common.engine.heads import head
from peoplecounter.common.engine.model import read_model
from peoplecounter.common.errors import AppError
from peoplecounter.common.ipc.messages import Input, TensorLayout
from peoplecounter.common.settings import EngineSettings

DEMO_MODEL = Path(__file__).with_name("plaza.onnx")
DEFAULT_SIZE_PX = 640  # of a model whose height and width are free
QUANTIZED = b"DequantizeLinear"  # the operator of models with Q/DQ pairs
DTYPES = {"tensor(float)": "float32", "tensor(float16)": "float16"}


class OnnxEngine:
    """A detector in an ONNX file. Images are inferred one by one: on a CPU a batch is not faster.

    Raises AppError for a model that cannot be loaded or is not a supported detector.
    """

    def __init__(self, settings: EngineSettings, processes: int = 1, counters: Counter[str] | None = None):
        self.counters: Counter[str] = Counter() if counters is None else counters
        model = read_model(settings if settings.model else settings.model_copy(update={"model": str(DEMO_MODEL)}))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = settings.threads or max(1, len(os.sched_getaffinity(0)) // processes)
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # the cores are shared
        options.log_severity_level = 3
        if QUANTIZED in model.data:  # in ONNX Runtime 1.32 more optimization ruins FP8 and slows INT8 down
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
            options.add_session_config_entry("session.disable_quant_qdq", "1")
        try:
            self._session = onnxruntime.InferenceSession(model.data, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime has a dozen exception types of its own
            raise AppError(f"The model {model.name} cannot be loaded: {str(error).splitlines()[0]}") from None
        (image, *others), outputs = self._session.get_inputs(), self._session.get_outputs()
        self._input_name, self._output_names, self._score = image.name, [outputs[0].name], settings.score
        self.input = _input(model.name, image, others)
        self._head = head([output.shape for output in outputs], settings.person_class)

    def warm_up(self) -> None:
        self._infer(np.zeros((1, 3, self.input.size_px, self.input.size_px), self.input.dtype))

    def batch(self, images: int) -> int:
        return 1

    def start(
        self, slot: np.ndarray, layout: TensorLayout, first: int, count: int
    ) -> Callable[[], tuple[Persons, int]]:
        images = slot.view(layout.dtype).reshape(layout.shape)
        persons = self.run(images[first : first + count])
        return lambda: (persons, 0)

    def run(self, images: np.ndarray) -> Persons:
        """Images [1, 3, S, S] -> persons, see base.Persons. Raises ModelOutputError for an output with NaN."""
        return self._head.persons(self._infer(images), self._score)

    def _infer(self, images: np.ndarray) -> np.ndarray:
        self.counters["batches_plain"] += 1
        return self._session.run(self._output_names, {self._input_name: images})[0]

    def close(self) -> None:
        self._session = None


def _input(model: str, image: onnxruntime.NodeArg, others: list) -> Input:
    shape, dtype = list(image.shape), DTYPES.get(image.type)
    batch, channels, *sides = shape if len(shape) == 4 else (0, 0)
    free = all(not isinstance(side, int) for side in sides)
    square = len(sides) == 2 and (free or sides[0] == sides[1])
    if others or dtype is None or not square or channels != 3 or (isinstance(batch, int) and batch != 1):
        raise AppError(
            f"The input of the model {model} is not supported ({image.name} {image.type} {shape}"
            f"{' and more' if others else ''}): expected one float32 or float16 input [B, 3, S, S] with a free "
            "batch or a batch of 1."
        )
    return Input(DEFAULT_SIZE_PX if free else sides[0], "float16" if dtype == "float16" else "float32")
