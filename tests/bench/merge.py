"""How well rules of merging count the same boxes: `python -m tests.bench.merge --model YOLO26N.onnx CLIP=TRUTH.csv …`

The model sees each frame as infer_global and infer_tiles do, once; then every rule counts from those boxes.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from peoplecounter.common.boxes import greedy_keep, overlapping_pairs
from peoplecounter.common.engine.onnxruntime import OnnxEngine
from peoplecounter.common.inference.mapping import letterbox_to_frame, tiles_to_frame
from peoplecounter.common.ipc.messages import FrameHeader, Part, SurfaceLayout, TensorLayout
from peoplecounter.common.settings import EngineSettings, FusionSettings
from peoplecounter.deploy.engine import calibration
from peoplecounter.deploy.report import evaluate
from peoplecounter.services.fusion.merge import CUT, SCORE, VIEW, hysteresis, merge
from tests.bench.cpu import machine

OVERLAP, GROUP, SCORE_OLD = 0.2, 16, 0.25
OUT = Path(".bench") / "merge.json"


def boxes(clip: Path, engine: OnnxEngine, every: int) -> Iterator[tuple[int, np.ndarray]]:
    """(frame, float32 [n, 7]) of every n-th frame: all boxes of all views, see messages.Detections."""
    for number, (layout, surface) in enumerate(calibration.frames(clip, every)):
        images = calibration.tensor(surface, layout, engine.input, OVERLAP)
        found = [engine.run(images[i : i + 1]) for i in range(len(images))]
        yield number * every, _in_frame(layout, TensorLayout(len(images), engine.input, OVERLAP), found)


def _in_frame(layout: SurfaceLayout, tensor: TensorLayout, found: list[np.ndarray]) -> np.ndarray:
    header = FrameHeader(
        source="bench", seq=0, pts_s=0.0, captured_ns=0, deadline_ns=0, width=layout.width, height=layout.height
    )
    tiles = [p + np.array([i, 0, 0, 0, 0, 0], np.float32) for i, p in enumerate(found[1:])]
    part = Part("tiles", 0, 1, len(tiles), 2)
    edge_px = FusionSettings().edge_px
    rows = tiles_to_frame(tensor, header, part, np.vstack(tiles), edge_px)
    return np.vstack([letterbox_to_frame(tensor, header, Part("global", 0, 0, 1, 2), found[0], edge_px), rows])


def nms(rows: np.ndarray, iou_most: float) -> np.ndarray:
    """Greedy suppression by IoU alone."""
    rows = rows[np.argsort(-rows[:, SCORE], kind="stable")]
    first, second, iou, _ = overlapping_pairs(rows)
    same = iou > iou_most
    return rows[greedy_keep(len(rows), first[same], second[same])]


def strong(rows: np.ndarray) -> np.ndarray:
    return rows[rows[:, SCORE] >= SCORE_OLD]


def alone(rows: np.ndarray) -> int:
    return int((strong(rows)[:, VIEW] < 0).sum())


def in_groups(rows: np.ndarray) -> int:
    """Of the pipeline that is rebuilt here: each group of tiles by itself, then the larger of tiles and whole frame."""
    rows = strong(rows)
    tiles = rows[rows[:, VIEW] >= 0]
    groups = [nms(tiles[tiles[:, VIEW] // GROUP == group], 0.45) for group in np.unique(tiles[:, VIEW] // GROUP)]
    return max(sum(map(len, groups)), int((rows[:, VIEW] < 0).sum()))


def everything(rows: np.ndarray) -> int:
    return len(nms(strong(rows), 0.45))


def uncut(rows: np.ndarray) -> int:
    rows = strong(rows)
    return len(nms(rows[rows[:, CUT] == 0], 0.5))


class Ours:
    """services/fusion/merge.py as fusion calls it."""

    def __init__(self) -> None:
        self._before, self._settings = np.zeros((0, 5), np.float32), FusionSettings()

    def __call__(self, rows: np.ndarray) -> int:
        merged = merge(rows, self._settings.same_iou, self._settings.same_ios)
        self._before = hysteresis(merged, self._before, self._settings.new_score)
        return len(self._before)


RULES: dict[str, Callable[[], Callable[[np.ndarray], int]]] = {
    "the whole frame alone": lambda: alone,
    "IoU 0.45 within each group of tiles, the larger of tiles and whole frame": lambda: in_groups,
    "all boxes, IoU 0.45": lambda: everything,
    "boxes that no inner edge cuts, IoU 0.5": lambda: uncut,
    "fusion's merge": Ours,
}


def mean(of: dict[int, int], frames: list[int]) -> float:
    return round(float(np.mean([of[frame] for frame in frames])), 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("clips", nargs="+", help="CLIP=TRUTH.csv")
    parser.add_argument("--model", required=True)
    parser.add_argument("--every", type=int, default=1, help="n-th frame; fusion's merge then has older neighbours")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    engine = OnnxEngine(EngineSettings(model=args.model))
    clips = {}
    for clip, truth in (pair.split("=") for pair in args.clips):
        true = evaluate.read_truth(Path(truth))
        rules = {name: make() for name, make in RULES.items()}
        counts: dict[str, dict[int, int]] = {name: {} for name in rules}
        for frame, rows in boxes(Path(clip), engine, args.every):
            for name, rule in rules.items():
                counts[name][frame] = rule(rows)
        seen = sorted(counts["fusion's merge"])
        rows = {n: {"people": mean(c, seen), "mae": evaluate.compare(c, true)["mae"]} for n, c in counts.items()}
        clips[Path(clip).name] = {"frames": len(seen), "people": mean(true, seen), "rules": rows}
        print(json.dumps(clips[Path(clip).name], indent=1), flush=True)
    named = " ".join(f"{Path(c).name}={Path(t).name}" for c, t in (pair.split("=") for pair in args.clips))
    command = f"python -m tests.bench.merge --model {Path(args.model).name} --every {args.every} {named}"
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps({**machine(), "command": command, "merge": clips}, indent=1) + "\n")


if __name__ == "__main__":
    main()
