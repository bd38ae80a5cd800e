"""What a production machine has: the project installed where services may see it, the demo's plaza as a camera."""

import csv
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from peoplecounter.deploy.demo.plaza import render_clip
from tests.support.cli import ROOT
from tests.support.docker import PYTHON, Docker
from tests.support.published import Published

FRAMES, FPS = 24, 5
ENOUGH = 5  # complete counts that show that counting has resumed
IMAGE = "peoplecounter-test"


def check_started_again(seen: Published, pids: Callable[[], dict], name: str, hurt: Callable[[object], None]) -> None:
    """Hurts a process, by its pid: it is started again and counting resumes.

    Only its pid changes, and nothing is lost silently.
    """
    before = pids()
    seen.wait_counts(1)
    hurt(before[name])
    gone = time.monotonic()
    seen.wait_for(lambda: pids().get(name, before[name]) != before[name], "its successor")
    started = time.monotonic()
    seen.wait_counts(ENOUGH)
    print(
        f"{name}: started again after {started - gone:.2f} s, "
        f"{ENOUGH} complete counts at {FPS} a second {time.monotonic() - started:.2f} s later"
    )
    after = pids()
    assert {other for other in after if after[other] != before[other]} == {name}
    seen.check_books("plaza", unheard=3)  # counted, but on their way to us when fusion was killed


class Clip:
    """The demo's plaza in a folder, whose truth is known."""

    def __init__(self, folder: Path):
        self.clip = folder / "plaza.mp4"
        render_clip(self.clip, self.clip.with_suffix(".csv"), frames=FRAMES)

    @property
    def truth(self) -> list[int]:
        """People in each frame."""
        with self.clip.with_suffix(".csv").open(newline="") as file:
            people = Counter(int(row["frame"]) for row in csv.DictReader(file))
        return [people[frame] for frame in range(FRAMES)]

    def check_counts(self, seen: Published, source: str) -> None:
        """The plaza was counted as well as the demo's model can: within a tenth of its people, on average."""
        counts = [c for c in seen.of("counts", source) if c["complete"]]
        errors = [abs(c["count"] - self.truth[round(c["pts_s"] * 30) % FRAMES]) for c in counts]
        assert sum(errors) / len(errors) < 0.1 * sum(self.truth) / FRAMES, errors


@pytest.fixture(scope="session")
def source_tree(tmp_path_factory):
    """What would be committed now, and nothing else: no stale build is installed."""
    folder = tmp_path_factory.mktemp("tree") / "peoplecounter"
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(listed, cwd=ROOT, capture_output=True, check=True, text=True).stdout.split("\0"):
        if name and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)
    return folder


class Installation(Clip):
    """A folder below /opt with the project in an environment of its own, and a clip."""

    def __init__(self, folder: Path):
        super().__init__(folder)
        self.bin = folder / "venv" / "bin"


@pytest.fixture(scope="session")
def plaza(tmp_path_factory):
    return Clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="session")
def docker(source_tree):
    """An engine that has built the image IMAGE."""
    engine = Docker()
    try:
        engine.build(source_tree, IMAGE)
        yield engine
    finally:
        engine.close()


@pytest.fixture(scope="session")
def installation(source_tree):
    """Installed as README says, by the machine's Python."""
    folder = Path(tempfile.mkdtemp(prefix="pc-test-", dir="/opt"))
    folder.chmod(0o755)
    subprocess.run([PYTHON, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    pip = [sys.executable, "-m", "pip", "--python", folder / "venv" / "bin" / "python", "install", "-q"]
    subprocess.run([*pip, "--no-warn-script-location", source_tree], check=True)
    yield Installation(folder)
    shutil.rmtree(folder)
