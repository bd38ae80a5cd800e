"""Which backend a group runs on, and what this machine lacks for the cuda backend."""

import ctypes
import importlib.util
import os
import shutil
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from peoplecounter.common.errors import MPS_ERRORS, MPS_IS_BUSY, SOFTWARE, AppError, NoGpu
from peoplecounter.common.settings import ALL_GPUS, Settings

PLANS = {b"ftrt": "tensorrt", b"vtrt": "rtx"}  # the first bytes of a serialized engine -> what runs it
RUNTIMES = {  # the packages of each; the first one installed is used
    "tensorrt": ("tensorrt", "tensorrt_lean", "tensorrt_dispatch"),
    "rtx": ("tensorrt_rtx",),
}
CAPABILITY = (75, 76)  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR
GPU, VISIBLE = "NVIDIA GPU", "CUDA_VISIBLE_DEVICES"
MPS_CONTROL = "nvidia-cuda-mps-control"
MPS_S = 5.0  # then the process ends, and is started again
PACKAGES = {"cuda-python": "cuda.bindings", "PyNvVideoCodec": "PyNvVideoCodec"}


def resolve(settings: Settings) -> str:
    """ "cpu" or "cuda". `auto` is cuda when the model is a plan, or a served one and this machine can run plans.

    Raises AppError when the backend cannot run on this machine: NoGpu without a GPU. From then on this process sees the
    group's GPUs only.
    """
    if not wants_gpu(settings):
        return "cpu"
    select_gpu(settings)
    requirement, missing = next(
        ((what, f"{what}: {detail}") for what, fine, detail in cuda_checks() if not fine), ("", "")
    )
    if missing and is_endpoint(settings.engine.model) and settings.backend == "auto":
        return "cpu"
    error = NoGpu if requirement == GPU else AppError
    if missing and settings.backend == "cuda":
        raise error(f"The cuda backend cannot run here ({missing}): see 'peoplecounter doctor', or use 'cpu'.")
    if missing:
        raise error(f"The model {settings.engine.model} is a TensorRT plan, which cannot run here ({missing}).")
    return "cuda"


def wants_gpu(settings: Settings) -> bool:
    """True when the cuda backend is asked for, or chosen where this machine has a GPU."""
    model = settings.engine.model
    return settings.backend != "cpu" and (
        settings.backend == "cuda" or is_endpoint(model) or (bool(model) and is_plan(Path(model)))
    )


def select_gpu(settings: Settings) -> None:
    """Makes the GPUs of the settings the only ones that this process, and those that it starts, see.

    It must be called before CUDA is used. Raises AppError for a number that this machine does not have.
    """
    uuids = [_uuid_of(settings.gpu)] if settings.gpu else gpus(settings)
    if uuids:
        os.environ[VISIBLE] = ",".join(uuids)  # a number would mean another GPU under MPS


def gpus(settings: Settings) -> tuple[str, ...]:
    """UUIDs of the GPUs of a group with several: those that `gpus` names, or all that CUDA would see; otherwise empty.

    Raises AppError for a number that this machine does not have.
    """
    names = settings.gpus if wants_gpu(settings) else ()
    if names == (ALL_GPUS,):
        visible = os.environ.get(VISIBLE, "")
        names = tuple(visible.split(",")) if visible else tuple(map(str, range(_gpu_count())))
    uuids = tuple(map(_uuid_of, names))
    if len(set(uuids)) < len(uuids):
        raise AppError("gpus names a GPU twice, by its number and by its UUID: name it once.")
    return uuids


def is_endpoint(model: str) -> bool:
    """True for a model that is served on tcp://, not a file."""
    return model.startswith("tcp://")


def is_plan(path: Path) -> bool:
    """True for a serialized engine of TensorRT or TensorRT-RTX."""
    try:
        with path.open("rb") as file:
            return plan_runtime(file.read(4)) is not None
    except OSError:
        return False


def plan_runtime(data: bytes) -> str | None:
    """What runs a serialized engine: "tensorrt" or "rtx"; None: it is none."""
    return PLANS.get(bytes(data[:4]))


@cache
def cuda_checks() -> tuple[tuple[str, bool, str], ...]:
    """(requirement, met or not, detail) for everything that the cuda backend needs."""
    return tuple(_cuda_checks())


