"""Plans: what the builder does with its options, what the loader refuses, what a timing cache survives.

TensorRT is a fake here whose names and arguments tests/contract compares with the real one; the real builder runs on a
GPU host, see tests/gpu/build86.py.
"""

import json
import logging
import os
import resource
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from peoplecounter.common.engine import model
from peoplecounter.common.engine.model import DEMO_MODEL
from peoplecounter.common.engine.refit import refit
from peoplecounter.common.engine.sidecar import check_gpu, check_version, read_sidecar, sidecar_path
from peoplecounter.common.engine.tensorrt_log import logger
from peoplecounter.common.errors import NO_INPUT, SOFTWARE, AppError
from peoplecounter.common.files import sha256
from peoplecounter.common.settings import EngineSettings
from peoplecounter.deploy.engine import build as builder
from peoplecounter.deploy.engine.build import BuildOptions, BuildProgress, build_file, build_memory, watched
from peoplecounter.deploy.engine.timing import TimingCache, key
from tests.support import fake_tensorrt
from tests.support.cli import argv
from tests.support.squares import make_model

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    monkeypatch.setattr(builder, "_machine", lambda options: ("NVIDIA Fake 9", "9.0", 13000))


@pytest.fixture
def onnx(tmp_path):
    return make_model(tmp_path / "net.onnx")


def plan_of(data):
    assert data[:4] == b"ftrt"
    return json.loads(data[4:])


def built(onnx, tmp_path, **options):
    plan = tmp_path / "net.plan"
    sidecar, ratio = build_file(onnx, plan, BuildOptions(**options), BuildProgress(), fake_tensorrt)
    return plan, sidecar, ratio


def test_a_plan_and_what_is_known_of_it(onnx, tmp_path):
    plan, sidecar, ratio = built(onnx, tmp_path, level=5)
    assert read_sidecar(plan) == sidecar and ratio is None
    assert sidecar.plan_sha256 == sha256(plan.read_bytes()) and sidecar.plan_bytes == plan.stat().st_size
    assert (sidecar.onnx, sidecar.onnx_sha256) == ("net.onnx", sha256(onnx.read_bytes()))
    assert sidecar.inputs == [{"name": "images", "dtype": "FLOAT", "shape": [-1, 3, 80, 80]}]
    assert sidecar.outputs == [{"name": "output0", "dtype": "FLOAT", "shape": [-1, 25, 6]}]
    assert (sidecar.gpu, sidecar.compute_capability, sidecar.level) == ("NVIDIA Fake 9", "9.0", 5)
    assert plan_of(plan.read_bytes())["profiles"] == [[[1, 3, 80, 80], [16, 3, 80, 80], [32, 3, 80, 80]]]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net.onnx", "net.plan", "net.plan.json"]


@pytest.mark.parametrize(
    "options, flags, refit_kind, stripped",
    [
        ({}, {"DISABLE_TIMING_CACHE"}, "no", False),
        ({"version_compatible": True}, {"DISABLE_TIMING_CACHE", "VERSION_COMPATIBLE"}, "no", False),
        ({"strip": True}, {"DISABLE_TIMING_CACHE", "STRIP_PLAN", "REFIT_IDENTICAL"}, "identical", True),
        ({"refit": True}, {"DISABLE_TIMING_CACHE", "REFIT"}, "any", False),
        ({"strip": True, "refit": True}, {"DISABLE_TIMING_CACHE", "STRIP_PLAN", "REFIT"}, "any", True),
    ],
)
def test_options_become_flags(onnx, tmp_path, options, flags, refit_kind, stripped):
    plan, sidecar, _ = built(onnx, tmp_path, **options)
    found = plan_of(plan.read_bytes())
    assert {fake_tensorrt.BuilderFlag(f).name for f in found["flags"]} == flags
    assert (found["weights"] is None) == stripped == sidecar.stripped and sidecar.refit == refit_kind


