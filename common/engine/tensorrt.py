"""TensorRT: a plan that reads tensor slots in place, its launches captured as CUDA graphs.

Any installed runtime is used: full, lean or dispatch; the latter two run version-compatible plans only. Plans of
TensorRT-RTX run in its own. There is one stream, and one execution context for each profile of the plan, so batches run
one after the other and share the output buffers that the graphs have baked in.
"""

import importlib
import logging
from collections import Counter, deque
from collections.abc import Callable, Sequence

import numpy as np

from peoplecounter.common import backend, cuda
from peoplecounter.common.cuda import check, cudart, device, pinned
from peoplecounter.common.engine.base import Boxes
from peoplecounter.common.engine.dense import GpuDenseHead
from peoplecounter.common.engine.graph_cache import LOADING, GraphCache
from peoplecounter.common.engine.heads import Context, head
from peoplecounter.common.engine.images import with_pixels
from peoplecounter.common.engine.metadata import read_metadata
from peoplecounter.common.engine.model import Model, SwappedModel, plan_path, read_model, read_weights
from peoplecounter.common.engine.placing import Placing
from peoplecounter.common.engine.refit import refit
from peoplecounter.common.engine.select import DTYPES, GpuSelect
from peoplecounter.common.engine.sidecar import NAMES, check_gpu, check_version
from peoplecounter.common.engine.tensorrt_io import OutputBuffer, OutputBuffers, read_input
from peoplecounter.common.engine.tensorrt_log import logger
from peoplecounter.common.engine.tensorrt_rtx import RtxOptions
from peoplecounter.common.errors import AppError, GpuLost, NoGpu
from peoplecounter.common.ipc.memory import Block, WorkQueue
from peoplecounter.common.ipc.messages import TensorLayout
from peoplecounter.common.settings import EngineSettings

LOG = logging.getLogger("tensorrt")
COLUMNS_MAX = {"rows": 6}  # of a head's output that are read back: its mask coefficients stay on the GPU


def runtime_module(kind: str = "tensorrt", plan: str = ""):
    """The installed runtime of a kind of plans, "tensorrt" or "rtx". Raises AppError when there is none."""
    name = backend.tensorrt_module(kind)
    if name is None:
        extra = {"tensorrt": "gpu", "rtx": "gpu-rtx"}[kind]
        raise AppError(
            f"The plan {plan} needs {NAMES[kind]}, which is not installed: install the extra {extra!r}, or build the "
            f"plan with another --runtime."
        )
    return importlib.import_module(name)


