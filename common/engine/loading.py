"""Which engine a backend uses, loaded or only checked."""

import logging
from collections import Counter
from pathlib import Path

from peoplecounter.common import backend
from peoplecounter.common.engine.base import Engine
from peoplecounter.common.engine.model import SwappedModel, plan_path, read_model
from peoplecounter.common.engine.sidecar import check_gpu, read_sidecar
from peoplecounter.common.errors import AppError
from peoplecounter.common.settings import EngineSettings, Settings

LOG = logging.getLogger("engine")


def load_engine(
    settings: Settings,
    threads: int,
    work,
    swapped: SwappedModel | None = None,
    counters: Counter[str] | None = None,
    graphs: bool = True,
) -> Engine:
    """The engine of this process' backend. Raises AppError for a missing, unreadable or unsuitable model.

    `threads`: of an engine on the CPU, see common/cores.py. `work`: the process' queue of work on slots.
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
    return cpu_engine(engine, threads, counters)


def check_model(settings: Settings) -> None:
    """Raises AppError for a model that cannot be loaded, before anything is started.

    A plan is not deserialized: its file and its sidecar are checked, and that it is for this GPU.
    """
    if backend.resolve(settings) == "cpu":
        cpu_engine(settings.engine).close()
    elif not backend.is_endpoint(settings.engine.model):
        sidecar, gpu = read_sidecar(plan_path(settings.engine.model)), backend.gpu()
        if sidecar and gpu:
            check_gpu(sidecar, *gpu, settings.engine.model)


def cpu_engine(settings: EngineSettings, threads: int = 1, counters: Counter[str] | None = None) -> Engine:
    """The engine that engine.runtime names, or the faster one. Raises AppError, see load_engine()."""
    if settings.runtime == "openvino" and not backend.importable("openvino"):
        raise AppError("OpenVINO is not installed: install the extra 'openvino', or use engine.runtime = 'auto'.")
    model = read_model(settings)
    if settings.runtime != "onnxruntime" and backend.importable("openvino"):
        from peoplecounter.common.engine.openvino import OpenVinoEngine, gains

        if settings.runtime == "openvino":
            return OpenVinoEngine(settings, threads, counters, model)
        try:
            if gains(model, settings):
                return OpenVinoEngine(settings, threads, counters, model)
        except AppError as error:  # ONNX Runtime may load what OpenVINO does not
            LOG.info("%s", error)
    from peoplecounter.common.engine.onnxruntime import OnnxEngine

    return OnnxEngine(settings, threads, counters, model)
