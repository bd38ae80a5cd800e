"""The demo: a rendered plaza whose truth is exact, counted by all five services with the model trained on it."""

import json
import shutil
import sys
from pathlib import Path

from peoplecounter.common.errors import AppError
from peoplecounter.common.settings import PREFIX, default_run_dir
from peoplecounter.deploy.cli.display import summary_lines
from peoplecounter.deploy.demo.plaza import render_clip
from peoplecounter.deploy.group.foreground import configure, run_group, with_dashboard
from peoplecounter.deploy.report.evaluate import read_truth

SIZES = {"1080p": (1920, 1080, 240), "4k": (3840, 2160, 48)}  # width, height, frames
SEED = 1  # not in the training set: the model was trained on seeds from 1000 on
DATA = "demo-data"  # in the folder: event logs and history
COUNTED = {  # for the pages and their charts
    "lines": {"middle": {"points": [[0.5, 0.25], [0.5, 1.0]], "inside": [0.9, 0.6]}},
    "zones": {"benches": {"points": [[0.04, 0.45], [0.6, 0.45], [0.6, 0.75], [0.04, 0.75]]}},
}


def run_demo(size: str, folder: Path, as_json: bool) -> int:
    """Renders (once), runs the group, prints and writes the summary; returns the exit code.

    On a terminal the plaza goes on in a loop then, for whoever looks at it, until Ctrl-C.
    """
    if size not in SIZES:
        raise AppError(f"Unknown size {size!r}: choose {' or '.join(SIZES)}.")
    width, height, frames = SIZES[size]
    folder.mkdir(parents=True, exist_ok=True)
    clip, truth = folder / f"plaza_{size}.mp4", folder / f"plaza_{size}.csv"
    if not (clip.exists() and truth.exists()):
        if not as_json:
            print(f"rendering {frames} frames of a plaza, {width}x{height} …", flush=True)
        fresh = clip.with_suffix(".part.mp4")
        render_clip(fresh, truth, width, height, frames, seed=SEED)
        fresh.rename(clip)
    shutil.rmtree(folder / DATA, ignore_errors=True)  # what an earlier demo has counted
    settings, environment = with_dashboard(*configure(None, _changes(folder, clip)))
    summary, code = run_group(
        settings, environment, as_json, folder / "counts.jsonl", read_truth(truth), show_lines=False
    )
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    print(json.dumps(summary) if as_json else "\n".join(["", *summary_lines(summary)]), flush=True)
    if summary["problem"]:
        raise AppError(f"{summary['problem']}.", code)
    if sys.stdout.isatty() and not as_json and not code:
        print("\nThe plaza goes on in a loop, until Ctrl-C.\n", flush=True)
        listen = {PREFIX + "DASHBOARD__LISTEN": settings.dashboard.listen}
        again = {"realtime": True, "loop": True}
        run_group(*configure(None, {**_changes(folder, clip, **again), **listen}), False, None, show_lines=False)
    return code


def _changes(folder: Path, clip: Path, **source: bool) -> dict[str, str]:
    """The demo's settings as environment variables."""
    plaza = {"url": str(clip.absolute()), **COUNTED, **source}
    values = {"SOURCES": json.dumps({"plaza": plaza}), "ENGINE__MODEL": "", "RUN_DIR": str(_run_dir())}
    return {PREFIX + key: value for key, value in {**values, "DATA_DIR": str((folder / DATA).absolute())}.items()}


def _run_dir() -> Path:
    """A run directory of its own, so that the demo does not disturb a running group."""
    return Path(default_run_dir() + "-demo")