class TensorRTEngine:
    """A detector in a plan file. start() queues a batch; the function it returns reads the boxes when it has finished.

    Raises AppError for a plan that is missing, was built for another TensorRT or GPU, or is not a person detector.
    """

    def __init__(
        self,
        settings: EngineSettings,
        work: WorkQueue,
        graphs: bool = True,
        weights: SwappedModel | None = None,
        counters: Counter[str] | None = None,
    ):
        cuda.start()  # this may be a thread of its own, see inference/swap.py
        self._work = work
        self.counters: Counter[str] = Counter() if counters is None else counters
        self._outputs: OutputBuffers | None = None
        self._dense: GpuDenseHead | None = None
        self._select: GpuSelect | None = None
        self._options: RtxOptions | None = None
        self._spare_results: deque[_BatchResult] = deque()
        with LOADING:
            try:
                self._load(settings, weights)
            except AppError:
                self._free()
                raise
        self._graphs: GraphCache | None = None
        if graphs:
            self._graphs = GraphCache(work, self._launch, lambda: self._logger.first_error, self.counters)

    def _load(self, settings: EngineSettings, weights: SwappedModel | None) -> None:
        path, model = settings.model, _plan(settings)
        kind = backend.plan_runtime(model.data) or "tensorrt"
        trt = runtime_module(kind, path)
        self._logger = logger(trt)
        self._runtime, self._engine, metadata = _deserialize(trt, model, settings, weights, self._logger)
        self._read = read_input(trt, self._engine, metadata, path)
        if kind == "rtx":
            self._options = RtxOptions(trt, self._engine, model)
        self._contexts = [self._new_context(i, path) for i in range(len(self._read.profiles))]
        self._outputs = OutputBuffers(trt, self._engine, self._contexts, self._read, path)
        context = Context(self._read.input.size, metadata=metadata)
        self.head = head(self._outputs.described, context, settings.head, settings.person_class, path)
        self.input = with_pixels(self._read.input, self.head.kind.pixels, settings.pixels)
        self._score = settings.score
        self.about = f"{trt.__name__} {trt.__version__}"
        self._results = self._outputs.named(self.head.outputs)
        if self.head.dense:
            self._dense = GpuDenseHead(self._results, self.head, self._score, self._work.stream)
            self._results = [OutputBuffer("rows", self._dense.address, self._dense.shape, "float32")]
        if self.head.dense or (self.head.kind.name == "rows" and self._results[0].dtype in DTYPES):
            self._select = self._new_select(self._results[0])

    def warm_up(self) -> None:
        """Runs batches of zeros on a stream of their own, so that kernels are loaded before the first frame."""
        sizes = sorted({images for profile in self._read.profiles for images in (profile.min, profile.opt)})
        nbytes = TensorLayout(sizes[-1], self.input).nbytes
        with LOADING:
            stream = check(cudart.cudaStreamCreateWithFlags(cudart.cudaStreamNonBlocking))
            address = check(cudart.cudaMalloc(nbytes))
            check(cudart.cudaMemsetAsync(address, 0, nbytes, stream))
            for images in sizes:
                self._enqueue(address, images, int(stream))
            check(cudart.cudaStreamSynchronize(stream))
            check(cudart.cudaFree(address))
            check(cudart.cudaStreamDestroy(stream))
        if self._options:
            self._options.save()

    def batch(self, images: int) -> int:
        """The largest batch that a profile takes and these images fill."""
        return self._read.batch(images)

    def start(self, slot: Block, layout: TensorLayout, placing: Placing) -> Callable[[], tuple[Boxes, int]]:
        address, count = slot.address + placing.first * layout.image_bytes, len(placing.views)
        stream = self._work.stream
        result = self._spare_results.pop() if self._spare_results else self._new_result()
        check(cudart.cudaEventRecord(result.begin, stream))
        graph = self._graphs.get(address, count) if self._graphs is not None else None
        if graph is None:
            self.counters["batches_plain"] += 1
            self._enqueue(address, count, stream)
        else:
            self.counters["batches_graph"] += 1
            check(cudart.cudaGraphLaunch(graph, stream))
        if self._dense:
            self._dense.run(count)
        if self._select:
            self._select.run(placing, *result.outputs)
        check(cudart.cudaEventRecord(result.end, stream))
        if not self._select:
            self._copy(count, result.outputs)

        def collect() -> tuple[Boxes, int]:
            outputs = [copy[:count] for copy in result.outputs]
            if self._select:
                boxes = self._select.boxes(*outputs)
            else:
                boxes = placing.rows(self.head.persons(outputs, self._score)).tobytes()
            gpu_ns = int(check(cudart.cudaEventElapsedTime(result.begin, result.end)) * 1e6)
            self._spare_results.append(result)
            return boxes, gpu_ns

        return collect

    def outputs(self, count: int) -> list[np.ndarray]:
        """Copies of the raw outputs of the last batch, for tests. Waits for the stream."""
        assert self._outputs is not None
        self._work.finish()
        return self._outputs.copy(count)

    def close(self) -> None:
        """Frees graphs and buffers; the engine itself is freed with its last reference."""
        self._work.finish()
        if self._graphs is not None:
            self._graphs.close()
        for result in self._spare_results:
            result.free()
        self._spare_results.clear()
        self._free()

    def _free(self) -> None:
        if self._select:
            self._select.close()
            self._select = None
        if self._dense:
            self._dense.close()
            self._dense = None
        if self._outputs:
            self._outputs.close()
        self._contexts = []
        self._engine = self._runtime = self._options = None

    def _copy(self, count: int, copies: list[np.ndarray]) -> None:
        """Queues the copies of what the first `count` images gave."""
        for buffer, copy in zip(self._results, copies):
            wide, narrow = (array[-1] * np.dtype(buffer.dtype).itemsize for array in (buffer.shape, copy.shape))
            rows, to_host = count * int(np.prod(copy.shape[1:-1])), cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost
            check(
                cudart.cudaMemcpy2DAsync(
                    copy.ctypes.data, narrow, buffer.address, wide, narrow, rows, to_host, self._work.stream
                )
            )

    def _new_select(self, rows: OutputBuffer) -> GpuSelect | None:
        """None where Triton is missing and the kernel was not compiled ahead: the host then reads all rows."""
        try:
            return GpuSelect(rows, self.head, self._score, self._work, classes=not self.head.dense)
        except AppError as error:
            if self.head.dense or isinstance(error, GpuLost | NoGpu):
                raise
            LOG.info("persons are picked on the host: %s", error)
            return None

    def _new_result(self) -> "_BatchResult":
        if self._select:
            return _BatchResult(self._select.shapes, self._select.dtypes)
        columns = COLUMNS_MAX.get(self.head.kind.name, 1 << 30)
        shapes = [(*b.shape[:-1], min(b.shape[-1], columns)) for b in self._results]
        return _BatchResult(shapes, [buffer.dtype for buffer in self._results])

    def _context(self, images: int):
        return self._contexts[self._read.profile_of(images)]

    def _launch(self, address: int, images: int) -> bool:
        return self._start(address, images, self._work.stream)

    def _enqueue(self, address: int, images: int, stream: int) -> None:
        if not self._start(address, images, stream):
            raise RuntimeError(f"TensorRT did not start a batch of {images}: {self._logger.first_error}")

    def _start(self, address: int, images: int, stream: int) -> bool:
        """Queues one batch; False when TensorRT does not accept it."""
        context, shape = self._context(images), self._read.shape(images)
        if tuple(context.get_tensor_shape(self._read.name)) != shape:
            context.set_input_shape(self._read.name, shape)
        context.set_tensor_address(self._read.name, address)
        return context.execute_async_v3(stream)

    def _new_context(self, profile: int, path: str):
        context = self._options.context() if self._options else self._engine.create_execution_context()
        fits = context is not None
        if fits and profile:  # profile 0 is selected already
            stream = check(cudart.cudaStreamCreateWithFlags(cudart.cudaStreamNonBlocking))
            fits = context.set_optimization_profile_async(profile, int(stream))
            check(cudart.cudaStreamSynchronize(stream))
            check(cudart.cudaStreamDestroy(stream))
        if not fits:
            why = self._logger.first_error or "no room on the GPU"
            raise AppError(f"No execution context can be created for the plan {path}: {why}.")
        return context


