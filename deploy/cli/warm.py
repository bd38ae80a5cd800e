"""`peoplecounter doctor --warm`: compiles kernels ahead, for GPUs that need not be here."""

from collections.abc import Iterator
from pathlib import Path

from peoplecounter.common import backend
from peoplecounter.common.cubins import Pointer, Variant, compiled, keep, variant
from peoplecounter.common.engine.heads import Head
from peoplecounter.common.engine.layouts import HEADS
from peoplecounter.common.engine.select import SELECT, select_arguments
from peoplecounter.common.engine.select import WARPS as SELECT_WARPS
from peoplecounter.common.errors import AppError
from peoplecounter.common.files import cache_folder
from peoplecounter.common.ipc.messages import Input, SurfaceLayout
from peoplecounter.common.settings import Settings
from peoplecounter.services.decoder.ffmpeg import pitch_of
from peoplecounter.services.preprocess.launches import NV12_TO_IMAGES, WARPS, images_launch

SIZES = [(1280, 720), (1920, 1080), (2560, 1440), (3840, 2160)]  # what cameras send
CAPABILITIES = {"sm75": 75, "sm80": 80, "sm86": 86, "sm89": 89, "sm90": 90, "sm100": 100, "sm120": 120}
SIDE = 640  # px of a model's input
ROWS, COLUMNS = 300, (6, 38)  # that YOLO26 and YOLOv10 give, without and with masks


def warm(settings: Settings, targets: list[str], folder: Path | None) -> str:
    """Compiles what cameras of common sizes need, 8 bits a sample, and models like YOLO26, and says what was done.

    Raises AppError.
    """
    folder = folder or cache_folder() / "cubins"
    capabilities = [_capability(target) for target in targets] or [_here()]
    variants = dict.fromkeys(one for capability in capabilities for one in _variants(settings, capability))
    for one in variants:
        path = folder / one.file_name()
        if not path.exists():
            keep(compiled(one), path)
    return f"{len(variants)} kernels for {', '.join(f'sm{c}' for c in capabilities)} are in {folder}."


def _variants(settings: Settings, capability: int) -> Iterator[Variant]:
    for width, height in SIZES:
        layout = SurfaceLayout(width, height, pitch_of(width), "bt709", False)
        for dtype in ("float32", "float16"):
            read = Input(SIDE, SIDE, dtype)
            needed = images_launch(layout, read, settings.views.table(width, height, read.size))
            arguments = needed.arguments([0] * len(needed.tables))  # anywhere that is aligned
            yield variant(NV12_TO_IMAGES, arguments, needed.constants, WARPS, capability)
    rows = next(kind for kind in HEADS if kind.name == "rows")
    for columns in COLUMNS:
        arguments, constants = select_arguments(
            Pointer(0, "fp32"), (1, ROWS, columns), Head(rows, (), 0, (SIDE, SIDE)), settings.engine.score, True
        )
        yield variant(SELECT, arguments, constants, SELECT_WARPS, capability)


def _capability(target: str) -> int:
    if target not in CAPABILITIES:
        raise AppError(f"The target {target!r} is unknown: use one of {', '.join(CAPABILITIES)}.")
    return CAPABILITIES[target]


def _here() -> int:
    found = backend.gpu()
    if found is None:
        raise AppError("There is no GPU here to compile for: name one with --target, for example --target sm90.")
    return int(found[1].replace(".", ""))
