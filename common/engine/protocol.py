"""What every engine can do, and which one a backend uses."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np

from peoplecounter.common import backend, plans
from peoplecounter.common.engine.model import Swapped
from peoplecounter.common.errors import NO_INPUT, Refused
from peoplecounter.common.messages import Input, TensorLayout
from peoplecounter.common.settings import Settings

# float32 [k, 6], by image, best first: image, x1, y1, x2, y2 (input px), score
Persons = np.ndarray


class Engine(Protocol):
    """A loaded model that finds persons in square RGB images."""

    input: Input  # what it reads: [n, 3, size_px, size_px] of this dtype

    def warm_up(self) -> None:
        """Runs once on nothing in particular, so that the first real frame is not slower than the rest."""

    def batch(self, images: int) -> int:
        """How many of these images to give to one call of start()."""

    def start(self, slot, layout: TensorLayout, first: int, count: int) -> Callable[[], tuple[Persons, int]]:
        """Queues the inference of batch(n) images of a tensor slot, which is read in place.

        Call what it returns when the queued work has finished: the persons (image counts from 0), and the
        nanoseconds that a GPU spent on them (0 without a GPU).
        """

    def close(self) -> None:
        """Frees what the engine holds."""


def load(
    settings: Settings,
    processes: int,
    work,
    swapped: Swapped | None = None,
    counters: Counter[str] | None = None,
    graphs: bool = True,
) -> Engine:
    """The engine of this process' backend; raises Refused for a missing, unreadable or unsuitable model.

    `processes` is how many infer processes share this machine's cores; `work` is the queue of common.memory. `swapped`
    takes the place of engine.model; an ONNX file gives a plan its weights. `graphs`: capture CUDA graphs.
    """
    engine, weights = settings.engine, None
    if swapped and work.kind == "cuda" and not backend.is_plan(Path(swapped.model)):
        weights = swapped
    elif swapped:
        engine = engine.model_copy(update={"model": swapped.model, "sha256": swapped.sha256})
    if work.kind == "cuda":
        from peoplecounter.common.engine.tensorrt import TensorRTEngine

        return TensorRTEngine(engine, work, graphs, weights, counters)
    from peoplecounter.common.engine.onnxruntime import OnnxEngine

    return OnnxEngine(engine, processes, counters)


def check(settings: Settings) -> None:
    """Refuses a model that cannot be loaded, before anything is started; a plan is only looked at from outside."""
    if backend.resolve(settings) == "cpu":
        from peoplecounter.common.engine.onnxruntime import OnnxEngine

        return OnnxEngine(settings.engine).close()
    if not backend.is_endpoint(settings.engine.model):
        path = plan_path(settings.engine.model)
        plans.read_sidecar(path)


def plan_path(model: str) -> Path:
    """The plan named by engine.model; raises Refused for a file that is missing or is none."""
    path = Path(model)
    if not model or not path.is_file():
        raise Refused(f"The model {model or '(none)'} does not exist: name a TensorRT plan in engine.model.", NO_INPUT)
    if not backend.is_plan(path):
        raise Refused(
            f"The model {path} is no TensorRT plan, which the cuda backend needs: "
            f"peoplecounter engine build {path} PLAN."
        )
    return path