def _plan(settings: EngineSettings) -> Model:
    """The plan of the settings. Raises AppError for one that was not built for this GPU."""
    if not backend.is_endpoint(settings.model):
        plan_path(settings.model)
    model, gpu = read_model(settings), device()
    if model.sidecar:
        check_gpu(model.sidecar, gpu.name.decode(), f"{gpu.major}.{gpu.minor}", model.name)
    return model


def _deserialize(trt, model: Model, settings: EngineSettings, weights: SwappedModel | None, log):
    """(runtime, engine, metadata) of a plan, with the weights of an ONNX file if it has none."""
    sidecar, gpu = model.sidecar, device()
    if sidecar:
        check_version(sidecar, trt.__version__, model.name)
    runtime = trt.Runtime(log)
    runtime.engine_host_code_allowed = True  # a version-compatible plan contains its own lean runtime
    engine = runtime.deserialize_cuda_engine(model.data)
    if engine is None:
        raise AppError(
            f"The plan {model.name} does not load in TensorRT {trt.__version__} on {gpu.name.decode()}: "
            f"{log.first_error or 'no reason given'}. Build it for this GPU and version."
        )
    if weights:
        onnx = read_model(settings.model_copy(update={"model": weights.model, "sha256": weights.sha256}))
        if sidecar and sidecar.refit == "identical" and weights.sha256 != sidecar.onnx_sha256:
            raise AppError(f"The plan {model.name} takes only the weights it was built with: build it with --refit.")
        refit(trt, engine, onnx.data, log, model.name)
    elif sidecar and sidecar.stripped:
        refit(trt, engine, read_weights(settings, sidecar), log, model.name)
    return runtime, engine, read_metadata(sidecar.metadata if sidecar else {})


class _BatchResult:
    """What one batch in flight needs for itself: page-locked outputs, and events around its time on the GPU."""

    def __init__(self, shapes: Sequence[tuple[int, ...]], dtypes: Sequence[str]):
        self.outputs = [pinned(shape, dtype) for shape, dtype in zip(shapes, dtypes)]
        self.begin, self.end = check(cudart.cudaEventCreate()), check(cudart.cudaEventCreate())

    def free(self) -> None:
        for output in self.outputs:
            check(cudart.cudaFreeHost(output.ctypes.data))
        check(cudart.cudaEventDestroy(self.begin))
        check(cudart.cudaEventDestroy(self.end))
