"""The real builder of TensorRT-RTX, which needs no GPU: what it makes of our models, and what it refuses."""

import json
import os
import resource
import signal
import subprocess
import sys
import time

import pytest

from peoplecounter.common.backend import is_plan, plan_runtime
from peoplecounter.common.engine.model import DEMO_MODEL
from peoplecounter.common.engine.sidecar import Sidecar, check_gpu, check_version, decode_sidecar, read_sidecar
from peoplecounter.common.errors import SOFTWARE, AppError
from peoplecounter.common.files import sha256
from peoplecounter.deploy.engine.build import BuildOptions, BuildProgress, build_file, build_memory, watched
from tests.support.cli import ROOT, argv
from tests.support.squares import make_model

pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX is there on x86-64 only")


def built(onnx, plan, *targets, **options):
    chosen = BuildOptions(runtime="rtx", targets=targets or ("sm120",), **options)
    return build_file(onnx, plan, chosen, BuildProgress())[0]


@pytest.mark.parametrize("targets", ["sm80", "sm86", "sm89", "sm120", "sm121", "sm86 sm89 sm120"])
def test_the_demos_model_for_every_target(tmp_path, targets):
    plan, targets = tmp_path / "plaza.plan", targets.split()
    sidecar = built(DEMO_MODEL, plan, *targets)
    assert read_sidecar(plan) == sidecar and sidecar.plan_sha256 == sha256(plan.read_bytes())
    assert plan_runtime(plan.read_bytes()) == "rtx" and is_plan(plan)
    assert (sidecar.runtime, sidecar.targets, sidecar.timing_cache) == ("rtx", targets, "off")
    assert sidecar.builder.startswith("TensorRT-RTX 1.") and sidecar.batches == [[1, 16, 32]]
    assert sidecar.computed.keys() == {"FLOAT"} and sidecar.computed["FLOAT"] > 20
    assert 1 < sidecar.plan_bytes / DEMO_MODEL.stat().st_size < 4


def test_through_the_command_line(tmp_path):
    plan = tmp_path / "squares.plan"
    onnx = make_model(tmp_path / "squares.onnx")
    command = argv("engine", "build", onnx, plan, "--runtime", "rtx", "--target", "sm89", "--target", "sm120")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "for any GPU of sm89, sm120" in done.stdout, done.stderr
    shown = subprocess.run(argv("engine", "show", plan), cwd=ROOT, capture_output=True, text=True).stdout
    assert "intact" in shown and "8.9, 12.0" in shown and "TensorRT-RTX" in shown
    run = subprocess.run(argv("run", onnx, "--model", plan), cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 78 and "squares.plan is a TensorRT plan, which cannot run here" in run.stderr


def test_into_memory_and_for_a_fixed_batch(tmp_path):
    options = BuildOptions(runtime="rtx", targets=("sm120",))
    plan, sidecar, _ = build_memory(make_model(tmp_path / "m.onnx", batch=8), options, BuildProgress())
    assert sidecar.plan_sha256 == sha256(plan) and sidecar.batches == [[8, 8, 8]]


@pytest.mark.parametrize(
    "targets, message",
    [
        (("sm90",), "does not build for sm90: use sm75, sm80, sm86, sm89, sm120, sm121"),
        (("sm120", "rtx5060"), "does not build for rtx5060"),
        (("none",), "does not build for none"),
    ],
)
def test_targets_that_it_does_not_know(tmp_path, targets, message):
    with pytest.raises(AppError, match=message):
        built(DEMO_MODEL, tmp_path / "x.plan", *targets)
    assert not list(tmp_path.iterdir())


DAMAGED = {"empty": b"", "page": b"<html>", "noise": b"\xff" * 99, "half": DEMO_MODEL.read_bytes()[:99_999]}


@pytest.mark.parametrize("data", DAMAGED.values(), ids=DAMAGED)
def test_damaged_onnx_files_are_refused_in_words(tmp_path, data):
    path = tmp_path / "bad.onnx"
    path.write_bytes(data)
    with pytest.raises(AppError, match=r"bad\.onnx has 0 inputs|does not accept .*bad\.onnx: .*Failed to parse"):
        built(path, tmp_path / "x.plan")
    assert [p.name for p in tmp_path.iterdir()] == ["bad.onnx"]


def test_a_batch_that_does_not_fit_the_workspace_is_told(tmp_path, yolo):
    with pytest.raises(AppError, match=r"TensorRT-RTX cannot build .*yolo26n\.onnx: .*OutOfMemory") as refusal:
        built(yolo, tmp_path / "x.plan", workspace_mb=64)
    assert refusal.value.code == SOFTWARE and not list(tmp_path.iterdir())


def test_a_full_disk_is_noticed_although_the_builder_does_not(tmp_path):
    """A limit on file sizes, which the kernel enforces as it does a full disk."""
    code = f"""
import resource, signal
from pathlib import Path
from peoplecounter.deploy.engine import build
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, {resource.RLIM_INFINITY}))
try:
    options = build.BuildOptions(runtime="rtx", targets=("sm120",))
    build.build_file(Path({str(DEMO_MODEL)!r}), Path({str(tmp_path / "x.plan")!r}), options, build.BuildProgress())
except build.AppError as refusal:
    print(refusal.code, refusal)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(str(SOFTWARE)) and "cannot be written" in done.stdout
    assert not list(tmp_path.iterdir())


def test_progress_is_shown_and_ctrl_c_cancels_in_the_middle(tmp_path, yolo):
    progress, seen = BuildProgress(), set()

    def show() -> None:
        seen.update(progress.phases)
        if seen and not progress.cancelled.is_set():
            os.kill(os.getpid(), signal.SIGINT)

    options = BuildOptions(runtime="rtx", targets=("sm120",))
    end_s = time.monotonic() + 60
    while not seen and time.monotonic() < end_s:  # a build may be over before it is looked at
        try:
            watched(lambda: build_file(yolo, tmp_path / "x.plan", options, progress), progress, show)
        except AppError as error:
            refusal = error
    assert "cancelled: nothing was written" in str(refusal) and refusal.code == SOFTWARE
    assert "Building engine" in seen and not list(tmp_path.iterdir())


def sidecar(**changes) -> Sidecar:
    values = {
        "plan_sha256": "", "plan_bytes": 1, "onnx": "m.onnx", "onnx_sha256": "", "tensorrt": "1.7.1.116", "gpu": "any",
        "compute_capability": "12.0", "version_compatible": False, "hardware_compatible": False, "stripped": False,
        "refit": "no", "runtime": "rtx", "targets": ["sm89", "sm120"],
    }  # fmt: skip
    return decode_sidecar(json.dumps({**values, **changes}).encode(), "m.plan")


def test_where_such_a_plan_runs():
    for capability in ("8.9", "12.0"):
        check_gpu(sidecar(), "NVIDIA GeForce RTX 5060 Ti", capability, "m.plan")
    with pytest.raises(AppError, match=r"built for sm89, sm120, this GPU is NVIDIA H100 \(sm90\)"):
        check_gpu(sidecar(), "NVIDIA H100", "9.0", "m.plan")
    check_version(sidecar(), "1.7.1.200", "m.plan")
    with pytest.raises(AppError, match=r"built by TensorRT-RTX 1\.7\.1\.116, 1\.8\.0 is installed: build it again\."):
        check_version(sidecar(), "1.8.0", "m.plan")
    with pytest.raises(AppError, match="another version of peoplecounter"):
        sidecar(runtime="vulkan")
