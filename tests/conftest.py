"""Every test has a private run directory on a tmpfs; nothing it started survives it."""

import lzma
import os
import shutil
import signal
import subprocess
import tempfile
import threading
from pathlib import Path

import pytest

from tests.support import squares
from tests.support.cli import DEFAULTS, ROOT, command
from tests.support.group import Group

os.environ |= DEFAULTS
SHARED = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture
def run_dir():
    path = Path(tempfile.mkdtemp(prefix="pc-test-", dir="/dev/shm"))
    yield path
    shutil.rmtree(path, ignore_errors=True)
    path.with_suffix(".log").unlink(missing_ok=True)


@pytest.fixture(scope="session")
def clip(tmp_path_factory):
    return squares.make_clip(tmp_path_factory.mktemp("squares") / "clip.mp4")


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    return squares.make_model(tmp_path_factory.mktemp("squares") / "squares.onnx")


@pytest.fixture
def group(run_dir, model):
    """Makes groups; kills what is left of them, then asserts that nothing was."""
    groups = []

    def make(sources, **settings):
        groups.append(Group(run_dir, model, sources, **squares.VIEWS | settings))
        return groups[-1]

    yield make
    problems = []
    for one in groups:
        try:
            one.close()
        except AssertionError as problem:
            problems.append(problem)
        finally:
            for process in one.processes.values():
                if process.poll() is None:
                    os.kill(process.pid, signal.SIGKILL)
    if problems:
        raise problems[0]


@pytest.fixture
def running(run_dir, clip, model):
    """A group that counts a looping clip, started by `run` as on a machine of one core: one process of each service."""
    arguments = ("run", clip, "--model", model, "--loop", "--realtime", "--json")
    argv, environment = command(run_dir, *arguments, PEOPLECOUNTER_CORES="1")
    process = subprocess.Popen(
        argv, env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    limit = threading.Timer(120, process.kill)  # a test that waits for a line that never comes fails
    limit.start()
    assert process.stdout.readline().startswith("{")
    yield process
    limit.cancel()
    if process.poll() is None:
        process.kill()
    process.communicate()


@pytest.fixture(scope="session")
def footage():
    """The folder of real footage with truth, where it lies beside the checkout."""
    if not (SHARED / "footage").is_dir():
        pytest.skip(f"no footage in {SHARED}: this test runs where the project's test material lies beside it")
    return SHARED / "footage"


@pytest.fixture(scope="session")
def yolo(footage, tmp_path_factory):
    """A real YOLO26n, unpacked from the test material."""
    path = tmp_path_factory.mktemp("models") / "yolo26n.onnx"
    path.write_bytes(lzma.decompress((footage.parent / "models" / "yolo26n_coco_fp32.onnx.xz").read_bytes()))
    return path
