"""The error of the whole pipeline against truth, on what it was made for and on real footage."""

import json
import subprocess

from tests.support.cli import ROOT, argv


def count(run_dir, out, *arguments):
    """Summary of a run, by the command line."""
    command = argv("run", *arguments, "--run-dir", run_dir, "--out", out, "--json")
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


def count_and_compare(run_dir, out, truth, *arguments):
    """(summary of the run, error of its counts), both by the command line."""
    summary = count(run_dir, out, *arguments)
    error = subprocess.run(argv("eval", out, truth, "--json"), cwd=ROOT, capture_output=True, check=True)
    return summary, json.loads(error.stdout)


def test_the_demo_on_its_held_out_plaza(tmp_path):
    """`make demo`, whole: every frame counted, at most 3.7 % of the mean count wrong, the summary written."""
    demo = argv("demo", "--json", "--folder", tmp_path)
    done = subprocess.run(demo, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert json.loads(done.stdout.splitlines()[-1]) == summary
    assert (summary["frames"], summary["counted"], summary["dropped"]) == (240, 240, {})
    assert summary["mae"] <= 0.037 * summary["mean_truth"]
    assert summary["stages_ms"].keys() >= {"decode", "preprocess", "infer_global", "infer_tiles", "fusion"}


def test_yolo26_on_a_4k_crowd(run_dir, tmp_path, footage, yolo):
    """24 frames of the mosaic, 81 people each: what views are for."""
    clip = tmp_path / "first.mp4"
    first_frames(footage / "towncentre_4k_mosaic_h264.mp4", clip, 24)
    summary, error = count_and_compare(
        run_dir, tmp_path / "c.jsonl", footage / "towncentre_4k_mosaic_gt.csv", clip, "--model", yolo
    )
    assert summary["counted"] == error["frames"]
    assert error["frames"] >= 24
    assert error["mae"] <= 2.6


def first_frames(source, target, frames):
    """Copies the first packets of a clip, without decoding them."""
    import av

    with av.open(str(source)) as whole, av.open(str(target), "w") as part:
        stream = part.add_stream_from_template(whole.streams.video[0])
        for number, packet in enumerate(whole.demux(video=0)):
            if number == frames + 3 or packet.dts is None:  # a few more: the last ones may refer to what is cut off
                return
            packet.stream = stream
            part.mux(packet)