def _cuda_checks() -> Iterator[tuple[str, bool, str]]:
    found = gpu()
    yield GPU, found is not None, found[0] if found else "no driver or no device"
    nvdec = _library("libnvcuvid.so.1") is not None
    yield "NVDEC", nvdec, "libnvcuvid" if nvdec else "no libnvcuvid: a container needs the capability 'video'"
    for package, module in PACKAGES.items():
        installed = importable(module)
        yield package, installed, "installed" if installed else "not installed: it is in the extra 'gpu'"
    compiler = "triton" if importable("triton") else "torch" if importable("torch") else None
    detail = "not installed: it is in the extras 'gpu' and 'gpu-lean'"
    if compiler == "torch":
        detail = "not installed: torch's operations are used, which are many times slower"
    yield "Triton", compiler is not None, "installed" if compiler == "triton" else detail
    runtime = tensorrt_module(*RUNTIMES)
    yield "TensorRT", runtime is not None, runtime or "no runtime installed: the full one is in the extra 'gpu'"


def tensorrt_module(*runtimes: str) -> str | None:
    """The module of an installed runtime among these: a meta package or bare bindings; None: not installed."""
    packages = [name for runtime in runtimes for name in RUNTIMES[runtime]]
    return next((m for name in packages for m in (name, f"{name}_bindings") if importable(m)), None)


def importable(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def may_use_openvino(settings: Settings) -> bool:
    """True when an ONNX file may be run by OpenVINO."""
    return settings.engine.runtime != "onnxruntime" and importable("openvino")


def mps_pipe() -> Path | None:
    """The pipe directory of the running MPS daemon that CUDA programs started here would use; None: none runs."""
    pipe = Path(os.environ.get("CUDA_MPS_PIPE_DIRECTORY", "/tmp/nvidia-mps"))
    return pipe if (pipe / "control").exists() else None


def mps_binary() -> str | None:
    return shutil.which(MPS_CONTROL)


def gpu() -> tuple[str, str] | None:
    """(name, compute capability, "9.0") of the first NVIDIA GPU; None: there is none. Creates no CUDA context."""
    driver = _library("libcuda.so.1")
    name, device, number = ctypes.create_string_buffer(100), ctypes.c_int(), ctypes.c_int()
    if driver is None or not _starts(driver) or driver.cuDeviceGet(ctypes.byref(device), 0):
        return None
    driver.cuDeviceGetName(name, len(name), device)
    capability = []
    for attribute in CAPABILITY:
        driver.cuDeviceGetAttribute(ctypes.byref(number), attribute, device)
        capability.append(str(number.value))
    return name.value.decode(), ".".join(capability)


def _starts(driver: ctypes.CDLL) -> bool:
    """Whether CUDA starts. While MPS recovers from the failure of one of its GPUs, it lets no process in.

    Raises NoGpu, for which a process is started again, when that takes long.
    """
    until_s = time.monotonic() + MPS_S
    while (code := driver.cuInit(0)) in MPS_ERRORS:
        if time.monotonic() > until_s:
            raise NoGpu(MPS_IS_BUSY, SOFTWARE)
        time.sleep(0.02)
    return not code


def _uuid_of(name: str) -> str:
    """The UUID of a GPU: itself, or of the GPU with this number in nvidia-smi. Raises NoGpu when there is none."""
    if not name.isdecimal():
        return name
    nvml, device, uuid = _nvml(), ctypes.c_void_p(), ctypes.create_string_buffer(96)
    if (
        nvml is None
        or nvml.nvmlDeviceGetHandleByIndex_v2(int(name), ctypes.byref(device))
        or nvml.nvmlDeviceGetUUID(device, uuid, len(uuid))
    ):
        raise NoGpu(f"There is no GPU {name}: set gpu or gpus to numbers that 'nvidia-smi -L' lists, or to UUIDs.")
    return uuid.value.decode()


def _gpu_count() -> int:
    """As nvidia-smi shows them."""
    nvml, number = _nvml(), ctypes.c_uint()
    return 0 if nvml is None or nvml.nvmlDeviceGetCount_v2(ctypes.byref(number)) else number.value


def _nvml() -> ctypes.CDLL | None:
    nvml = _library("libnvidia-ml.so.1")
    return None if nvml is None or nvml.nvmlInit_v2() else nvml


def _library(name: str) -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(name)
    except OSError:
        return None
