"""ONNX -> ONNX of a lower precision with NVIDIA ModelOpt, in an environment of its own: its requirements conflict."""

import subprocess
import tempfile
import venv
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import msgspec
import numpy as np

from peoplecounter.common.engine.onnxruntime import OnnxEngine
from peoplecounter.common.errors import NO_INPUT, SOFTWARE, AppError
from peoplecounter.common.files import write_file
from peoplecounter.common.ipc.messages import Input
from peoplecounter.common.settings import EngineSettings, Settings, ViewSettings
from peoplecounter.deploy.engine import calibration
from peoplecounter.deploy.engine.bench import EngineBench
from peoplecounter.deploy.engine.timing import cache_folder

PRECISIONS = ("fp16", "int8", "fp8")
MODELOPT = "nvidia-modelopt==0.47.0"  # installed without its dependencies: its ONNX part needs fewer
NEEDS = (
    "torch==2.13.0", "onnx==1.21.0", "onnxruntime==1.24.4", "onnxconverter-common==1.16.0", "onnx-graphsurgeon==0.6.1",
    "onnxslim==0.1.98", "onnxscript==0.7.2", "polygraphy==0.53.6", "cppimport==26.4.17", "lief==1.0.0",
    "ml_dtypes==0.6.0", "nvidia-ml-py==13.615.71", "tqdm==4.70.1", "scipy==1.17.1", "omegaconf==2.4.0",
    "setuptools>=80",
)  # fmt: skip
IMAGES = 24  # for calibration: more change the ranges little but take long
CHECKED, STEP = 8, 3  # frames that are counted before and after: every third one


def environment(folder: Path | None = None) -> Path:
    """The Python that has ModelOpt, installed on first use (about 1 GB, more where torch includes CUDA)."""
    folder = folder or cache_folder() / MODELOPT.replace("==", "-")
    python, done = folder / "bin" / "python", folder / "installed"
    if done.exists():
        return python
    try:
        venv.create(folder, with_pip=True, clear=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise AppError(f"No Python environment can be created in {folder}: {error}.", SOFTWARE) from None
    install: list[str | Path] = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    for step in ([*install, *NEEDS], [*install, "--no-deps", MODELOPT]):
        if subprocess.run(step).returncode:
            raise AppError(f"ModelOpt cannot be installed in {folder}: see the output above.", SOFTWARE)
    done.touch()
    return python


def convert(
    source: Path,
    target: Path,
    precision: str,
    footage: Path,
    python: Path | None = None,
    say: Callable[[str], None] = print,
) -> tuple[float, float]:
    """Writes `target`; returns the people per frame that `source` and `target` count in CHECKED frames of the footage.

    Raises AppError for an unknown precision, an unreadable file, or a failed conversion.
    """
    if precision not in PRECISIONS:
        raise AppError(f"Unknown precision {precision!r}: use {', '.join(PRECISIONS)}.")
    read = msgspec.structs.replace(_load(source), dtype="float32")
    images = calibration.images(footage, IMAGES, read, ViewSettings())
    say(f"calibrating with {len(images)} images of {footage}")
    with tempfile.TemporaryDirectory() as folder:
        data, copy, out = (Path(folder) / name for name in ("images.npy", "in.onnx", "out.onnx"))
        np.save(data, images)
        copy.write_bytes(source.read_bytes())  # ModelOpt may write to its input
        command: list[str | Path] = [
            (python or environment()).absolute(),
            Path(__file__).with_name("quantize.py"),
            precision,
            copy,
            out,
            data,
        ]
        try:
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        except OSError as error:
            raise AppError(f"The Python {python} cannot be run: {error.strerror}.", NO_INPUT) from None
        if done.returncode or not out.exists():
            why = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise AppError(f"ModelOpt did not convert {source} to {precision}: {why}", SOFTWARE)
        people = _people(source, footage), _people(out, footage)
        write_file(target, out.read_bytes())
    return people


def _people(model: Path, footage: Path) -> float:
    """The mean count of a few frames, on the CPU."""
    engine = OnnxEngine(EngineSettings(model=str(model)))
    surfaces = list(islice(calibration.frames(footage, STEP), CHECKED))
    counts = EngineBench(Settings(backend="cpu")).counts(engine, surfaces)
    engine.close()
    return sum(counts) / len(counts)


def _load(path: Path) -> Input:
    engine = OnnxEngine(EngineSettings(model=str(path)))
    engine.close()
    return engine.input
