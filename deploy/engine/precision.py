"""ONNX -> ONNX of a lower precision, by NVIDIA's ModelOpt in an environment of its own: its pins clash with ours."""

import subprocess
import tempfile
import venv
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np

from peoplecounter.common.engine.onnxruntime import OnnxEngine
from peoplecounter.common.errors import NO_INPUT, SOFTWARE, Refused
from peoplecounter.common.files import write_file
from peoplecounter.common.ipc.messages import Input
from peoplecounter.common.settings import Engine, Preprocess, Settings
from peoplecounter.deploy.engine import calibration
from peoplecounter.deploy.engine.bench import Bench
from peoplecounter.deploy.engine.timing import cache_folder

PRECISIONS = ("fp16", "int8", "fp8")
MODELOPT = "nvidia-modelopt==0.47.0"  # installed alone: what it says it needs is more than its ONNX part does
NEEDS = (
    "torch==2.13.0", "onnx==1.21.0", "onnxruntime==1.24.4", "onnxconverter-common==1.16.0", "onnx-graphsurgeon==0.6.1",
    "onnxslim==0.1.98", "onnxscript==0.7.2", "polygraphy==0.53.6", "cppimport==26.4.17", "lief==1.0.0",
    "ml_dtypes==0.6.0", "nvidia-ml-py==13.615.71", "tqdm==4.70.1", "scipy==1.17.1", "omegaconf==2.4.0",
    "setuptools>=80",
)  # fmt: skip
IMAGES = 24  # to calibrate with: more change the ranges little, and the time a lot
CHECKED, STEP = 8, 3  # frames that are counted before and after, every third


def environment(folder: Path | None = None) -> Path:
    """The Python that has ModelOpt; installed on first use (about 1 GB, and more where torch comes with CUDA)."""
    folder = folder or cache_folder() / MODELOPT.replace("==", "-")
    python, done = folder / "bin" / "python", folder / "installed"
    if done.exists():
        return python
    try:
        venv.create(folder, with_pip=True, clear=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise Refused(f"No Python environment can be made in {folder}: {error}.", SOFTWARE) from None
    install = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    for step in ([*install, *NEEDS], [*install, "--no-deps", MODELOPT]):
        if subprocess.run(step).returncode:
            raise Refused(f"ModelOpt could not be installed in {folder}: see the lines above.", SOFTWARE)
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
    """Writes `target`; returns the people a frame that `source` and it count in CHECKED frames of the footage.

    Raises Refused, in words.
    """
    if precision not in PRECISIONS:
        raise Refused(f"The precision {precision!r} does not exist: there are {', '.join(PRECISIONS)}.")
    size_px = _load(source).size_px
    images = calibration.images(footage, IMAGES, size_px, Preprocess().overlap)
    say(f"calibrating with {len(images)} images of {footage}")
    with tempfile.TemporaryDirectory() as folder:
        data, copy, out = (Path(folder) / name for name in ("images.npy", "in.onnx", "out.onnx"))
        np.save(data, images)
        copy.write_bytes(source.read_bytes())  # ModelOpt may write to what it reads
        command = [
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
            raise Refused(f"The Python {python} cannot be run: {error.strerror}.", NO_INPUT) from None
        if done.returncode or not out.exists():
            why = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise Refused(f"ModelOpt did not convert {source} to {precision}: {why}", SOFTWARE)
        people = _people(source, footage), _people(out, footage)
        write_file(target, out.read_bytes())
    return people


def _people(model: Path, footage: Path) -> float:
    """Mean count of a few frames on the CPU."""
    engine = OnnxEngine(Engine(model=str(model)))
    surfaces = list(islice(calibration.frames(footage, STEP), CHECKED))
    counts = Bench(Settings(backend="cpu")).counts(engine, surfaces)
    engine.close()
    return sum(counts) / len(counts)


def _load(path: Path) -> Input:
    engine = OnnxEngine(Engine(model=str(path)))
    engine.close()
    return engine.input
