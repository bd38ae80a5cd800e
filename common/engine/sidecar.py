"""A plan's sidecar `PLAN.json`: where the plan comes from and where it runs. Written by the builder, checked by the
loader.

Standard library only: a builder's own Python imports this module.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from peoplecounter.common.errors import NO_INPUT, AppError
from peoplecounter.common.files import sha256

SIDECAR_BYTES_MAX = 1 << 20
NAMES = {"tensorrt": "TensorRT", "rtx": "TensorRT-RTX"}  # what runs a plan
REFIT = ("no", "identical", "any")  # which weights a plan accepts: none, those it was built with, any of its network


@dataclass(frozen=True)
class Sidecar:
    """Where a plan comes from and where it runs. Paths are relative to the plan, hashes are SHA-256 in hex."""

    plan_sha256: str
    plan_bytes: int
    onnx: str
    onnx_sha256: str
    tensorrt: str  # version that built it
    gpu: str  # name of the GPU it was built on
    compute_capability: str  # "9.0"
    version_compatible: bool
    hardware_compatible: bool
    stripped: bool  # contains no weights: they come from the ONNX file when the plan is loaded
    refit: str  # one of REFIT
    batches: list = field(default_factory=list)  # [min, opt, max] images of every profile
    level: int = 0  # optimization level
    workspace_mb: int = 0
    inputs: list = field(default_factory=list)  # {"name", "dtype", "shape"}; -1: free
    outputs: list = field(default_factory=list)
    build_s: float = 0.0
    timing_cache: str = "off"  # "off", "cold" (empty for this GPU and these versions) or "warm"
    built: str = ""  # UTC
    metadata: dict = field(default_factory=dict)  # of the ONNX file: names, task and the like, as they stand there
    runtime: str = "tensorrt"  # one of NAMES
    targets: list = field(default_factory=list)  # of TensorRT-RTX: the architectures it was built for, "sm120"
    computed: dict = field(default_factory=dict)  # type -> how many convolutions and matrix products ask for it

    @property
    def builder(self) -> str:
        """What built it, with its version."""
        return f"{NAMES[self.runtime]} {self.tensorrt}"

    def encode(self) -> bytes:
        return json.dumps(asdict(self), indent=1).encode() + b"\n"


def sidecar_path(plan: Path) -> Path:
    return plan.with_name(plan.name + ".json")


def decode_sidecar(data: bytes, name: str) -> Sidecar:
    """A sidecar from its JSON. Raises AppError for anything else."""
    try:
        sidecar = Sidecar(**json.loads(data))
    except (ValueError, TypeError, RecursionError):
        raise AppError(f"The sidecar of {name} is damaged: build the plan again, or delete the sidecar.") from None
    for key, kind in Sidecar.__annotations__.items():
        value = getattr(sidecar, key)
        if not isinstance(value, (int, float) if kind is float else kind) or isinstance(value, bool) != (kind is bool):
            raise AppError(f"The sidecar of {name} is damaged ({key}): build the plan again, or delete the sidecar.")
    batches = all(isinstance(b, list) and all(isinstance(n, int) for n in b) for b in sidecar.batches)
    tensors = all(
        isinstance(t, dict) and {"name", "dtype", "shape"} <= t.keys() for t in sidecar.inputs + sidecar.outputs
    )
    if not batches or not tensors:
        raise AppError(f"The sidecar of {name} is damaged (batches or tensors): build the plan again, or delete it.")
    if sidecar.refit not in REFIT or sidecar.runtime not in NAMES:
        raise AppError(f"The sidecar of {name} was written by another version of peoplecounter: build the plan again.")
    return sidecar


def read_sidecar(plan: Path) -> Sidecar | None:
    """The sidecar of a plan; None when the plan has none. Raises AppError for one that cannot be read."""
    path = sidecar_path(plan)
    try:
        with path.open("rb") as file:
            return decode_sidecar(file.read(SIDECAR_BYTES_MAX), str(plan))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise AppError(f"The sidecar {path} cannot be read: {error.strerror}.", NO_INPUT) from None


def check_bytes(sidecar: Sidecar, data: bytes, name: str) -> None:
    """Raises AppError for a plan that is not the one its sidecar describes."""
    if len(data) != sidecar.plan_bytes:
        raise AppError(
            f"The plan {name} has {len(data)} bytes, its sidecar says {sidecar.plan_bytes}: it was truncated or "
            "replaced. Copy or build it again."
        )
    if sha256(data) != sidecar.plan_sha256:
        raise AppError(f"The plan {name} is not the one its sidecar describes: copy both again, or build it again.")


def check_gpu(sidecar: Sidecar, gpu: str, compute_capability: str, name: str) -> None:
    """Raises AppError for a plan that was built for another GPU than this machine has."""
    if sidecar.runtime == "rtx":
        if compute_capability not in map(capability, sidecar.targets):
            raise AppError(
                f"The plan {name} was built for {', '.join(sidecar.targets)}, this GPU is {gpu} "
                f"(sm{compute_capability.replace('.', '')}): build it with another --target or --runtime."
            )
    elif compute_capability != sidecar.compute_capability and not sidecar.hardware_compatible:
        raise AppError(
            f"The plan {name} was built on {sidecar.gpu} ({sidecar.compute_capability}), this GPU is {gpu} "
            f"({compute_capability}): build it again, or with --hardware-compatible."
        )


def check_version(sidecar: Sidecar, installed: str, name: str) -> None:
    """Raises AppError for a plan that was built by another TensorRT than is installed."""
    same = installed.split(".")[:3] == sidecar.tensorrt.split(".")[:3]
    if not same and not sidecar.version_compatible:
        hint = ", or with --version-compatible" if sidecar.runtime == "tensorrt" else ""
        raise AppError(
            f"The plan {name} was built by {sidecar.builder}, {installed} is installed: build it again{hint}."
        )


def capability(target: str) -> str:
    """ "sm120" -> "12.0"."""
    number = target.removeprefix("sm")
    return f"{number[:-1]}.{number[-1:]}"
