"""The error of the whole pipeline against truth, on what it was made for and on real footage."""

import contextlib
import json
import os
import pty
import re
import signal
import subprocess
import threading

import pytest

from tests.support.cli import ROOT, argv, command
from tests.support.dashboard import Dashboard, pixels


def count(run_dir, out, *arguments):
    """Summary of a run, by the command line."""
    words = argv("run", *arguments, "--run-dir", run_dir, "--out", out, "--json")
    run = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


def count_and_compare(run_dir, out, truth, *arguments):
    """(summary of the run, error of its counts), both by the command line."""
    summary = count(run_dir, out, *arguments)
    error = subprocess.run(argv("eval", out, truth, "--json"), cwd=ROOT, capture_output=True, check=True)
    return summary, json.loads(error.stdout)


def test_the_demo_on_its_held_out_plaza(run_dir, tmp_path):
    """`make demo` on a terminal, whole: every frame counted, at most 3.7 % of the mean count wrong, the summary shown
    and written; then the plaza goes on for whoever looks at it, until Ctrl-C."""
    screen, terminal = pty.openpty()
    variables = {"PEOPLECOUNTER_DASHBOARD__LISTEN": "auto", "TERM": "xterm", "XDG_RUNTIME_DIR": str(run_dir)}
    words, environment = command(run_dir, "demo", "--folder", tmp_path, **variables)
    demo = subprocess.Popen(words, env=environment, cwd=ROOT, stdin=terminal, stdout=terminal, stderr=terminal)
    os.close(terminal)
    limit = threading.Timer(300, demo.kill)
    limit.start()
    shown = ""
    while "goes on in a loop" not in shown or "pictures on" not in shown.partition("goes on in a loop")[2]:
        try:
            shown += os.read(screen, 65_536).decode(errors="replace")
        except OSError:
            pytest.fail(f"the demo has ended:\n{shown}")
    threading.Thread(target=_drain, args=(screen,), daemon=True).start()
    dashboard = Dashboard(int(re.findall(r"pictures on http://127\.0\.0\.1:(\d+)/", shown)[-1]))
    dashboard.wait(60)
    status, _, jpeg = dashboard.ask("/api/v1/sources/plaza/picture?width=640")
    demo.send_signal(signal.SIGINT)
    code = demo.wait(30)
    limit.cancel()
    assert (status, code) == (200, 0) and pixels(jpeg).shape == (360, 640, 3)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert "counted  240" in shown
    assert (summary["frames"], summary["counted"], summary["dropped"]) == (240, 240, {})
    assert summary["mae"] <= 0.037 * summary["mean_truth"]
    assert summary["stages_ms"].keys() >= {"decode", "preprocess", "infer_global", "infer_tiles", "fusion"}


def _drain(screen: int) -> None:
    with contextlib.suppress(OSError):
        while os.read(screen, 65_536):
            pass


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
