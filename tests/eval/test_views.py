"""People of every size are found: real footage at six scales, a crowd, and the plaza from 40 px to the frame's
height. Thresholds were chosen on these clips together; tests/bench/README.md has the tables."""

import csv
import json
from collections import defaultdict

import numpy as np
import pytest

from peoplecounter.deploy.demo.plaza import render_clip
from peoplecounter.deploy.report import evaluate
from tests.eval.test_accuracy import count_and_compare
from tests.support.footage import resized

STREET = "towncentre_1080p"


@pytest.mark.parametrize("scale, mae, matched", [(0.5, 1.75, 17.3), (0.75, 1.6, 18.2), (1, 1.6, 18.2), (1.5, 1.6, 18.2),
                                                 (2, 1.6, 18.2), (3, 1.6, 18.2)])  # fmt: skip
def test_the_street_is_counted_alike_at_every_scale(run_dir, tmp_path, footage, yolo, scale, mae, matched):
    """16 frames (8 of the largest), 20.2 people of 50 to 750 px; dummies and people nobody labelled limit the bias."""
    clip, truth = resized(
        footage / f"{STREET}.mp4", footage / f"{STREET}_gt.csv", tmp_path, scale, every=12 if scale == 3 else 6
    )
    out = tmp_path / "c.jsonl"
    summary, error = count_and_compare(run_dir, out, truth, clip, "--model", yolo, "--boxes")
    boxes = evaluate.compare_boxes(evaluate.read_boxes(out), evaluate.read_true_boxes(truth))
    print(f"scale {scale:g}: {json.dumps({**error, **boxes})}")
    assert (summary["counted"], summary["incomplete"], summary["dropped"]) == (8 if scale == 3 else 16, 0, {})
    assert error["mae"] <= mae
    assert abs(error["bias"]) <= (1.5 if scale > 0.5 else mae)
    assert boxes["matched"] >= matched
    assert boxes["duplicate"] + boxes["part"] <= 0.5  # a child in a pushchair, and who stands behind whom


PLAZAS = [  # width, height, camera, people, seed
    (480, 270, "far", 22, 31), (960, 540, "far", 22, 32), (960, 540, "near", 10, 35),
    (1920, 1080, "far", 26, 33), (1920, 1080, "middle", 14, 34), (1920, 1080, "near", 10, 36),
    (3840, 2160, "middle", 14, 37), (3840, 2160, "near", 10, 38),
]  # fmt: skip
HEIGHTS = (16, 40, 64, 128, 256, 512, 1080, 2160)  # px


def test_recall_on_the_plaza_does_not_depend_on_size(run_dir, tmp_path):
    """The demo's model on eight plazas it was not trained on: recall of people of whom nothing is hidden, by height."""
    found, people = defaultdict(int), defaultdict(int)
    for width, height, camera, crowd, seed in PLAZAS:
        clip, truth, out = (tmp_path / f"{seed}.{kind}" for kind in ("mp4", "csv", "jsonl"))
        render_clip(clip, truth, width, height, 12, 1, seed, crowd, camera)  # a frame a second
        count_and_compare(run_dir, out, truth, clip, "--boxes")
        boxes, true = evaluate.read_boxes(out), evaluate.read_true_boxes(truth)
        shown = defaultdict(list)  # frame -> how much of each of its people can be seen
        with truth.open(newline="") as rows:
            for row in csv.DictReader(rows):
                shown[int(row["frame"])].append(float(row["visible"]))
        for frame, heights in ((frame, people_of[:, 3] - people_of[:, 1]) for frame, people_of in true.items()):
            matched = evaluate.match(boxes[frame], true[frame])
            for person in np.flatnonzero(np.array(shown[frame]) >= 0.95):
                size = int(np.searchsorted(HEIGHTS, heights[person], "right")) - 1
                people[size] += 1
                found[size] += person in matched
    recall = {f"{HEIGHTS[i]}–{HEIGHTS[i + 1]} px": (found[i] / people[i], people[i]) for i in sorted(people)}
    print(json.dumps({size: f"{100 * share:.1f} % of {number}" for size, (share, number) in recall.items()}))
    from_40 = [
        share for (share, number), i in zip(recall.values(), sorted(people)) if HEIGHTS[i] >= 40 and number >= 30
    ]
    assert len(from_40) >= 5
    assert min(from_40) >= max(from_40) - 0.03


def test_8k_counts_what_4k_counts_and_nobody_is_taken_for_frozen(run_dir, tmp_path, footage, yolo):
    """Two frames of the crowd enlarged to 7680x4320: 178 views each, seconds of work for a process."""
    clip, truth = footage / "towncentre_4k_mosaic_h264.mp4", footage / "towncentre_4k_mosaic_gt.csv"
    people = []
    for scale in (1, 2):
        enlarged, true = resized(clip, truth, tmp_path, scale, every=4, frames=8)
        out = tmp_path / f"{scale}.jsonl"
        summary, _ = count_and_compare(run_dir, out, true, enlarged, "--model", yolo)
        assert (summary["counted"], summary["incomplete"], summary["restarts"]) == (2, 0, {})
        people.append(sum(evaluate.read_counts(out).values()))
    print(f"4K {people[0] / 2}, 8K {people[1] / 2} people a frame")
    assert abs(people[1] - people[0]) <= 0.05 * people[0]
