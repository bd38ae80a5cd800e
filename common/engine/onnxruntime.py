"""ONNX Runtime on the CPU: the engine that needs no GPU."""

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime

from peoplecounter.common.engine.base import Persons
from peoplecounter.common.engine.heads import Context, Head, Output, head
from peoplecounter.common.engine.images import read_shape, with_pixels
from peoplecounter.common.engine.metadata import read_metadata
from peoplecounter.common.engine.model import read_model
from peoplecounter.common.errors import AppError
from peoplecounter.common.ipc.messages import Input, TensorLayout
from peoplecounter.common.settings import EngineSettings

DEMO_MODEL = Path(__file__).with_name("plaza.onnx")
QUANTIZED = b"DequantizeLinear"  # the operator of models with Q/DQ pairs
DTYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(uint8)": "uint8"}


class OnnxEngine:
    """A detector in an ONNX file. Images are inferred one by one, unless its batch is fixed: a CPU gains nothing.

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
        if model.files:
            names, contents = list(model.files), list(model.files.values())
            options.add_external_initializers_from_files_in_memory(names, contents, [len(c) for c in contents])
        try:
            self._session = onnxruntime.InferenceSession(model.data, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime has a dozen exception types of its own
            raise AppError(f"The model {model.name} cannot be loaded: {str(error).splitlines()[0]}") from None
        self._score = settings.score
        self._images, self._size, self.input, self.head, self._batch = _read(self._session, settings, model.name)

    def warm_up(self) -> None:
        self._infer(np.zeros((1, *self.input.image_shape), self.input.dtype))

    def batch(self, images: int) -> int:
        return min(images, self._batch)

    def start(
        self, slot: np.ndarray, layout: TensorLayout, first: int, count: int
    ) -> Callable[[], tuple[Persons, int]]:
        images = slot.view(layout.dtype).reshape(layout.shape)
        persons = self.run(images[first : first + count])
        return lambda: (persons, 0)

    def run(self, images: np.ndarray) -> Persons:
        """At most batch() images -> persons, see base.Persons. Raises ModelOutputError, see Head.persons."""
        return self.head.persons([output[: len(images)] for output in self._infer(images)], self._score)

    def _infer(self, images: np.ndarray) -> list[np.ndarray]:
        self.counters["batches_plain"] += 1
        if len(images) < self._batch:  # a fixed batch is filled up
            padding = np.zeros((self._batch - len(images), *images.shape[1:]), images.dtype)
            images = np.concatenate([images, padding])
        inputs = {self._images: images}
        if self._size:
            inputs[self._size] = np.array([self.input.size] * len(images), np.int64)
        return self._session.run(list(self.head.outputs), inputs)

    def close(self) -> None:
        self._session = None


def _read(
    session: onnxruntime.InferenceSession, settings: EngineSettings, model: str
) -> tuple[str, str, Input, Head, int]:
    """(name of the images, name of their sizes or empty, what is read, the head, how many images at once)."""
    inputs, outputs = session.get_inputs(), session.get_outputs()
    sizes = [i for i in inputs if len(i.shape) == 2 and i.shape[1] == 2 and i.type == "tensor(int64)"]
    images = [i for i in inputs if i not in sizes]
    if len(images) != 1 or len(sizes) > 1:
        raise AppError(
            f"The inputs of the model {model} are not supported ({', '.join(i.name for i in inputs)}): expected "
            "images, and at most their sizes as int64 [B, 2]."
        )
    metadata = read_metadata(session.get_modelmeta().custom_metadata_map)
    shape = [side if isinstance(side, int) else None for side in images[0].shape]
    read, batch = read_shape(shape, DTYPES.get(images[0].type), metadata, model)
    found = head(
        [Output(o.name, o.shape) for o in outputs],
        Context(read.size, len(inputs), metadata),
        settings.head,
        settings.person_class,
        model,
    )
    read = with_pixels(read, found.kind.pixels, settings.pixels)
    return images[0].name, sizes[0].name if sizes else "", read, found, batch or 1
