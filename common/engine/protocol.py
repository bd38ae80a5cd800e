"""What every engine can do, and which one a backend uses."""

from typing import Protocol

import numpy as np

from common.errors import Refused
from common.messages import Input
from common.settings import Settings


class Engine(Protocol):
    """A loaded model that finds persons in square RGB images."""

    input: Input  # what it reads: [n, 3, size_px, size_px] of this dtype
    max_batch: int  # most images for one call of run()

    def warm_up(self) -> None:
        """Runs once on nothing in particular, so that the first real frame is not slower than the rest."""

    def run(self, images: np.ndarray) -> list[np.ndarray]:
        """For each of up to `max_batch` images: float32 [k, 5] x1, y1, x2, y2 (input px), score of its persons."""

    def close(self) -> None:
        """Frees what the engine holds."""


def load(settings: Settings, processes: int) -> Engine:
    """The engine of this backend; raises Refused for a missing, unreadable or unsuitable model.

    `processes` is how many infer processes share this machine's cores.
    """
    if settings.backend == "cuda":
        raise Refused("The cuda backend is not in this version: set backend = 'cpu' or 'auto'.")
    from common.engine.onnxruntime import OnnxEngine

    return OnnxEngine(settings.engine, processes)