def test_a_profile_for_each_fixed_batch(onnx, tmp_path):
    plan, sidecar, _ = built(onnx, tmp_path, batches=((1, 1, 1), (16, 16, 16)))
    assert [[s[0] for s in p] for p in plan_of(plan.read_bytes())["profiles"]] == [[1, 1, 1], [16, 16, 16]]
    assert sidecar.batches == [[1, 1, 1], [16, 16, 16]]
    _, sidecar, _ = built(make_model(onnx, batch=1), tmp_path)
    assert sidecar.batches == [[1, 1, 1]]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"batches": ((4, 2, 8),)}, "Invalid batch 4/2/8"),
        ({"batches": ((8, 8, 8),)}, "No batch takes a single image"),
        ({"level": 6}, "Invalid optimization level 6"),
        ({"version_compatible": True, "strip": True}, "cannot be refitted"),
        ({"runtime": "trt"}, "Unknown runtime 'trt': use tensorrt or rtx"),
        ({"runtime": "rtx"}, "--runtime rtx and --target, e.g. sm120, belong together"),
        ({"targets": ("sm120",)}, "belong together"),
        ({"runtime": "rtx", "targets": ("sm120",), "strip": True}, "cannot be version- or hardware-compatible"),
    ],
)
def test_options_that_make_no_plan(onnx, tmp_path, options, message):
    with pytest.raises(AppError, match=message):
        built(onnx, tmp_path, **options)


def test_onnx_files_that_make_no_plan(tmp_path):
    with pytest.raises(AppError, match="cannot be read: No such file") as refusal:
        built(tmp_path / "none.onnx", tmp_path)
    assert refusal.value.code == NO_INPUT
    (tmp_path / "bad.onnx").write_bytes(b"\xff" * 99)
    with pytest.raises(AppError, match=r"TensorRT does not accept .*bad\.onnx: Failed to parse"):
        built(tmp_path / "bad.onnx", tmp_path)
    assert not (tmp_path / "net.plan").exists()


def test_into_memory_piece_by_piece(onnx):
    pieces = []
    builder.build(onnx, pieces.append, BuildOptions(), BuildProgress(), fake_tensorrt)
    assert len(pieces) == fake_tensorrt.PIECES
    plan, sidecar, _ = build_memory(onnx, BuildOptions(), BuildProgress(), fake_tensorrt)
    assert plan == b"".join(pieces) and sidecar.plan_sha256 == sha256(plan)


def test_ctrl_c_cancels_at_the_next_step_and_leaves_what_was_there(onnx, tmp_path, monkeypatch):
    plan, old, _ = built(onnx, tmp_path)
    progress, shown = BuildProgress(), []
    data = onnx.read_bytes()
    monkeypatch.setattr(builder, "read_onnx", lambda path: progress.cancelled.wait(9) and data)  # a long build

    def show() -> None:
        if not shown:
            os.kill(os.getpid(), signal.SIGINT)
        shown.append(1)

    with pytest.raises(AppError, match="cancelled: nothing was written") as refusal:
        watched(lambda: build_file(onnx, plan, BuildOptions(), progress, fake_tensorrt), progress, show)
    assert refusal.value.code == SOFTWARE and read_sidecar(plan) == old
    assert sha256(plan.read_bytes()) == old.plan_sha256
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net.onnx", "net.plan", "net.plan.json"]


