"""How well rules of merging, and sets of levels, count the same boxes:
`python -m tests.bench.merge --model YOLO26N.onnx CLIP=TRUTH.csv[@SCALE] …`

The model sees every view of each frame once; then every rule counts from those boxes. SCALE resizes the clip first.
"""

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from peoplecounter.common.boxes import greedy_keep, overlapping_pairs
from peoplecounter.common.settings import Settings
from peoplecounter.deploy.engine import calibration
from peoplecounter.deploy.engine.bench import EngineBench
from peoplecounter.deploy.report import evaluate, tuning
from peoplecounter.services.fusion.merge import CUT, SCORE, VIEW
from tests.bench.cpu import machine
from tests.support.footage import resized

SCORE_OLD = 0.25
OUT = Path(".bench") / "merge.json"


def nms(rows: np.ndarray, iou_most: float) -> np.ndarray:
    """Greedy suppression by IoU alone."""
    rows = rows[np.argsort(-rows[:, SCORE], kind="stable")]
    first, second, iou, _ = overlapping_pairs(rows)
    same = iou > iou_most
    return rows[greedy_keep(len(rows), first[same], second[same])]


def everything(rows: np.ndarray) -> np.ndarray:
    return nms(rows[rows[:, SCORE] >= SCORE_OLD], 0.45)


def uncut(rows: np.ndarray) -> np.ndarray:
    return nms(rows[(rows[:, CUT] == 0) & (rows[:, SCORE] >= SCORE_OLD)], 0.5)


RULES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "all levels, all boxes, IoU 0.45": everything,
    "all levels, boxes that no inner edge cuts, IoU 0.5": uncut,
}


def compared(found: dict[int, np.ndarray], true: dict[int, np.ndarray]) -> dict:
    counts = evaluate.compare(
        {frame: len(boxes) for frame, boxes in found.items()}, {f: len(t) for f, t in true.items()}
    )
    kinds = evaluate.compare_boxes(found, true)
    return {"mae": counts["mae"], "bias": counts["bias"], **{k: v for k, v in kinds.items() if k != "frames"}}


def measured(clip: Path, truth: Path, bench: EngineBench, engine, every: int) -> dict:
    """{"frames", "people", "rules": {name: images, errors, kinds of boxes}} of a clip."""
    true, rules, choices = evaluate.read_true_boxes(truth), {name: {} for name in RULES}, []
    for number, (layout, surface) in enumerate(calibration.frames(clip, every)):
        views = bench.settings.views.table(layout.width, layout.height, engine.input.size, engine.input.corner)
        if not choices:
            choices = tuning.choices_of(tuning.levels_of(views, layout.height), engine.input.size)
            rules |= {choice.name: {} for choice in choices}
        rows = bench.rows(engine, layout, surface, views)
        for name, rule in RULES.items():
            rules[name][number * every] = rule(rows)
        for choice in choices:
            choice.before = bench.merged(rows[np.isin(rows[:, VIEW], choice.views)], choice.before)
            rules[choice.name][number * every] = choice.before
    images = {choice.name: choice.images for choice in choices}
    result = {name: {"images": images.get(name, len(views)), **compared(found, true)} for name, found in rules.items()}
    return {"frames": number + 1, "size": [layout.width, layout.height], "rules": result}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("clips", nargs="+", help="CLIP=TRUTH.csv[@SCALE]")
    parser.add_argument("--model", required=True)
    parser.add_argument("--every", type=int, default=1, help="n-th frame; fusion's merge then has older neighbours")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    clips, named = {}, []
    with tuning.loaded(args.model, Settings()) as (bench, engine), tempfile.TemporaryDirectory() as folder:
        for pair in args.clips:
            paths, _, scale = pair.partition("@")
            clip, truth = map(Path, paths.split("="))
            named.append(f"{clip.name}={truth.name}" + (f"@{scale}" if scale else ""))
            if scale:
                clip, truth = resized(clip, truth, Path(folder), float(scale), args.every)
            row = measured(clip, truth, bench, engine, 1 if scale else args.every)
            clips[named[-1].partition("=")[0] + (f" x {scale}" if scale else "")] = row
            print(json.dumps(row, indent=1), flush=True)
    command = f"python -m tests.bench.merge --model {Path(args.model).name} --every {args.every} {' '.join(named)}"
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps({**machine(), "command": command, "merge": clips}, indent=1) + "\n")


if __name__ == "__main__":
    main()
