"""Exports a YOLO26 detector with Ultralytics, an optional tool in an environment of its own.

Ultralytics' code, weights and exports are licensed under AGPL-3.0. They are not part of this project, no service
imports them, and they are installed only on request, beside the model.
"""

import subprocess
import sys
import venv
from pathlib import Path

from peoplecounter.common.errors import CONFIG, SOFTWARE, AppError

NOTICE = (
    "Ultralytics, its weights and what it exports are licensed under AGPL-3.0: offering a service with them "
    "over a network obliges you to offer its complete source, unless you hold an enterprise licence of Ultralytics."
)
PACKAGES = ("ultralytics>=8.4,<9", "onnx>=1.20", "onnxslim", "onnxruntime>=1.23")
# nms=False exports the NMS-free head; the CPU engine infers images one by one
EXPORT = """
import sys
from ultralytics import YOLO
print(YOLO(sys.argv[1]).export(format="onnx", imgsz=640, nms=False, dynamic=False, simplify=True))
"""


def export(name: str, folder: Path, accept_agpl: bool) -> None:
    """Writes <folder>/<name>.onnx. Raises AppError when the licence is not accepted or a step fails."""
    if not name.replace("-", "").isalnum():
        raise AppError(f"{name!r} is not the name of an Ultralytics model: try yolo26n.")
    print(NOTICE)
    if not accept_agpl:
        raise AppError("Nothing was installed: add --accept-agpl if you accept this licence.", CONFIG)
    folder.mkdir(parents=True, exist_ok=True)
    python = folder / "ultralytics" / "bin" / "python"
    if not python.exists():
        venv.create(folder / "ultralytics", with_pip=True)
    steps: tuple[list[str | Path], ...] = (
        [python.absolute(), "-m", "pip", "install", "-q", *PACKAGES],
        [python.absolute(), "-c", EXPORT, f"{name}.pt"],
    )
    for step in steps:
        if subprocess.run(step, cwd=folder).returncode:
            raise AppError(f"The export of {name} failed: see the output above.", SOFTWARE)
    print(f"Next: peoplecounter run SOURCE --model {folder / name}.onnx", file=sys.stderr)
