"""TensorRT: a plan that reads tensor slots in place, its launches captured as CUDA graphs.

Whichever runtime is installed will do: full, lean or dispatch; the latter two run version-compatible plans only. One
stream, and one execution context for each of the plan's profiles, so batches follow each other and may share the
buffers that the graphs have baked in.
"""

import importlib
import logging
import threading
from collections import Counter, deque
from collections.abc import Callable

import numpy as np

from peoplecounter.common import backend, cuda
from peoplecounter.common.cuda import CudaError, check, cudart, device, pinned
from peoplecounter.common.engine import model
from peoplecounter.common.engine.base import Persons
from peoplecounter.common.engine.heads import head
from peoplecounter.common.engine.model import Swapped, plan_path
from peoplecounter.common.engine.refit import refit
from peoplecounter.common.engine.sidecar import check_fits
from peoplecounter.common.engine.tensorrt_log import logger
from peoplecounter.common.errors import Refused
from peoplecounter.common.ipc.messages import Input, TensorLayout
from peoplecounter.common.settings import Engine as EngineSettings

GRAPHS = 64  # (address, images) combinations that get a graph; others are launched without
ROW = 6  # columns of a box row that are read back; masks behind them stay on the GPU
BOX_DTYPES = ("float32", "float16")
LOADING = threading.Lock()  # a thread loads an engine: what it calls may break a capture
TO_HOST = cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost


def runtime_module():
    """The TensorRT runtime that is installed here; raises Refused when there is none."""
    name = backend.tensorrt_module()
    if name is None:
        raise Refused("TensorRT is not installed: install the extra 'gpu', or use backend = 'cpu'.")
    return importlib.import_module(name)


