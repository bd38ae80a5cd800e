"""The commands as a user types them: output for people and for machines, error messages, exit codes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from peoplecounter.common.topology import SERVICES
from peoplecounter.deploy.group.client import is_running, wait_until
from peoplecounter.deploy.report.evaluate import compare, read_truth
from tests.support.cli import ROOT, command, peoplecounter
from tests.support.squares import FRAMES, VARIABLES, WIDTH, expected, make_model


def test_run_json_out_and_eval(run_dir, clip, model, tmp_path):
    out, truth = tmp_path / "counts.jsonl", tmp_path / "truth.csv"
    done = peoplecounter(run_dir, "run", clip, "--model", model, "--json", "--out", out, **VARIABLES)
    assert done.returncode == 0, done.stderr
    *counts, summary = map(json.loads, done.stdout.splitlines())
    assert [c["count"] for c in counts] == [expected(seq) for seq in range(FRAMES)]
    assert [json.loads(line) for line in out.read_text().splitlines()] == counts
    assert {"frames", "counted", "dropped", "mae", "mean_truth", "stages_ms"} <= summary.keys()
    assert (summary["frames"], summary["counted"], summary["dropped"]) == (FRAMES, FRAMES, {})
    assert summary["problem"] is None
    assert not run_dir.exists()  # nothing is left

    rows = ["frame,person", *(f"{seq},{i}" for seq in range(FRAMES) for i in range(expected(seq) - (seq == 3)))]
    truth.write_text("\n".join(rows))
    result = peoplecounter(run_dir, "eval", out, truth, "--json")
    assert json.loads(result.stdout) == {
        "frames": FRAMES, "mae": round(1 / FRAMES, 4), "rmse": round(FRAMES**-0.5, 4), "bias": round(1 / FRAMES, 4)
    }  # fmt: skip
    assert "MAE 0.017" in peoplecounter(run_dir, "eval", out, truth).stdout
    assert len(peoplecounter(run_dir, "eval", out, truth, "--frames").stdout.splitlines()) == FRAMES + 1


def test_boxes_are_compared_with_true_boxes(run_dir, clip, model, tmp_path):
    out, truth = tmp_path / "counts.jsonl", tmp_path / "truth.csv"
    done = peoplecounter(run_dir, "run", clip, "--model", model, "--json", "--out", out, "--boxes", **VARIABLES)
    assert done.returncode == 0, done.stderr
    rows = ["frame,bodyL,bodyT,bodyR,bodyB"]
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(line["count"], line["width"]) for line in lines] == [(expected(seq), WIDTH) for seq in range(FRAMES)]
    for line in lines[:30]:
        shown = line["boxes"][1:] if line["seq"] == 3 else line["boxes"]  # one box has no truth
        rows += [f"{line['seq']},{x1},{y1},{x2},{y2}" for x1, y1, x2, y2, _ in shown]
    truth.write_text("\n".join(rows))
    result = json.loads(peoplecounter(run_dir, "eval", out, truth, "--boxes", "--json").stdout)["boxes"]
    assert result["frames"] == 30 and result["without_truth"] == round(1 / 30, 3)
    assert result["matched"] == round(sum(expected(seq) for seq in range(30)) / 30 - 1 / 30, 3)
    told = peoplecounter(run_dir, "eval", out, truth, "--boxes").stdout.splitlines()
    assert told[1].startswith("a frame: ") and "0.03 without truth" in told[1]

    without = tmp_path / "without.jsonl"
    without.write_text('{"source":"a","seq":0,"count":1}\n')
    refused = peoplecounter(run_dir, "eval", without, truth, "--boxes")
    assert refused.returncode == 65 and "--boxes" in refused.stderr


def test_a_model_that_gives_nan_counts_nothing_and_run_says_so(run_dir, clip, tmp_path):
    model = make_model(tmp_path / "nan.onnx", gain=float("nan"))
    done = peoplecounter(run_dir, "run", f"door={clip}", "--model", model, "--json")
    assert done.returncode == 70
    *counts, summary = map(json.loads, done.stdout.splitlines())
    assert not any(c["complete"] for c in counts)
    assert summary["counted"] == len(counts) < FRAMES
    assert "the model's output is not a number (NaN or infinite)" in done.stderr and "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert "giving up" in done.stderr or last.startswith("peoplecounter: door is not counted completely: ")


TWO_GROUPS = """
import sys
from peoplecounter.deploy.group import circus
from peoplecounter.deploy.group.foreground import configure, overrides, run_group

