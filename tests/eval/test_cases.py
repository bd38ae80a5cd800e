"""Small inputs that went wrong elsewhere, and every other file of the test material, through `peoplecounter run`.

What is right is in the table of tests/README.md; the counts of people were made with a real YOLO26n.
"""

import json
import subprocess

import numpy as np
import pytest

from peoplecounter.common.errors import BAD_DATA, CONFIG, NO_INPUT, SOFTWARE
from tests.support.cli import ROOT, argv

ANY = (0, 1000)


@pytest.fixture
def cases(footage):
    return footage.parent / "cases"


def run(run_dir, tmp_path, source, *options):
    """(exit code, summary or None, counts, what was printed as errors) of a run to its end."""
    out = tmp_path / "counts.jsonl"
    command = argv("run", source, *options, "--run-dir", run_dir, "--out", out, "--json")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert "Traceback" not in done.stderr, done.stderr
    lines = done.stdout.splitlines()
    counts = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    summary = json.loads(lines[-1]) if lines and "counted" in lines[-1] else None
    return done.returncode, summary, counts, done.stderr


@pytest.mark.parametrize(
    "name, counted, damaged, people",
    [
        ("rot90.mp4", 8, 0, (18.5, 21)),
        ("exif6.jpg", 1, 0, (18, 21)),
        ("sar2x1.mp4", 8, 0, (18.5, 21.5)),
        ("halfd1.mp4", 8, 0, (12, 16)),
        ("inter8.mp4", 8, 0, (19, 21.5)),
        ("gop4lost.ts", 12, 4, (10, 13)),
        ("hevclost.ts", 8, 8, (10, 13)),
        ("frag_cut.mp4", 1, 1, (18, 21)),  # the file ends within its second picture
        ("gop4badend.mp4", 14, 2, (10, 13.5)),
        ("dual_small_first.mkv", 8, 0, (18.5, 21)),
        ("huge_108mp.png", 1, 0, (0, 0)),
        ("r60.h264", 60, 0, ANY),
    ],
)
def test_the_count_of_a_case_is_right(run_dir, tmp_path, cases, yolo, name, counted, damaged, people):
    # the demo's model is enough for a flat picture, whose tiles would take a real one minutes
    options = [] if name == "huge_108mp.png" else ["--model", yolo]
    code, summary, counts, _ = run(run_dir, tmp_path, cases / name, *options)
    assert code == 0
    assert (summary["counted"], summary["incomplete"]) == (counted, 0)
    assert summary["dropped"] == ({"decode_error": damaged} if damaged else {})
    assert people[0] <= np.mean([c["count"] for c in counts]) <= people[1]


@pytest.mark.parametrize(
    "model, options, code, people",
    [
        ("slow.onnx", {}, 0, ANY),  # four seconds an image
        ("yolov5_1class.onnx", {}, 0, (1, 1000)),
        ("yolov8_person_is_1.onnx", {}, 0, (1, 1000)),
        ("yolov8_person_is_1.onnx", {"PEOPLECOUNTER_ENGINE__PERSON_CLASS": "0"}, CONFIG, None),
        ("nan_all_rows.onnx", {}, SOFTWARE, None),
        ("ext_data.onnx", {}, 0, ANY),
    ],
)
def test_a_model_of_the_cases_counts_or_says_why_not(
    run_dir, tmp_path, cases, monkeypatch, model, options, code, people
):
    for name, value in options.items():
        monkeypatch.setenv(name, value)
    found, summary, counts, errors = run(run_dir, tmp_path, cases / "four.mp4", "--model", cases / model)
    assert found == code, errors
    if people:
        assert summary["counted"] == 4
        assert people[0] <= np.mean([c["count"] for c in counts]) <= people[1]
    else:
        assert not counts and errors


def test_every_file_of_the_test_material_is_counted_or_refused_in_words(run_dir, tmp_path, footage):
    """Whatever is passed as a source: no traceback, no hang, no 0 that calls itself complete."""
    files = sorted(path for path in footage.parent.rglob("*") if path.is_file() and path.stat().st_size < 10 << 20)
    long = {"one_by_one_768x432.mp4", "pets09_s2l1_480x360.avi", "towncentre_4k_mosaic_hevc.mp4", "huge_108mp.png"}
    long |= {"towncentre_4k_mosaic_h264.mp4", "towncentre_1080p.mp4"}  # other tests count them
    for path in files:
        if path.name in long:
            continue
        code, summary, counts, errors = run(run_dir, tmp_path, path)
        if code == 0:
            assert summary["counted"] > 0 and summary["problem"] is None, path
            assert set(summary["dropped"]) <= {"decode_error"}, path
        else:
            reasons = [line for line in errors.splitlines() if path.name in line and "INFO" not in line]
            assert code in (BAD_DATA, NO_INPUT) and not counts and reasons, (path, code, errors)
        (tmp_path / "counts.jsonl").unlink(missing_ok=True)