class TensorRTEngine:
    """A detector in a plan file. `start` queues; what it returns reads the boxes once the stream has got there.

    Raises Refused for a plan that is missing, was made for another TensorRT or GPU, or is no person detector.
    """

    def __init__(
        self,
        settings: EngineSettings,
        work,
        graphs: bool = True,
        weights: Swapped | None = None,
        counters: Counter | None = None,
    ):
        cuda.start()  # this may be a thread of its own, see swap.py
        self._trt, self._work, self._stream, self._graphs_wanted = runtime_module(), work, work.stream, graphs
        self.counters: Counter[str] = Counter() if counters is None else counters
        self._outputs: list[_Output] = []
        self._results: deque[_Result] = deque()  # not in use
        self._graphs: dict[tuple[int, int], object] = {}  # insertion order is age
        with LOADING:
            try:
                self._load(settings, weights)
            except Refused:
                self._free()
                raise

    def _load(self, settings: EngineSettings, weights: Swapped | None) -> None:
        trt, path = self._trt, settings.model
        self._logger = logger(trt)
        self._runtime, self._engine = _deserialize(trt, settings, weights, self._logger)
        self._name, self.input, self._profiles = self._read_input(path)
        self._most = max(most for _, _, most in self._profiles)
        self._contexts = [self._new_context(i, path) for i in range(len(self._profiles))]
        shapes = self._bind_outputs(path)
        self._head = head(shapes, settings.person_class)
        self._score = settings.score
        self._dense = self._make_dense() if self._head.dense_classes else None
        first = self._outputs[0]
        self._source = self._dense.rows if self._dense else first.address
        self._rows, self._columns, self._dtype = (
            (self._dense.most, ROW, "float32") if self._dense else (first.shape[1], first.shape[2], first.dtype)
        )

    def warm_up(self) -> None:
        """Batches of zeros on a stream of its own, so that kernels are loaded; others only need their first launch."""
        sizes = sorted({images for least, usual, _ in self._profiles for images in (least, usual)})
        nbytes = sizes[-1] * 3 * self.input.size_px**2 * np.dtype(self.input.dtype).itemsize
        with LOADING:
            stream = check(cudart.cudaStreamCreateWithFlags(cudart.cudaStreamNonBlocking))
            address = check(cudart.cudaMalloc(nbytes))
            check(cudart.cudaMemsetAsync(address, 0, nbytes, stream))
            for images in sizes:
                self._enqueue(address, images, int(stream))
            check(cudart.cudaStreamSynchronize(stream))
            check(cudart.cudaFree(address))
            check(cudart.cudaStreamDestroy(stream))

    def batch(self, images: int) -> int:
        """The largest batch that a profile takes and these images fill."""
        return max(min(images, most) for least, _, most in self._profiles if least <= images)

    def start(self, slot, layout: TensorLayout, first: int, count: int) -> Callable[[], tuple[Persons, int]]:
        address = slot.address + first * layout.image_bytes
        result = self._results.pop() if self._results else _Result(self._most, self._rows, self._dtype)
        check(cudart.cudaEventRecord(result.begin, self._stream))
        graph = self._graph(address, count)
        if graph is None:
            self.counters["batches_plain"] += 1
            self._enqueue(address, count, self._stream)
        else:
            self.counters["batches_graph"] += 1
            check(cudart.cudaGraphLaunch(graph, self._stream))
        if self._dense:
            self._dense.run(count)
        check(cudart.cudaEventRecord(result.end, self._stream))
        itemsize = np.dtype(self._dtype).itemsize
        check(
            cudart.cudaMemcpy2DAsync(
                result.rows.ctypes.data, ROW * itemsize, self._source, self._columns * itemsize,
                ROW * itemsize, count * self._rows, TO_HOST, self._stream,
            )
        )  # fmt: skip

        def collect() -> tuple[Persons, int]:
            persons = self._head.of_rows(result.rows[:count], self._score)
            gpu_ns = int(check(cudart.cudaEventElapsedTime(result.begin, result.end)) * 1e6)
            self._results.append(result)
            return persons, gpu_ns

        return collect

    def outputs(self, count: int) -> list[np.ndarray]:
        """Copies of the raw outputs of the last batch, for tests: waits for the stream."""
        self._work.finish()
        copies = []
        for out in self._outputs:
            copy = np.empty((count, *out.shape[1:]), out.dtype)
            check(cudart.cudaMemcpy(copy.ctypes.data, out.address, copy.nbytes, TO_HOST))
            copies.append(copy)
        return copies

    def close(self) -> None:
        """Frees graphs and buffers; the engine goes with its last reference."""
        self._work.finish()
        for graph in self._graphs.values():
            if graph is not None:
                check(cudart.cudaGraphExecDestroy(graph))
        self._graphs.clear()
        for result in self._results:
            result.free()
        self._results.clear()
        self._free()

    def _free(self) -> None:
        for out in self._outputs:
            check(cudart.cudaFree(out.address))
        self._outputs.clear()
        self._contexts = self._engine = self._runtime = None

    def _context(self, images: int):
        """The context of the profile that fits this many images most closely."""
        fitting = [(most - least, i) for i, (least, _, most) in enumerate(self._profiles) if least <= images <= most]
        return self._contexts[min(fitting)[1]]

    def _enqueue(self, address: int, images: int, stream: int) -> None:
        context, size = self._context(images), self.input.size_px
        if tuple(context.get_tensor_shape(self._name)) != (images, 3, size, size):
            context.set_input_shape(self._name, (images, 3, size, size))
        context.set_tensor_address(self._name, address)
        if not context.execute_async_v3(stream):
            raise RuntimeError(f"TensorRT did not start a batch of {images}: {self._logger.first_error}")

    def _graph(self, address: int, images: int):
        """The captured launch of this batch, captured now if it is new; None when it is to be launched plainly."""
        key = (address, images)
        if not self._graphs_wanted:
            return None
        if key not in self._graphs:
            if not LOADING.acquire(blocking=False):
                return None  # the next time
            try:
                if len(self._graphs) >= GRAPHS:
                    old = self._graphs.pop(next(iter(self._graphs)))
                    if old is not None:
                        self._work.finish()  # it may still be running
                        check(cudart.cudaGraphExecDestroy(old))
                self._graphs[key] = self._capture(address, images)
            finally:
                LOADING.release()
        return self._graphs[key]

    def _capture(self, address: int, images: int):
        """A graph of one batch, or None where TensorRT cannot be captured (said once)."""
        self._enqueue(address, images, self._stream)  # a new shape sets itself up outside of the capture
        self._work.finish()
        mode = cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        check(cudart.cudaStreamBeginCapture(self._stream, mode))
        started = self._context(images).execute_async_v3(self._stream)
        try:
            graph = check(cudart.cudaStreamEndCapture(self._stream))
            if not started:
                raise RuntimeError(self._logger.first_error)
            captured = check(cudart.cudaGraphInstantiate(graph, 0))
            check(cudart.cudaGraphDestroy(graph))
        except (CudaError, RuntimeError) as error:
            logging.getLogger("tensorrt").warning("no CUDA graph of %d images, launched plainly: %s", images, error)
            return None
        self.counters["graphs_captured"] += 1
        return captured

    def _read_input(self, path: str) -> tuple[str, Input, list[tuple[int, int, int]]]:
        """(name, what it reads, (least, usual, most) images of every profile) of the one input."""
        engine, mode = self._engine, self._trt.TensorIOMode.INPUT
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        inputs = [name for name in names if engine.get_tensor_mode(name) == mode]
        shape = tuple(engine.get_tensor_shape(inputs[0])) if inputs else ()
        dtype = _dtype(self._trt, engine, inputs[0]) if inputs else None
        if len(inputs) != 1 or len(shape) != 4 or shape[1] != 3 or shape[2] != shape[3] or dtype not in BOX_DTYPES:
            raise Refused(
                f"The plan {path} reads {', '.join(inputs) or 'nothing'} {dtype} {list(shape)}: expected one float32 "
                "or float16 input [B, 3, S, S]."
            )
        profiles = [(shape[0],) * 3]
        if shape[0] < 0:
            sizes = [engine.get_tensor_profile_shape(inputs[0], i) for i in range(engine.num_optimization_profiles)]
            profiles = [tuple(dims[0] for dims in profile) for profile in sizes]
        if all(least > 1 for least, _, _ in profiles):
            raise Refused(f"The plan {path} takes no single image: build it with a batch of 1 too, or with a free one.")
        return inputs[0], Input(shape[2], dtype), profiles

    def _new_context(self, profile: int, path: str):
        context = self._engine.create_execution_context()
        fits = context is not None
        if fits and profile:  # the first is selected as it is
            stream = check(cudart.cudaStreamCreateWithFlags(cudart.cudaStreamNonBlocking))
            fits = context.set_optimization_profile_async(profile, int(stream))
            check(cudart.cudaStreamSynchronize(stream))
            check(cudart.cudaStreamDestroy(stream))
        if not fits:
            why = self._logger.first_error or "no room on the GPU"
            raise Refused(f"The plan {path} gets no execution context: {why}.")
        return context

    def _bind_outputs(self, path: str) -> list[list[int | None]]:
        """Makes device buffers for the largest batch, boxes first; returns the shapes that tell the head."""
        engine, context, size = self._engine, self._context(self._most), self.input.size_px
        context.set_input_shape(self._name, (self._most, 3, size, size))
        outputs = self._outputs
        for i in range(engine.num_io_tensors):
            name = engine.get_tensor_name(i)
            if name == self._name:
                continue
            shape, dtype = tuple(context.get_tensor_shape(name)), _dtype(self._trt, engine, name)
            if dtype is None:
                raise Refused(f"The plan {path} gives {name} in a type that is not read here.")
            nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
            outputs.append(_Output(name, check(cudart.cudaMalloc(nbytes)), shape, dtype))
            for one in self._contexts:
                one.set_tensor_address(name, outputs[-1].address)
        outputs.sort(key=lambda out: len(out.shape))  # boxes [B, n, …] before mask prototypes [B, 32, h, w]
        shapes = [[None, *out.shape[1:]] for out in outputs]
        if outputs and outputs[0].dtype not in BOX_DTYPES:
            raise Refused(f"The plan {path} gives boxes in {outputs[0].dtype}, expected float32 or float16.")
        return shapes

    def _make_dense(self):
        from peoplecounter.common.engine.dense import DenseOnGpu  # torch and Triton, for heads that need NMS

        first = self._outputs[0]
        return DenseOnGpu(first.address, first.shape, first.dtype, self._head, self._score, self._stream)


