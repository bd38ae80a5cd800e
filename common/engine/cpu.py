"""What the engines on a CPU share. They read slots in place and answer at once."""

from collections import Counter
from collections.abc import Callable

import numpy as np

from peoplecounter.common.engine.base import Boxes
from peoplecounter.common.engine.onnx_io import OnnxDetector
from peoplecounter.common.engine.placing import Placing
from peoplecounter.common.errors import ModelOutputError
from peoplecounter.common.ipc.messages import TensorLayout


class CpuEngine:
    """A detector in an ONNX file. Images are inferred one by one, unless its batch is fixed: a CPU gains nothing."""

    def __init__(self, described: OnnxDetector, score: float, about: str, counters: Counter[str] | None):
        self.input, self.head, self.about = described.input, described.head, about
        self.counters: Counter[str] = Counter() if counters is None else counters
        self._described, self._score, self._batch = described, score, described.batch or 1

    def warm_up(self) -> None:
        self._infer(np.zeros((1, *self.input.image_shape), self.input.dtype))

    def batch(self, images: int) -> int:
        return min(images, self._batch)

    def start(self, slot: np.ndarray, layout: TensorLayout, placing: Placing) -> Callable[[], tuple[Boxes, int]]:
        images = slot.view(layout.dtype).reshape(layout.shape)
        boxes = placing.rows(self.run(images[placing.first : placing.first + len(placing.views)])).tobytes()
        return lambda: (boxes, 0)

    def run(self, images: np.ndarray) -> np.ndarray:
        """At most batch() images -> persons float32 [k, 6], see Head.persons, which raises ModelOutputError."""
        return self.head.persons([output[: len(images)] for output in self._infer(images)], self._score)

    def _infer(self, images: np.ndarray) -> list[np.ndarray]:
        self.counters["batches_plain"] += 1
        if len(images) < self._batch:  # a fixed batch is filled up
            padding = np.zeros((self._batch - len(images), *images.shape[1:]), images.dtype)
            images = np.concatenate([images, padding])
        inputs = {self._described.images: images}
        if self._described.sizes:
            inputs[self._described.sizes] = np.array([self.input.size] * len(images), np.int64)
        outputs = self._outputs(inputs)
        for output in outputs:
            if len(output) != len(images):
                raise ModelOutputError(f"the model gives {len(output)} results for {len(images)} images")
        return outputs

    def _outputs(self, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        """The outputs that the head names, for these inputs by name."""
        raise NotImplementedError
