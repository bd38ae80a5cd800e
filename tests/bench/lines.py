"""A thousand crossings of three lines on the plaza, whose truth is exact: on true boxes, and with the demo's model.

`python -m tests.bench.lines --crossings 1000 --out FILE.json`. Each clip has other people (seeds that the demo's model
was not trained on); the truth is what the true tracks do by the product's own rule.
"""

import argparse
import json
import subprocess
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from peoplecounter.common.counting import LineSettings
from peoplecounter.deploy.demo.plaza import Plaza, render_clip
from peoplecounter.deploy.report.crossings import CrossingAt, compare_crossings, read_crossings, true_crossings
from peoplecounter.deploy.report.track_scores import Tracks, compare_tracks, read_found_tracks, read_true_tracks
from peoplecounter.services.fusion.lines import LineCounter, People
from peoplecounter.services.fusion.track import Tracker
from tests.support.cli import ROOT, command

SIZE, FPS, PEOPLE = (960, 540), 10, 22
LINES = {
    "upright": LineSettings(points=((0.5, 0.0), (0.5, 1.0)), inside=(0.9, 0.5)),
    "aslant": LineSettings(points=((0.15, 0.3), (0.75, 1.0)), inside=(0.9, 0.5)),
    "bent": LineSettings(points=((0.75, 0.2), (0.7, 0.6), (0.9, 1.0)), inside=(0.99, 0.5)),
}


def plaza_tracks(frames: int, seed: int) -> Tracks:
    """The plaza's truth: of each frame, who is seen, and where."""
    plaza = Plaza(*SIZE, seed, PEOPLE, "far")
    tracks: Tracks = {}
    for frame in range(frames):
        _, truth = plaza.frame(frame / FPS)
        boxes = np.array([one.body for one in truth], float).reshape(-1, 4)
        tracks[frame] = np.array([str(one.person) for one in truth], object), boxes
    return tracks


def followed(tracks: Tracks) -> list[CrossingAt]:
    """The crossings that the tracker finds in these boxes, without their names."""
    tracker, counters, found = Tracker(), {name: LineCounter(line) for name, line in LINES.items()}, []
    for frame, (_, boxes) in sorted(tracks.items()):
        tracker.update(boxes, np.ones(len(boxes), bool), frame / FPS)
        people = People(tracker.boxes, SIZE, tracker.confirmed, tracker.seen, frame / FPS)
        for name, counter in counters.items():
            found += [CrossingAt(name, "in" if d > 0 else "out", frame / FPS) for _, d in counter.update(people)]
        ended = tracker.ended()
        for counter in counters.values():
            counter.rows = counter.rows[~ended]
        tracker.drop(ended)
    return found


def plaza_crossings(frames: int, seed: int) -> dict:
    """See compare_crossings(), on true boxes."""
    tracks = plaza_tracks(frames, seed)
    true = true_crossings(tracks, LINES, SIZE, lambda frame: frame / FPS)
    return compare_crossings(followed(tracks), true)


def counted(folder: Path, frames: int, seed: int) -> tuple[dict, dict]:
    """The same with the demo's model on the rendered clip, by `run`; and how well its people are followed."""
    clip, truth = folder / f"{seed}.mp4", folder / f"{seed}.csv"
    render_clip(clip, truth, *SIZE, frames, FPS, seed, PEOPLE)
    tables = [
        f"[sources.plaza.lines.{name}]\npoints = {[list(p) for p in line.points]}\ninside = {list(line.inside)}\n"
        for name, line in LINES.items()
    ]
    (folder / "lines.toml").write_text("\n".join(tables))
    out, events = folder / "c.jsonl", folder / "e.jsonl"
    words = ["run", f"plaza={clip}", "--config", folder / "lines.toml", "--out", out, "--boxes", "--events", events]
    argv, environment = command(folder / "run", *words, "--json")
    subprocess.run(argv, env=environment, cwd=ROOT, check=True, capture_output=True)
    tracks = read_true_tracks(truth)
    true = true_crossings(tracks, LINES, SIZE, lambda frame: frame / FPS)
    return compare_crossings(read_crossings(events), true), compare_tracks(read_found_tracks(out), tracks)


def summed(results: list[dict]) -> dict:
    """Of several clips together."""
    total = {name: sum(one[name] for one in results) for name in ("found", "true", "matched")}
    shares = {"precision": total["matched"] / total["found"], "recall": total["matched"] / total["true"]}
    return {**total, **{name: round(share, 4) for name, share in shares.items()}}


def until(enough: int, seeds: Iterator[int], one) -> list[dict]:
    """Results of clip after clip until they have so many true crossings."""
    results: list[dict] = []
    while sum(result["true"] for result in results) < enough:
        results.append(one(next(seeds)))
        print(json.dumps(summed(results)), flush=True)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--crossings", type=int, default=1000)
    parser.add_argument("--frames", type=int, default=600, help="of each clip")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    on_truth = until(options.crossings, iter(range(50, 500)), lambda seed: plaza_crossings(options.frames, seed))
    scores: list[dict] = []

    def by_model(seed: int) -> dict:
        crossings, tracks = counted(Path(folder), options.frames, seed)
        scores.append(tracks)
        return crossings

    with tempfile.TemporaryDirectory() as folder:
        modelled = until(options.crossings // 4, iter(range(50, 500)), by_model)
    report = {
        "date": datetime.now(UTC).date().isoformat(),
        "command": f"python -m tests.bench.lines --crossings {options.crossings} --frames {options.frames}",
        "on_true_boxes": summed(on_truth),
        "with_the_demos_model": {
            **summed(modelled), "idf1": round(float(np.mean([one["idf1"] for one in scores])), 4),
        },
    }  # fmt: skip
    if options.out:
        options.out.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