def _deserialize(trt, settings: EngineSettings, weights: Swapped | None, log):
    """(runtime, engine) of the plan that the settings name, with the weights of an ONNX file where it has none."""
    if not backend.is_endpoint(settings.model):
        plan_path(settings.model)
    found, gpu = model.read(settings), device()
    if found.sidecar:
        check_fits(found.sidecar, trt.__version__, gpu.name.decode(), f"{gpu.major}.{gpu.minor}", found.name)
    runtime = trt.Runtime(log)
    runtime.engine_host_code_allowed = True  # a version-compatible plan brings its own lean runtime
    engine = runtime.deserialize_cuda_engine(found.data)
    if engine is None:
        raise Refused(
            f"The plan {found.name} does not load in TensorRT {trt.__version__} on {gpu.name.decode()}: "
            f"{log.first_error or 'no reason given'}. Build it for this GPU and version."
        )
    sidecar = found.sidecar
    if weights:
        onnx = model.read(settings.model_copy(update={"model": weights.model, "sha256": weights.sha256}))
        if sidecar and sidecar.refit == "identical" and weights.sha256 != sidecar.onnx_sha256:
            raise Refused(f"The plan {found.name} takes only the weights it was built with: build it with --refit.")
        refit(trt, engine, onnx.data, log, found.name)
    elif sidecar and sidecar.stripped:
        refit(trt, engine, model.read_weights(settings, sidecar), log, found.name)
    return runtime, engine


class _Output:
    """One output tensor's device memory."""

    def __init__(self, name: str, address: int, shape: tuple[int, ...], dtype: str):
        self.name, self.address, self.shape, self.dtype = name, int(address), shape, dtype


class _Result:
    """What one batch in flight needs for itself: page-locked rows, and events around its time on the GPU."""

    def __init__(self, images: int, rows: int, dtype: str):
        self.rows = pinned((images, rows, ROW), dtype)
        self.begin, self.end = check(cudart.cudaEventCreate()), check(cudart.cudaEventCreate())

    def free(self) -> None:
        check(cudart.cudaFreeHost(self.rows.ctypes.data))
        check(cudart.cudaEventDestroy(self.begin))
        check(cudart.cudaEventDestroy(self.end))


def _dtype(trt, engine, name: str) -> str | None:
    kinds = {trt.DataType.FLOAT: "float32", trt.DataType.HALF: "float16"}
    kinds |= {trt.DataType.INT32: "int32", trt.DataType.INT8: "int8", trt.DataType.UINT8: "uint8"}
    return kinds.get(engine.get_tensor_dtype(name))
