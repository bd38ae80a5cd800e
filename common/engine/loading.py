"""Which engine a backend uses, loaded or only checked."""

from collections import Counter
from pathlib import Path

from peoplecounter.common import backend
from peoplecounter.common.engine.base import Engine
from peoplecounter.common.engine.model import SwappedModel, plan_path
from peoplecounter.common.engine.sidecar import read_sidecar
from peoplecounter.common.settings import Settings


def load_engine(
    settings: Settings,
    processes: int,
    work,
    swapped: SwappedModel | None = None,
    counters: Counter[str] | None = None,
    graphs: bool = True,
) -> Engine:
    """The engine of this process' backend. Raises AppError for a missing, unreadable or unsuitable model.

    `processes`: how many infer processes share this machine's cores. `work`: the process' queue of work on slots.
    `swapped` replaces engine.model; when it is an ONNX file and the engine is a plan, the plan takes its weights.
    `graphs`: capture CUDA graphs.
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


def check_model(settings: Settings) -> None:
    """Raises AppError for a model that cannot be loaded, before anything is started.

    A plan is not deserialized: its file and its sidecar are checked.
    """
    if backend.resolve(settings) == "cpu":
        from peoplecounter.common.engine.onnxruntime import OnnxEngine

        OnnxEngine(settings.engine).close()
    elif not backend.is_endpoint(settings.engine.model):
        read_sidecar(plan_path(settings.engine.model))
