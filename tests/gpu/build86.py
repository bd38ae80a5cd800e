"""Our builder in TensorRT 8.6, which is what a GPU host without NVIDIA's index can have: run by a Python of its own.

`/tmp/gpu/trt86/python -m tests.gpu.build86 MODEL.onnx FOLDER`: builds a version-compatible plan with a new timing
cache, kills a build half-way, and builds again with what the cache remembers. Prints one JSON object.
"""

import json
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

from peoplecounter.common.engine.sidecar import sidecar_path
from peoplecounter.deploy.engine.build import BuildOptions, BuildProgress, build_file, watched

LEVEL = 0  # seconds of building matter here, not microseconds of running
KILLED_AFTER_S = 12


def options(folder: Path) -> BuildOptions:
    return BuildOptions(level=LEVEL, version_compatible=True, timing_cache=folder / "timing")


def build(onnx: Path, plan: Path) -> dict:
    progress = BuildProgress()
    sidecar, ratio = watched(lambda: build_file(onnx, plan, options(plan.parent), progress), progress)
    return {**asdict(sidecar), "seconds_over_first": ratio}


def kill_one(onnx: Path, plan: Path) -> dict:
    """A build ended by SIGKILL, and what it left."""
    command = [sys.executable, "-m", "tests.gpu.build86", str(onnx), str(plan.parent), "--only", plan.name]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    time.sleep(KILLED_AFTER_S)
    running = child.poll() is None
    child.send_signal(signal.SIGKILL)
    child.wait()
    return {"was_running": running, "plan_left": plan.exists(), "sidecar_left": sidecar_path(plan).exists()}


def main() -> None:
    onnx, folder = Path(sys.argv[1]), Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    if "--only" in sys.argv:
        build(onnx, folder / sys.argv[-1])
        return
    first = build(onnx, folder / "yolo26n.plan")
    killed = kill_one(onnx, folder / "again.plan")
    second = build(onnx, folder / "again.plan")
    print(json.dumps({"first": first, "killed": killed, "second": second}, indent=1))


if __name__ == "__main__":
    main()
