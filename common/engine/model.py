"""A model's bytes and its sidecar, from a file or from `engine serve`, checked before an engine loads them."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Struct

from peoplecounter.common.backend import is_endpoint, is_plan, plan_runtime
from peoplecounter.common.engine.fetch import fetch
from peoplecounter.common.engine.onnx_file import external_files
from peoplecounter.common.engine.sidecar import Sidecar, check_bytes, decode_sidecar, read_sidecar
from peoplecounter.common.errors import NO_INPUT, AppError
from peoplecounter.common.files import sha256
from peoplecounter.common.settings import EngineSettings

DEMO_MODEL = Path(__file__).with_name("plaza.onnx")


@dataclass(frozen=True)
class Model:
    """The model that engine.model names."""

    name: str  # for error messages
    data: bytes
    sidecar: Sidecar | None = None
    files: dict[str, bytes] = field(default_factory=dict)  # other files that hold the weights of an ONNX file

    @property
    def blob(self) -> bytes:
        """All of it, which is what is hashed and served."""
        contents = [self.files[name] for name in sorted(self.files)]
        return b"".join([self.data, *contents]) if contents else self.data


class SwappedModel(Struct, frozen=True):
    """A model that replaces engine.model while a group runs, see inference/swap.py."""

    model: str
    sha256: str


def read_model(settings: EngineSettings) -> Model:
    """The model of the settings. Raises AppError for one that is missing, too large, or has another hash."""
    name = settings.model or str(DEMO_MODEL)
    if is_endpoint(name):
        model = _served(name, *fetch(name, "model", settings.server_key, settings.limit_mb << 20))
    else:
        model = _stored(name, Path(name), settings.limit_mb)
    if settings.sha256 and (found := sha256(model.blob)) != settings.sha256:
        raise AppError(f"The model {name} has the SHA-256 {found}, engine.sha256 expects {settings.sha256}.")
    if model.sidecar is not None:
        check_bytes(model.sidecar, model.data, name)
    return model


def description(model: Model) -> bytes:
    """What is served with a model's bytes: a plan's sidecar, or which of the bytes are the files of an ONNX file."""
    if model.sidecar:
        return model.sidecar.encode()
    return json.dumps({name: len(model.files[name]) for name in sorted(model.files)}).encode() if model.files else b""


def _stored(name: str, path: Path, limit_mb: int) -> Model:
    data = read_file(path, limit_mb)
    if plan_runtime(data):
        return Model(name, data, read_sidecar(path))
    files, role = {}, f", which holds weights of {name},"
    for file in external_files(data, name):
        if not (path.parent / file).resolve().is_relative_to(path.parent.resolve()):
            raise AppError(f"The model {name} takes weights from {file!r}, a link out of its own folder.")
        files[file] = read_file(path.parent / file, limit_mb, role)
    return Model(name, data, files=files)


def _served(name: str, data: bytes, described: bytes) -> Model:
    if plan_runtime(data):
        return Model(name, data, decode_sidecar(described, name) if described else None)
    try:
        sizes = msgspec.json.decode(described or b"{}", type=dict[str, Annotated[int, msgspec.Meta(ge=0)]])
    except msgspec.MsgspecError:
        raise AppError(f"The server of {name} describes the model's files in a way that makes no sense.") from None
    at = len(data) - sum(sizes.values())
    model, files = data[: max(0, at)], {}
    for file, size in sizes.items():
        files[file], at = data[at : at + size], at + size
    return Model(name, model, files=files)


def read_weights(settings: EngineSettings, sidecar: Sidecar) -> bytes:
    """The ONNX file that holds the weights of a stripped plan. Raises AppError when it is missing or another file."""
    if is_endpoint(settings.model):
        data, _ = fetch(settings.model, "weights", settings.server_key, settings.limit_mb << 20)
        name = f"served at {settings.model}"
    else:
        path = Path(settings.model).parent / sidecar.onnx
        data, name = read_file(path, settings.limit_mb, f", which holds the weights of {settings.model},"), str(path)
    if sha256(data) != sidecar.onnx_sha256:
        raise AppError(f"The ONNX file {name} is not the one that {settings.model} was built from: its weights differ.")
    return data


def read_file(path: Path, limit_mb: int, role: str = "") -> bytes:
    """A whole file of at most `limit_mb`; `role` explains the file in error messages. Raises AppError."""
    try:
        size = path.stat().st_size
        if size > limit_mb << 20:
            raise AppError(f"The model {path} has {size >> 20} MB, more than the {limit_mb} MB of engine.limit_mb.")
        return path.read_bytes()
    except FileNotFoundError:
        raise AppError(f"The model {path}{role} does not exist.", NO_INPUT) from None
    except OSError as error:
        raise AppError(f"The model {path} cannot be read: {error.strerror}.", NO_INPUT) from None


def plan_path(model: str) -> Path:
    """The plan that engine.model names. Raises AppError for a file that is missing or not a plan."""
    path = Path(model)
    if not model or not path.is_file():
        raise AppError(f"The model {model or '(none)'} does not exist: set engine.model to a TensorRT plan.", NO_INPUT)
    if not is_plan(path):
        raise AppError(
            f"The model {path} is not a TensorRT plan, which the cuda backend needs: "
            f"peoplecounter engine build {path} PLAN."
        )
    return path