def test_a_full_disk_gives_a_clear_error_and_leaves_nothing(onnx, tmp_path):
    """A limit on file sizes, which the kernel enforces as it does a full disk."""
    code = f"""
import resource, signal
from pathlib import Path
from peoplecounter.deploy.engine import build
from tests.support import fake_tensorrt
build._machine = lambda options: ("Fake", "9.0", 13000)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (64, {resource.RLIM_INFINITY}))
try:
    plan = Path({str(tmp_path / "net.plan")!r})
    build.build_file(Path({str(onnx)!r}), plan, build.BuildOptions(), build.BuildProgress(), fake_tensorrt)
except build.AppError as refusal:
    print(refusal.code, refusal)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(str(SOFTWARE)) and "cannot be written" in done.stdout
    assert [p.name for p in tmp_path.iterdir()] == ["net.onnx"]


def test_a_second_build_knows_the_first_one(onnx, tmp_path):
    folder = tmp_path / "timing"
    _, first, none = built(onnx, tmp_path, timing_cache=folder)
    _, second, ratio = built(onnx, tmp_path, timing_cache=folder)
    assert (first.timing_cache, second.timing_cache) == ("cold", "warm")
    assert none is None and ratio > 0
    _, other, new = built(onnx, tmp_path, timing_cache=folder, level=0)
    assert other.timing_cache == "warm" and new is None  # another build, the same measurements
    name = key("NVIDIA Fake 9", "9.0", fake_tensorrt.__version__, 13000)
    assert name == "nvidia-fake-9_sm90_trt10.15.1_cuda13.0"
    assert {p.name for p in folder.iterdir()} == {f"{name}.cache", f"{name}.builds.json", f"{name}.lock"}


def test_builds_side_by_side_add_to_each_other(onnx, tmp_path):
    folder = tmp_path / "timing"
    cache = TimingCache(folder, "one")

    def add(number):
        cache.add(lambda there: json.dumps({**json.loads(there or b"{}"), str(number): 1}).encode())

    threads = [threading.Thread(target=add, args=[n]) for n in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(json.loads(cache.read())) == {str(n) for n in range(20)}


@pytest.mark.parametrize("damage", [b"", b"short", b"\0" * 4096])
def test_a_damaged_cache_is_begun_anew(onnx, tmp_path, caplog, damage):
    folder = tmp_path / "timing"
    built(onnx, tmp_path, timing_cache=folder)
    (cache,) = folder.glob("*.cache")
    cache.write_bytes(damage)
    with caplog.at_level(logging.WARNING):
        _, sidecar, _ = built(onnx, tmp_path, timing_cache=folder)
    assert sidecar.timing_cache == "cold" and "is damaged and is replaced" in caplog.text
    assert built(onnx, tmp_path, timing_cache=folder)[1].timing_cache == "warm"


def test_a_cache_folder_that_cannot_be_used_costs_no_plan(onnx, tmp_path, caplog):
    (tmp_path / "file").touch()
    with caplog.at_level(logging.WARNING):
        plan, sidecar, _ = built(onnx, tmp_path, timing_cache=tmp_path / "file" / "timing")
    assert plan.exists() and sidecar.timing_cache == "cold"
    assert "cannot be read: Not a directory" in caplog.text


def test_weights_come_back_from_the_onnx_file(onnx, tmp_path):
    plan, _, _ = built(onnx, tmp_path, strip=True, refit=True)
    engine = fake_tensorrt.ICudaEngine(plan_of(plan.read_bytes()))
    refit(fake_tensorrt, engine, onnx.read_bytes(), logger(fake_tensorrt), "net.plan")
    assert engine._plan["weights"] == plan_of(built(onnx, tmp_path)[0].read_bytes())["weights"]


def test_weights_that_do_not_fit_give_a_clear_error(onnx, tmp_path, monkeypatch):
    log = logger(fake_tensorrt)

    def engine(**options):
        return fake_tensorrt.ICudaEngine(plan_of(built(onnx, tmp_path, **options)[0].read_bytes()))

    with pytest.raises(AppError, match=r"do not fit net\.plan: The network is another one"):
        refit(fake_tensorrt, engine(refit=True), DEMO_MODEL.read_bytes(), log, "net.plan")
    with pytest.raises(AppError, match=r"do not fit net\.plan: Failed to parse"):
        refit(fake_tensorrt, engine(refit=True), b"\xff" * 9, log, "net.plan")
    with pytest.raises(AppError, match="accepts no other weights: build it with --refit"):
        refit(fake_tensorrt, engine(), onnx.read_bytes(), log, "net.plan")
    incomplete = engine(refit=True)
    incomplete._plan["names"].append("conv9.weight")
    with pytest.raises(AppError, match=r"1 are missing, for example conv9\.weight"):
        refit(fake_tensorrt, incomplete, onnx.read_bytes(), log, "net.plan")
    monkeypatch.delattr(fake_tensorrt, "OnnxParserRefitter")
    with pytest.raises(AppError, match="need the full TensorRT package"):
        refit(fake_tensorrt, engine(refit=True), onnx.read_bytes(), log, "net.plan")


def test_a_stripped_plan_finds_its_weights_beside_it(onnx, tmp_path):
    plan, sidecar, _ = built(onnx, tmp_path, strip=True)
    settings = EngineSettings(model=str(plan))
    assert model.read_model(settings).sidecar == sidecar
    assert model.read_weights(settings, sidecar) == onnx.read_bytes()
    make_model(onnx, gain=3)
    with pytest.raises(AppError, match=r"is not the one that .*net\.plan was built from"):
        model.read_weights(settings, sidecar)
    onnx.unlink()
    with pytest.raises(AppError, match=r"net\.onnx, which holds the weights of .*net\.plan, does not exist"):
        model.read_weights(settings, sidecar)


def rewrite(plan, **changes):
    path = sidecar_path(plan)
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda plan: plan.write_bytes(plan.read_bytes()[:-9]), "it was truncated or replaced"),
        (lambda plan: plan.write_bytes(b"ftrt" + plan.read_bytes()[:3:-1]), "is not the one its sidecar describes"),
        (lambda plan: sidecar_path(plan).write_text("{"), "The sidecar of .* is damaged"),
        (lambda plan: sidecar_path(plan).write_text('{"plan_sha256": 3}'), "The sidecar of .* is damaged"),
        (lambda plan: sidecar_path(plan).write_text("[" * 500_000), "The sidecar of .* is damaged"),
        (lambda plan: rewrite(plan, batches=[1]), r"damaged \(batches or tensors\)"),
        (lambda plan: rewrite(plan, inputs=[{}]), r"damaged \(batches or tensors\)"),
        (lambda plan: rewrite(plan, refit="sometimes"), "by another version of peoplecounter"),
        (lambda plan: plan.unlink(), "does not exist"),
    ],
)
def test_plans_that_are_not_what_they_were(onnx, tmp_path, damage, message):
    plan, _, _ = built(onnx, tmp_path)
    damage(plan)
    with pytest.raises(AppError, match=message):
        model.read_model(EngineSettings(model=str(plan)))


def test_a_json_file_beside_an_onnx_file_is_ignored(onnx):
    onnx.with_name("net.onnx.json").write_text('{"name": "net"}')
    assert model.read_model(EngineSettings(model=str(onnx))).sidecar is None


def test_a_damaged_list_of_builds_costs_no_plan(onnx, tmp_path):
    for damage in ("[]", "{", '{"a": null}'):
        built(onnx, tmp_path, timing_cache=tmp_path / "timing")
        (builds,) = (tmp_path / "timing").glob("*.builds.json")
        builds.write_text(damage)
    assert built(onnx, tmp_path, timing_cache=tmp_path / "timing")[2] is None


def test_hash_and_size_that_the_settings_ask_for(onnx):
    with pytest.raises(AppError, match=r"engine\.sha256 expects 00"):
        model.read_model(EngineSettings(model=str(onnx), sha256="0" * 64))
    with onnx.open("ab") as file:
        file.truncate(3 << 20)
    with pytest.raises(AppError, match=r"has 3 MB, more than the 2 MB of engine\.limit_mb"):
        model.read_model(EngineSettings(model=str(onnx), limit_mb=2))


@pytest.mark.parametrize(
    "changes, here, message",
    [
        ({}, ("10.15.1.29", "NVIDIA Fake 9", "9.0"), None),
        ({}, ("10.15.1.77", "NVIDIA Fake 9", "9.0"), None),
        ({}, ("11.4.0.106", "NVIDIA Fake 9", "9.0"), "built by TensorRT 10.15.1.29, 11.4.0.106 is installed"),
        ({"version_compatible": True}, ("11.4.0.106", "NVIDIA Fake 9", "9.0"), None),
        (
            {},
            ("10.15.1.29", "NVIDIA Fake 8", "8.9"),
            r"built on NVIDIA Fake 9 \(9.0\), this GPU is NVIDIA Fake 8 \(8.9\)",
        ),
        ({"hardware_compatible": True}, ("10.15.1.29", "NVIDIA Fake 8", "8.9"), None),
    ],
)
def test_where_a_plan_runs(onnx, tmp_path, changes, here, message):
    _, sidecar, _ = built(onnx, tmp_path)
    version, *gpu = here
    sidecar = replace(sidecar, **changes)
    if message is None:
        check_gpu(sidecar, *gpu, "net.plan")
        return check_version(sidecar, version, "net.plan")
    with pytest.raises(AppError, match=message):
        check_gpu(sidecar, *gpu, "net.plan")
        check_version(sidecar, version, "net.plan")


def test_show_prints_what_a_plan_is(onnx, tmp_path):
    plan, _, _ = built(onnx, tmp_path, strip=True)
    show = argv("engine", "show", plan)
    done = subprocess.run(show, cwd=ROOT, capture_output=True, text=True, check=True)
    for line in ("intact", "net.onnx", "TensorRT 10.15.1.29 on NVIDIA Fake 9 (9.0)", "1/16/32", "[-1, 3, 80, 80]"):
        assert line in done.stdout
    make_model(onnx, gain=3)
    assert "has changed since" in subprocess.run(show, cwd=ROOT, capture_output=True, text=True).stdout
    plan.write_bytes(plan.read_bytes()[:-1])
    done = subprocess.run(show, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 78 and done.stderr.startswith("peoplecounter: The plan") and not done.stdout


def test_without_tensorrt_or_a_gpu_build_gives_a_clear_error(onnx, tmp_path):
    command = argv("engine", "build", onnx, tmp_path / "x.plan")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 78 and len(done.stderr.splitlines()) == 1
    assert "the full TensorRT package, which is not installed" in done.stderr
    assert not (tmp_path / "x.plan").exists()