ran = circus.GroupSupervisor.run
def run_and_stop_once_more(group):  # as a status that comes late makes it
    ran(group)
    group.stop()
circus.GroupSupervisor.run = run_and_stop_once_more
for _ in range(2):
    changes = overrides([sys.argv[1]], sys.argv[2], [], "cpu", False, False, None)
    summary, code = run_group(*configure(None, changes), True, None)
    print("SUMMARY", code, summary["counted"])
"""


def test_a_group_is_not_stopped_by_one_before_it_in_the_same_process(run_dir, clip, model):
    _, environment = command(run_dir, "run", **VARIABLES)
    code = [sys.executable, "-c", TWO_GROUPS, clip, model]
    done = subprocess.run(code, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=120)
    summaries = [line for line in done.stdout.splitlines() if line.startswith("SUMMARY")]
    assert summaries == [f"SUMMARY 0 {FRAMES}"] * 2, done.stderr


def test_run_in_plain_lines_names_endpoint_and_summary(run_dir, clip, model):
    done = peoplecounter(run_dir, "run", f"door={clip}", "--model", model, "--workers", "infer_tiles=2")
    assert done.returncode == 0, done.stderr
    assert f"counts on ipc://{run_dir}/counts.sock" in done.stdout
    assert "door: frame" in done.stdout
    assert f"counted  {FRAMES}" in done.stdout


@pytest.mark.parametrize(
    "arguments, code, message",
    [
        (["run"], 78, "No source"),
        (["run", "/nowhere.mp4"], 66, "does not exist"),
        (["run", __file__], 65, ""),
        (["run", "CLIP", "--model", "/nowhere.onnx"], 66, "/nowhere.onnx does not exist"),
        (["run", "CLIP", "--model", __file__], 78, "cannot be loaded"),
        (["run", "CLIP", "--backend", "gpu"], 78, "'backend' is 'gpu'"),
        (
            ["run", "CLIP", "--backend", "cuda"],
            78,
            "The cuda backend cannot run here (NVIDIA GPU: no driver or no device)",
        ),
        (["run", "CLIP", "--workers", "infer_tile=2"], 78, "SERVICE is one of preprocess, infer_global, infer_tiles"),
        (["run", "CLIP", "--out", "/nowhere/counts.jsonl"], 66, "cannot be written"),
        (["run", "CLIP", "--out", "/dev/full"], 70, "cannot be written"),
        (["run", "CLIP", "--config", "/nowhere.toml"], 66, "/nowhere.toml cannot be read"),
        (["eval", "/nowhere", "/nowhere"], 66, "cannot be read"),
        (["eval", __file__, __file__], 65, "is not a count"),
        (["models", "export"], 78, "--accept-agpl"),
    ],
)
def test_what_is_wrong_gives_one_error_and_the_right_code(run_dir, clip, arguments, code, message):
    done = peoplecounter(run_dir, *(clip if a == "CLIP" else a for a in arguments))
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_an_unreachable_run_dir_and_one_that_others_can_read(run_dir, clip):
    run_dir.chmod(0o755)
    assert "must be private" in peoplecounter(run_dir, "run", clip).stderr
    assert "shorter run_dir" in peoplecounter(run_dir / ("x" * 100), "run", clip).stderr
    assert "cannot be used" in peoplecounter("/proc/nothing", "run", clip).stderr


def children(pid):
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_a_second_run_in_the_same_directory_is_refused(running, run_dir, clip):
    second = peoplecounter(run_dir, "run", clip)
    assert second.returncode == 78
    assert f"owned by process {running.pid}" in second.stderr
    assert running.poll() is None


def test_ctrl_c_ends_with_a_summary_and_leaves_nothing(running, run_dir):
    services = children(running.pid)
    assert len(services) == sum(not row.optional for row in SERVICES)
    running.send_signal(signal.SIGINT)
    out, _ = running.communicate(timeout=20)
    assert running.returncode == 0
    assert json.loads(out.splitlines()[-1])["counted"] > 0
    assert not run_dir.exists()
    assert not [pid for pid in services if Path(f"/proc/{pid}").exists()]


def test_a_killed_run_takes_its_services_with_it_and_the_next_run_sweeps(running, run_dir, clip, model):
    services = children(running.pid)
    running.kill()
    running.wait()
    deadline = time.monotonic() + 15
    while any(Path(f"/proc/{pid}").exists() for pid in services):
        assert time.monotonic() < deadline, "services survive their supervisor"
        time.sleep(0.05)
    done = peoplecounter(run_dir, "run", clip, "--model", model, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["counted"] == FRAMES


SUPERVISOR = """
import os, subprocess, sys, time
environment = {**os.environ, "SUPERVISOR_PID_OF_PEOPLECOUNTER": str(os.getpid())}
print(subprocess.Popen([sys.executable, "-m", "peoplecounter.services.decoder"], env=environment).pid, flush=True)
time.sleep(60)
"""


def test_a_decoder_without_a_source_ends_with_its_supervisor(run_dir):
    _, environment = command(run_dir, "run")
    supervisor = subprocess.Popen(
        [sys.executable, "-c", SUPERVISOR], env=environment, stdout=subprocess.PIPE, text=True
    )
    pid = int(supervisor.stdout.readline())
    wait_until(lambda: (run_dir / "fusions.lock").exists(), 20, "the decoder does not wait")
    time.sleep(0.5)
    assert is_running(pid)
    supervisor.kill()
    supervisor.wait()
    wait_until(lambda: not is_running(pid), 10, "the decoder goes on alone")


def test_run_restarts_a_service_that_dies_and_says_so(running):
    name = b"peoplecounter.services.infer_tiles"
    victim = next(pid for pid in children(running.pid) if name in Path(f"/proc/{pid}/cmdline").read_bytes())
    os.kill(victim, signal.SIGKILL)
    assert any("infer_tiles.0 ended with SIGKILL: restarted" in running.stderr.readline() for _ in range(30))
    for _ in range(600):
        line = json.loads(running.stdout.readline())
        if line["totals"]["incomplete"] or line["totals"]["dropped"]:
            break
    assert any(json.loads(running.stdout.readline())["complete"] for _ in range(300))


def test_run_restarts_what_another_program_ended(running):
    """SIGTERM to a worker is no end of the group: only a decoder may be done."""
    for name in (b"peoplecounter.services.preprocess", b"peoplecounter.services.infer_tiles"):
        pid = next(p for p in children(running.pid) if name in Path(f"/proc/{p}/cmdline").read_bytes())
        os.kill(pid, signal.SIGTERM)
        assert any("ended with exit code 0: restarted" in running.stderr.readline() for _ in range(40))
    seq = json.loads(running.stdout.readline())["seq"]
    assert any(
        c["seq"] > seq + 30 and c["complete"] for c in (json.loads(running.stdout.readline()) for _ in range(600))
    )


def test_watch_shows_a_running_group(running, run_dir):
    argv, environment = command(run_dir, "watch", "--json")
    watch = subprocess.Popen(argv, env=environment, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    lines = [json.loads(watch.stdout.readline()) for _ in range(3)]
    watch.send_signal(signal.SIGINT)
    watch.communicate(timeout=10)
    assert watch.returncode == 0
    assert lines[1]["seq"] > lines[0]["seq"]


def test_the_readmes_subscriber_works_as_written(running, run_dir):
    readme = (ROOT / "README.md").read_text()
    code = readme.split("```python\n", 1)[1].split("```", 1)[0]
    assert len(code.strip().splitlines()) <= 15
    environment = os.environ | {"ENDPOINT": f"ipc://{run_dir}/counts.sock"}
    process = subprocess.Popen([sys.executable, "-u", "-c", code], env=environment, stdout=subprocess.PIPE, text=True)
    line = process.stdout.readline()
    process.kill()
    process.communicate()
    assert "people" in line


def test_doctor_says_what_this_machine_can_run(run_dir):
    done = peoplecounter(run_dir, "doctor", "--json")
    assert done.returncode == 0, done.stdout
    report = json.loads(done.stdout)
    assert report["able"]["cpu"] is True
    assert {"check", "ok", "detail", "backend"} == report["checks"][0].keys()
    assert "This machine can run: cpu" in peoplecounter(run_dir, "doctor").stdout
    broken = peoplecounter(run_dir, "doctor", PEOPLECOUNTER_DECODER__SLOT="3")
    assert broken.returncode == 78
    assert "PEOPLECOUNTER_DECODER__SLOTS" in broken.stdout


def test_truth_counts_rows_and_knows_empty_frames(tmp_path):
    path = tmp_path / "truth.csv"
    path.write_text("frame,person\n0,1\n0,2\n2,1\n")
    assert read_truth(path) == {0: 2, 1: 0, 2: 1}
    assert compare({0: 2, 1: 1, 2: 3}, {0: 2, 1: 0, 2: 1}) == {"frames": 3, "mae": 1.0, "rmse": 1.291, "bias": 1.0}
