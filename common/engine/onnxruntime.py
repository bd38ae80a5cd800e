"""ONNX Runtime on the CPU: the engine that is always there."""

from collections import Counter

import numpy as np
import onnxruntime

from peoplecounter.common.engine.cpu import CpuEngine
from peoplecounter.common.engine.heads import Output
from peoplecounter.common.engine.model import Model, read_model
from peoplecounter.common.engine.onnx_file import is_fp8
from peoplecounter.common.engine.onnx_io import ModelInput, describe
from peoplecounter.common.errors import AppError
from peoplecounter.common.settings import EngineSettings

DTYPES = {f"tensor({kind})": kind for kind in ("float16", "uint8", "int64")} | {"tensor(float)": "float32"}


class OnnxEngine(CpuEngine):
    """A model in an ONNX Runtime session. Raises AppError for one that cannot be loaded or is no supported detector."""

    def __init__(
        self,
        settings: EngineSettings,
        threads: int = 1,
        counters: Counter[str] | None = None,
        model: Model | None = None,
    ):
        model = model or read_model(settings)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # the cores are shared
        options.log_severity_level = 3
        if is_fp8(model.data):  # ONNX Runtime 1.32 ruins it with more optimization
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
            options.add_session_config_entry("session.disable_quant_qdq", "1")
        if model.files:
            names, contents = list(model.files), list(model.files.values())
            options.add_external_initializers_from_files_in_memory(names, contents, [len(c) for c in contents])
        try:
            self._session = onnxruntime.InferenceSession(model.data, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime has a dozen exception types of its own
            raise AppError(f"The model {model.name} cannot be loaded: {str(error).splitlines()[0]}") from None
        inputs = [
            ModelInput(i.name, [side if isinstance(side, int) else None for side in i.shape], DTYPES.get(i.type))
            for i in self._session.get_inputs()
        ]
        outputs = [Output(o.name, o.shape) for o in self._session.get_outputs()]
        about = f"ONNX Runtime {onnxruntime.__version__}, threads: {threads}"
        super().__init__(describe(model, inputs, outputs, settings), settings.score, about, counters)

    def _outputs(self, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        return self._session.run(list(self.head.outputs), inputs)

    def close(self) -> None:
        self._session = None
