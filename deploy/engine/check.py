"""What a model is taken for, and what it sees: `peoplecounter models` and `peoplecounter models check`."""

import tempfile
from pathlib import Path

import av
import numpy as np

from peoplecounter.common import cores
from peoplecounter.common.engine.layouts import HEADS
from peoplecounter.common.engine.loading import load_engine
from peoplecounter.common.errors import AppError, ModelOutputError
from peoplecounter.common.ipc.messages import SurfaceLayout
from peoplecounter.common.settings import load_settings
from peoplecounter.deploy.cli.display import aligned
from peoplecounter.deploy.demo.plaza import Plaza
from peoplecounter.deploy.engine import calibration
from peoplecounter.deploy.engine.bench import EngineBench
from peoplecounter.deploy.report.pictures import outline, rgb_of, save

PLAZA = (1280, 720, 1, 22)  # width, height, seed, people
PLAZA_S = 3.0  # when its people have spread
COLOUR = (255, 40, 40)


def known_lines() -> list[str]:
    """A table of the layouts that are recognized, as lines of text."""
    rows = [("HEAD", "OUTPUTS", "MODELS", "EXPORTED BY")]
    rows += [(kind.name, kind.layout, kind.models, kind.export) for kind in HEADS]
    return aligned(rows)


def check(model: Path, image: Path | None, out: Path) -> list[str]:
    """Draws the persons that a model finds in a picture into `out`; returns what it is taken for, as lines of text.

    Raises AppError for a model or a picture that cannot be read.
    """
    settings = load_settings()
    settings = settings.model_copy(update={"engine": settings.engine.model_copy(update={"model": str(model)})})
    bench = EngineBench(settings)
    engine = load_engine(settings, cores.threads(settings), bench.work)
    layout, surface, rgb = _picture(image)
    try:
        persons = bench.persons(engine, layout, surface)
    except ModelOutputError as error:
        raise AppError(f"The model {model} gives no persons: {error}.") from None
    head, read = engine.head, engine.input
    engine.close()
    outline(rgb, persons, COLOUR)
    save(rgb, out)
    return [
        f"head     {head.kind.name}: {head.kind.layout}",
        f"models   {head.kind.models}",
        f"input    {read}",
        f"person   class {head.person_class}",
        f"found    {len(persons)} people in {image or 'a drawn plaza'}, see {out}",
    ]


def _picture(image: Path | None) -> tuple[SurfaceLayout, np.ndarray, np.ndarray]:
    """(layout, surface, RGB [h, w, 3]) of the first frame of a file, or of the demo's plaza."""
    with tempfile.TemporaryDirectory() as folder:
        if image is None:
            image = Path(folder) / "plaza.png"
            av.VideoFrame.from_ndarray(Plaza(*PLAZA).frame(PLAZA_S)[0], "rgb24").save(image)
        layout, surface = next(calibration.frames(image))
    return layout, surface, rgb_of(layout, surface)
