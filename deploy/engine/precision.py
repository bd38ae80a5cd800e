"""ONNX -> ONNX of a lower precision: for GPUs with NVIDIA ModelOpt, for CPUs with NNCF. Each has an environment of its
own, as its requirements conflict."""

import os
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import msgspec
import numpy as np

from peoplecounter.common import cores
from peoplecounter.common.backend import gpu, importable
from peoplecounter.common.engine.loading import cpu_engine, load_engine
from peoplecounter.common.errors import NO_INPUT, SOFTWARE, AppError
from peoplecounter.common.files import cache_folder, write_file
from peoplecounter.common.ipc.messages import Input
from peoplecounter.common.settings import EngineSettings, ViewSettings, load_settings
from peoplecounter.deploy.engine import calibration
from peoplecounter.deploy.engine.bench import EngineBench

DEVICES = {"cpu": ("int8",), "gpu": ("fp16", "int8", "fp8")}  # what is converted for each
IMAGES = 24  # for calibration: more change the ranges little but take long
QUIET = {"NNCF_CI": "1"}  # NNCF sends nothing to its makers
CHECKED, STEP = 8, 3  # frames that are counted before and after: every third one


@dataclass(frozen=True)
class Tool:
    """What converts, in an environment of its own."""

    name: str
    script: str
    module: str  # of this Python, if it is there
    needs: tuple[str, ...]
    alone: tuple[str, ...] = ()  # installed without dependencies


MODELOPT = Tool(
    "ModelOpt 0.47.0", "quantize.py", "modelopt",
    (
        "torch==2.13.0", "onnx==1.21.0", "onnxruntime==1.24.4", "onnxconverter-common==1.16.0",
        "onnx-graphsurgeon==0.6.1", "onnxslim==0.1.98", "onnxscript==0.7.2", "polygraphy==0.53.6", "cppimport==26.4.17",
        "lief==1.0.0", "ml_dtypes==0.6.0", "nvidia-ml-py==13.615.71", "tqdm==4.70.1", "scipy==1.17.1",
        "omegaconf==2.4.0", "setuptools>=80",
    ),
    ("nvidia-modelopt==0.47.0",),  # its ONNX part needs fewer packages than it asks for
)  # fmt: skip
NNCF = Tool("NNCF 3.4.0", "quantize_cpu.py", "nncf", ("nncf==3.4.0", "onnx==1.23.2", "onnxruntime==1.32.0"))
TOOLS = {"cpu": NNCF, "gpu": MODELOPT}


def environment(tool: Tool, folder: Path | None = None) -> Path:
    """A Python that has the tool: this one, or one that is installed on first use (half a GB, ModelOpt twice that)."""
    if importable(tool.module):
        return Path(sys.executable)
    folder = folder or cache_folder() / tool.name.lower().replace(" ", "-")
    python, done = folder / "bin" / "python", folder / "installed"
    if done.exists():
        return python
    try:
        venv.create(folder, with_pip=True, clear=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise AppError(f"No Python environment can be created in {folder}: {error}.", SOFTWARE) from None
    install: list[str | Path] = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    steps = [[*install, *tool.needs], *([[*install, "--no-deps", *tool.alone]] if tool.alone else [])]
    for step in steps:
        if subprocess.run(step).returncode:
            raise AppError(f"{tool.name} cannot be installed in {folder}: see the output above.", SOFTWARE)
    done.touch()
    return python


def convert(
    source: Path,
    target: Path,
    precision: str,
    footage: Path,
    device: str = "auto",
    python: Path | None = None,
    say: Callable[[str], None] = print,
) -> tuple[float, float]:
    """Writes `target`; returns the people per frame that `source` and `target` count in CHECKED frames of the footage.

    `device`: "cpu" or "gpu", or "auto": the one for which the precision is, and of two the GPU where there is one.
    Raises AppError for an unknown precision or device, an unreadable file, or a failed conversion.
    """
    tool = TOOLS[_device(precision, device)]
    read = msgspec.structs.replace(_load(source), dtype="float32")
    images = calibration.images(footage, IMAGES, read, ViewSettings())
    say(f"calibrating with {len(images)} images of {footage}")
    with tempfile.TemporaryDirectory() as folder:
        data, copy, out = (Path(folder) / name for name in ("images.npy", "in.onnx", "out.onnx"))
        np.save(data, images)
        copy.write_bytes(source.read_bytes())  # a tool may write to its input
        command: list[str | Path] = [
            (python or environment(tool)).absolute(),
            Path(__file__).with_name(tool.script),
            precision,
            copy,
            out,
            data,
        ]
        try:
            done = subprocess.run(command, cwd=folder, env={**os.environ, **QUIET}, capture_output=True, text=True)
        except OSError as error:
            raise AppError(f"The Python {python} cannot be run: {error.strerror}.", NO_INPUT) from None
        if done.returncode or not out.exists():
            why = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise AppError(f"{tool.name} did not convert {source} to {precision}: {why}", SOFTWARE)
        people = _people(source, footage), _people(out, footage)
        write_file(target, out.read_bytes())
    return people


def _device(precision: str, device: str) -> str:
    """For what a model is converted. Raises AppError for a precision that is not for this device."""
    fitting = [name for name, precisions in DEVICES.items() if precision in precisions and device in ("auto", name)]
    if not fitting:
        known = "; ".join(f"{name}: {', '.join(precisions)}" for name, precisions in DEVICES.items())
        raise AppError(f"Unknown precision {precision!r} for {device}: use one of {known}.")
    return fitting[-1] if len(fitting) == 1 or gpu() else fitting[0]


def _people(model: Path, footage: Path) -> float:
    """The mean count of a few frames, on the CPU."""
    settings = load_settings(backend="cpu", engine={"model": str(model)})
    bench = EngineBench(settings)
    engine = load_engine(settings, cores.threads(settings), bench.work)
    counts = bench.counts(engine, list(islice(calibration.frames(footage, STEP), CHECKED)))
    engine.close()
    return sum(counts) / len(counts)


def _load(path: Path) -> Input:
    engine = cpu_engine(EngineSettings(model=str(path)))
    engine.close()
    return engine.input
