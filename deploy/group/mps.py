"""A private MPS daemon for one group: its processes use the GPU at the same time instead of being time-sliced.

Its pipes lie in the run directory, so it affects no other program and no setting of the GPU.
"""

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from peoplecounter.common import backend
from peoplecounter.common.settings import Settings

START_S = 5.0


@contextlib.contextmanager
def daemon(settings: Settings) -> Iterator[dict[str, str]]:
    """Runs the daemon if the group needs one and none runs yet; yields the environment variables that lead to it."""
    binary = backend.mps_binary()
    wanted = settings.mps == "auto" and backend.resolve(settings) == "cuda"
    if not wanted or binary is None or backend.mps_pipe():
        yield {}
        return
    folder = settings.run_dir / "mps"
    environment = {"CUDA_MPS_PIPE_DIRECTORY": str(folder), "CUDA_MPS_LOG_DIRECTORY": str(folder)}
    if (folder / "control").exists():  # left by a group that was killed
        quit_daemon(binary, environment)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    process = subprocess.Popen(
        [binary, "-f"], env={**os.environ, **environment}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield environment if _started(folder, process) else {}
    finally:
        quit_daemon(binary, environment)
        try:
            process.wait(START_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def quit_daemon(binary: str, environment: dict[str, str]) -> None:
    """Asks the daemon to end; its clients have one second to end first."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        subprocess.run(
            [binary], input=b"quit -t 1\n", env={**os.environ, **environment}, capture_output=True, timeout=START_S
        )


def _started(folder: Path, process: subprocess.Popen) -> bool:
    until_s = time.monotonic() + START_S
    while not (folder / "control").exists():
        if process.poll() is not None or time.monotonic() > until_s:
            return False
        time.sleep(0.02)
    return True
