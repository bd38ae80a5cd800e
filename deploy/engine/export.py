"""Exports a YOLO26 detector with Ultralytics, an optional tool in an environment of its own.

Ultralytics' code, weights and exports are under AGPL-3.0. Nothing of it is part of this project, none of it is imported
by a service, and it is installed only when asked for, beside the model.
"""

import subprocess
import sys
import venv
from pathlib import Path

from peoplecounter.common.errors import CONFIG, SOFTWARE, Refused

NOTICE = (
    "Ultralytics, its weights and what it exports are licensed under AGPL-3.0: offering a service with them "
    "over a network obliges you to offer its complete source, unless you hold an enterprise licence of Ultralytics."
)
PACKAGES = ("ultralytics>=8.4,<9", "onnx>=1.20", "onnxslim", "onnxruntime>=1.23")
# nms=False exports the NMS-free head; batch 1 is looped by the CPU engine
EXPORT = """
import sys
from ultralytics import YOLO
print(YOLO(sys.argv[1]).export(format="onnx", imgsz=640, nms=False, dynamic=False, simplify=True))
"""


def export(name: str, folder: Path, accept_agpl: bool) -> None:
    """Writes <folder>/<name>.onnx and says how to use it; raises Refused when not accepted or when a step fails."""
    if not name.replace("-", "").isalnum():
        raise Refused(f"The model name {name!r} is no Ultralytics model: try yolo26n.")
    print(NOTICE)
    if not accept_agpl:
        raise Refused("Nothing was installed: add --accept-agpl when you accept that licence.", CONFIG)
    folder.mkdir(parents=True, exist_ok=True)
    python = folder / "ultralytics" / "bin" / "python"
    if not python.exists():
        venv.create(folder / "ultralytics", with_pip=True)
    for step in (
        [python.absolute(), "-m", "pip", "install", "-q", *PACKAGES],
        [python.absolute(), "-c", EXPORT, f"{name}.pt"],
    ):
        if subprocess.run(step, cwd=folder).returncode:
            raise Refused(f"The export of {name} failed: see the lines above.", SOFTWARE)
    print(f"Now: peoplecounter run SOURCE --model {folder / name}.onnx", file=sys.stderr)
