"""The demo: a rendered plaza whose truth is exact, counted by all five services with the model trained on it."""

import json
from pathlib import Path

from peoplecounter.common.errors import AppError
from peoplecounter.common.settings import PREFIX, default_run_dir
from peoplecounter.deploy.cli.display import summary_lines
from peoplecounter.deploy.demo.plaza import render_clip
from peoplecounter.deploy.group.foreground import configure, run_group
from peoplecounter.deploy.report.evaluate import read_truth

SIZES = {"1080p": (1920, 1080, 240), "4k": (3840, 2160, 48)}  # width, height, frames
SEED = 1  # not in the training set: the model was trained on seeds from 1000 on


def run_demo(size: str, folder: Path, as_json: bool) -> int:
    """Renders (once), runs the group, prints and writes the summary; returns the exit code."""
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
    changes = {
        PREFIX + "SOURCES": json.dumps({"plaza": {"url": str(clip.absolute())}}),
        PREFIX + "ENGINE__MODEL": "",
        PREFIX + "RUN_DIR": str(_run_dir()),
    }
    settings, environment = configure(None, changes)
    summary, code = run_group(settings, environment, as_json, folder / "counts.jsonl", read_truth(truth))
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    print(json.dumps(summary) if as_json else "\n".join(["", *summary_lines(summary)]), flush=True)
    if summary["problem"]:
        raise AppError(f"{summary['problem']}.", code)
    return code


def _run_dir() -> Path:
    """A run directory of its own, so that the demo does not disturb a running group."""
    return Path(default_run_dir() + "-demo")
