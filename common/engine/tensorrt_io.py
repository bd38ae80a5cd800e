"""A plan's input and outputs: what it reads, in which batches, and device buffers for what it writes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from peoplecounter.common.cuda import check, cudart
from peoplecounter.common.engine.heads import Output
from peoplecounter.common.engine.images import read_shape
from peoplecounter.common.engine.metadata import Metadata
from peoplecounter.common.errors import AppError
from peoplecounter.common.ipc.messages import Input


@dataclass(frozen=True, order=True)
class Profile:
    """The batches that one optimization profile takes, images."""

    min: int
    opt: int
    max: int


@dataclass(frozen=True)
class EngineInput:
    """The one input of a detector."""

    name: str
    input: Input  # without what its head says of the pixels
    profiles: tuple[Profile, ...]

    def shape(self, images: int) -> tuple[int, int, int, int]:
        """The input's shape for a batch."""
        return images, *self.input.image_shape

    def batch(self, images: int) -> int:
        """The largest batch that a profile takes and these images fill."""
        return max(min(images, profile.max) for profile in self.profiles if profile.min <= images)

    def profile_of(self, images: int) -> int:
        """The index of the tightest profile that takes a batch of this size."""
        fitting = [(p.max - p.min, i) for i, p in enumerate(self.profiles) if p.min <= images <= p.max]
        return min(fitting)[1]


def read_input(trt, engine, metadata: Metadata, path: str) -> EngineInput:
    """The input of a deserialized engine. Raises AppError for an input that preprocess does not write."""
    names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
    if len(inputs) != 1:
        raise AppError(f"The plan {path} has {len(inputs)} inputs ({', '.join(inputs)}): expected images only.")
    shape = tuple(engine.get_tensor_shape(inputs[0]))
    sides = [side if side > 0 else None for side in shape]
    read, _ = read_shape(sides, dtype_of(trt, engine, inputs[0]), metadata, path)
    profiles = [Profile(shape[0], shape[0], shape[0])]
    if shape[0] < 0:
        ranges = [engine.get_tensor_profile_shape(inputs[0], i) for i in range(engine.num_optimization_profiles)]
        profiles = [Profile(*(dims[0] for dims in shapes)) for shapes in ranges]
    if all(profile.min > 1 for profile in profiles):
        raise AppError(f"The plan {path} does not accept a batch of 1: build it again with --batch 1 added.")
    return EngineInput(inputs[0], read, tuple(profiles))


@dataclass(frozen=True)
class OutputBuffer:
    """One output tensor's device memory, for the largest batch."""

    name: str
    address: int
    shape: tuple[int, ...]
    dtype: str


class OutputBuffers:
    """Device buffers of all outputs, bound to every context. Raises AppError for outputs of an unsupported type."""

    def __init__(self, trt, engine, contexts: list, read: EngineInput, path: str):
        self.buffers: list[OutputBuffer] = []
        try:
            self._allocate(trt, engine, contexts, read, path)
        except AppError:
            self.close()
            raise

    def _allocate(self, trt, engine, contexts: list, read: EngineInput, path: str) -> None:
        largest = max(profile.max for profile in read.profiles)
        context = contexts[read.profile_of(largest)]
        context.set_input_shape(read.name, read.shape(largest))
        for i in range(engine.num_io_tensors):
            name = engine.get_tensor_name(i)
            if name == read.name:
                continue
            shape, dtype = tuple(context.get_tensor_shape(name)), dtype_of(trt, engine, name)
            if dtype is None:
                raise AppError(f"The output {name} of the plan {path} has an unsupported type.")
            nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
            buffer = OutputBuffer(name, int(check(cudart.cudaMalloc(nbytes))), shape, dtype)
            self.buffers.append(buffer)
            for context_of_profile in contexts:
                context_of_profile.set_tensor_address(name, buffer.address)
        self.buffers.sort(key=lambda buffer: len(buffer.shape))  # boxes [B, n, …] before mask prototypes [B, 32, h, w]

    @property
    def described(self) -> list[Output]:
        """The outputs with a free batch: they tell the head."""
        return [Output(buffer.name, [None, *buffer.shape[1:]]) for buffer in self.buffers]

    def named(self, names: Sequence[str]) -> list[OutputBuffer]:
        """The buffers of these outputs."""
        by_name = {buffer.name: buffer for buffer in self.buffers}
        return [by_name[name] for name in names]

    def copy(self, images: int) -> list[np.ndarray]:
        """Copies of the raw outputs of the last batch, on the host. Its work must have finished."""
        copies = []
        for buffer in self.buffers:
            copy = np.empty((images, *buffer.shape[1:]), buffer.dtype)
            to_host = cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost
            check(cudart.cudaMemcpy(copy.ctypes.data, buffer.address, copy.nbytes, to_host))
            copies.append(copy)
        return copies

    def close(self) -> None:
        for buffer in self.buffers:
            check(cudart.cudaFree(buffer.address))
        self.buffers.clear()


def dtype_of(trt, engine, name: str) -> str | None:
    """NumPy's name of a tensor's type; None for one that is not read here."""
    kinds = {trt.DataType.FLOAT: "float32", trt.DataType.HALF: "float16"}
    kinds |= {trt.DataType.INT32: "int32", trt.DataType.INT8: "int8", trt.DataType.UINT8: "uint8"}
    return kinds.get(engine.get_tensor_dtype(name))
