"""The CUDA calls that memory, engine and decoder share: one device, errors as exceptions, page-locked host memory.

cuda.bindings without torch: a process that only copies or infers stays small and starts fast.
"""

import ctypes

import numpy as np
from cuda.bindings import driver
from cuda.bindings import runtime as cudart

from peoplecounter.common.errors import MPS_ERRORS, MPS_IS_BUSY, SOFTWARE, GpuLost, NoGpu

HANDLE_BYTES = 64  # of a CUDA IPC memory handle
UUID_BYTES = 16
STUCK_S = 2.0  # queued work takes milliseconds: after this time the GPU, or a frozen owner, will not finish it
STUCK = "The GPU does not finish the work of this process: the process ends and must be restarted."
_HARMLESS = {  # errors that leave the context usable; after any other error the process must end
    cudart.cudaError_t.cudaErrorInvalidValue,
    cudart.cudaError_t.cudaErrorMemoryAllocation,
    cudart.cudaError_t.cudaErrorInvalidResourceHandle,
    cudart.cudaError_t.cudaErrorInvalidDevice,
    cudart.cudaError_t.cudaErrorDeviceUninitialized,
    cudart.cudaError_t.cudaErrorNotSupported,
    cudart.cudaError_t.cudaErrorNotPermitted,
    cudart.cudaError_t.cudaErrorMapBufferObjectFailed,
    cudart.cudaError_t.cudaErrorAlreadyMapped,
    cudart.cudaError_t.cudaErrorStreamCaptureUnsupported,
    cudart.cudaError_t.cudaErrorStreamCaptureInvalidated,
}
_NO_DEVICE = {
    cudart.cudaError_t.cudaErrorNoDevice,
    cudart.cudaError_t.cudaErrorInsufficientDriver,
    cudart.cudaError_t.cudaErrorSystemDriverMismatch,
    cudart.cudaError_t.cudaErrorInitializationError,
    cudart.cudaError_t.cudaErrorDevicesUnavailable,
}


class CudaError(Exception):
    """A call that failed and left the context usable; `code` is its cudaError_t."""

    def __init__(self, code: cudart.cudaError_t):
        super().__init__(f"{code.name}: {cudart.cudaGetErrorString(code)[1].decode()}")
        self.code = code


def check(result: tuple):
    """The value(s) of a cuda.bindings call. Raises CudaError, or GpuLost when the context is no longer usable."""
    code, *values = result
    if int(code):  # an error of the runtime or of the driver
        if code in _NO_DEVICE:
            raise NoGpu(f"No usable NVIDIA GPU ({code.name}): set backend = 'cpu'.")
        if code in _HARMLESS:
            cudart.cudaGetLastError()  # resets it: otherwise the next launch would report it again
            raise CudaError(code)
        raise GpuLost(f"The GPU failed ({code.name}): the process ends and must be restarted.")
    return values[0] if len(values) == 1 else tuple(values)


def start(device: int = 0) -> None:
    """Makes this one of the visible GPUs current in this thread. Raises NoGpu when there is none."""
    (code,) = cudart.cudaSetDevice(device)
    if not int(code):
        (code,) = cudart.cudaFree(0)  # creates the context now, not with the first frame
    if int(code) in MPS_ERRORS:
        raise NoGpu(MPS_IS_BUSY, SOFTWARE)
    check((code,))


def device(number: int = 0) -> cudart.cudaDeviceProp:
    """Properties of a visible GPU: name, major, minor, uuid, totalGlobalMem and more."""
    return check(cudart.cudaGetDeviceProperties(number))


def current() -> int:
    """Which of the visible GPUs is current in this thread."""
    return check(cudart.cudaGetDevice())


def uuid(number: int = 0) -> bytes:
    """The 16 bytes that identify a visible GPU."""
    return bytes(device(number).uuid.bytes)[:UUID_BYTES]


def context() -> int:
    """The current CUcontext of this thread as an integer, for libraries that need it."""
    _, current = driver.cuCtxGetCurrent()
    return int(current)


def bytes_of(handle: cudart.cudaIpcMemHandle_t) -> bytes:
    """The 64 bytes of an IPC handle."""
    return ctypes.string_at(handle.getPtr(), HANDLE_BYTES)


def fill(handle, data: bytes):
    """Writes 64 bytes into an empty IPC handle and returns it."""
    ctypes.memmove(handle.getPtr(), data, HANDLE_BYTES)
    return handle


def upload(array: np.ndarray) -> int:
    """The address of a copy in GPU memory, freed by cudaFree or with the process."""
    array = np.ascontiguousarray(array)
    address = int(check(cudart.cudaMalloc(max(1, array.nbytes))))
    check(cudart.cudaMemcpy(address, array.ctypes.data, array.nbytes, cudart.cudaMemcpyKind.cudaMemcpyHostToDevice))
    check(cudart.cudaStreamSynchronize(0))  # other streams do not wait for what is still on its way
    return address


def pinned(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Page-locked host memory as an array, for asynchronous copies; freed by cudaFreeHost or with the process."""
    nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
    address = check(cudart.cudaHostAlloc(nbytes, cudart.cudaHostAllocDefault))
    memory = (ctypes.c_byte * nbytes).from_address(address)
    return np.frombuffer(memoryview(memory), dtype).reshape(shape)
