"""What is special of TensorRT-RTX when a plan runs: it compiles its kernels on the machine that runs it.

So what it compiled is kept for the next start; and it leaves CUDA graphs to us, see graph_cache.py.
"""

import contextlib
import logging
from pathlib import Path

from peoplecounter.common.engine.model import Model
from peoplecounter.common.errors import AppError
from peoplecounter.common.files import cache_folder, make_private_folder, sha256, write_file

LOG = logging.getLogger("tensorrt")


class RtxOptions:
    """How the execution contexts of one plan are made, and the kernels that were compiled for it."""

    def __init__(self, trt, engine, plan: Model):
        self._engine, self._config, self._known = engine, engine.create_runtime_config(), b""
        self._config.cuda_graph_strategy = trt.CudaGraphStrategy.DISABLED
        self._cache = self._config.create_runtime_cache()
        digest = plan.sidecar.plan_sha256 if plan.sidecar else sha256(plan.data)
        self._path: Path | None = None
        with contextlib.suppress(OSError, AppError):
            self._path = cache_folder() / "rtx" / f"{digest[:32]}_{trt.__version__}.cache"
            self._known = self._path.read_bytes()
        if self._known and not self._cache.deserialize(self._known):
            LOG.info("the runtime cache %s is of another GPU, driver or version: it is replaced", self._path)
        self._config.set_runtime_cache(self._cache)

    def context(self):
        """A new execution context."""
        return self._engine.create_execution_context(self._config)

    def save(self) -> None:
        """Keeps what was compiled so far; an error costs the next start some seconds."""
        data = bytes(memoryview(self._cache.serialize()))
        if data == self._known or self._path is None:
            return
        try:
            make_private_folder(self._path.parent, "cache")
            write_file(self._path, data)
        except (OSError, AppError) as error:
            LOG.info("the runtime cache cannot be kept: %s", error)
