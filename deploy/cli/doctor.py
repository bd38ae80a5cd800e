"""What this machine can run, and what is missing for the other backend."""

import contextlib
import importlib.metadata
import json
import os
import platform
import shutil
import sys
from pathlib import Path

from peoplecounter.common import backend, cores
from peoplecounter.common.engine.model import DEMO_MODEL
from peoplecounter.common.errors import CONFIG, AppError
from peoplecounter.common.settings import default_run_dir, load_settings

NEEDED_MB = 700  # shared memory of one 4K source at the default settings


def checks() -> list[tuple[str, str, bool, str]]:
    """(backend, what, fine or not, detail) of every check."""
    run_dir = Path(default_run_dir())
    base = next(p for p in (run_dir, *run_dir.parents) if p.exists())
    free_mb = shutil.disk_usage(base).free >> 20
    rows = [
        ("cpu", "Python", sys.version_info[:2] in ((3, 11), (3, 12), (3, 13)), platform.python_version()),
        ("cpu", "cores", True, _cores()),
        ("cpu", "process handles (pidfd)", hasattr(os, "pidfd_open"), "Linux 5.3 or later"),
        ("cpu", "run_dir on a tmpfs", _filesystem(base) in ("tmpfs", "ramfs"), f"{run_dir} on {_filesystem(base)}"),
        (
            "cpu",
            "room for shared memory",
            free_mb >= NEEDED_MB,
            f"{free_mb} MB free, one 4K source takes {NEEDED_MB} MB",
        ),
        ("cpu", "settings", *_settings()),
        ("cpu", "decoders", *_decoders()),
        ("cpu", "ONNX Runtime", True, importlib.metadata.version("onnxruntime")),
        ("cpu", "OpenVINO", True, _openvino()),
        ("cpu", "demo model", DEMO_MODEL.is_file(), str(DEMO_MODEL)),
    ]
    with contextlib.suppress(AppError):  # the row of the settings, or of the GPU, says what is wrong
        backend.select_gpu(load_settings())
    rows += [("cuda", what, fine, detail) for what, fine, detail in backend.cuda_checks()]
    if all(fine for _, fine, _ in backend.cuda_checks()):
        rows += [
            ("cuda", "plans can be built", True, _builder()),
            ("cuda", "NVDEC decodes", *_nvdec()),
            ("cuda", "MPS", True, _mps()),
        ]
    return rows


def report(as_json: bool) -> int:
    """Prints the checks; returns 0 when the CPU backend can run, else CONFIG."""
    rows = checks()
    able = {backend: all(fine for b, _, fine, _ in rows if b == backend) for backend in ("cpu", "cuda")}
    if as_json:
        listed = [{"backend": b, "check": what, "ok": fine, "detail": detail} for b, what, fine, detail in rows]
        print(json.dumps({"able": able, "checks": listed}))
    else:
        for backend, what, fine, detail in rows:
            print(f"{backend:<5} {'ok     ' if fine else 'not ok '} {what:<24} {detail}")
        names = ", ".join(b for b, fine in able.items() if fine)
        print(f"\nThis machine can run: {names}." if names else "\nNo backend can run here: fix what is 'not ok'.")
    return 0 if able["cpu"] else CONFIG


def _settings() -> tuple[bool, str]:
    try:
        load_settings()
    except AppError as error:
        return False, str(error)
    return True, "valid"


def _cores() -> str:
    """How many there are, and how a group of these settings shares them."""
    try:
        settings = load_settings(backend="cpu")
    except AppError:
        return "see the row of the settings"
    processes, threads = cores.process_count(settings, "infer_tiles"), cores.threads(settings, "infer_tiles")
    whole = cores.threads(settings, "infer_global")
    return f"{cores.count(settings)}; infer_tiles: {processes} x {threads} threads, infer_global: {whole} threads"


def _openvino() -> str:
    """Whether it is there, and what it gains on this processor."""
    if not backend.importable("openvino"):
        return "not installed: the extra 'openvino' is faster on processors with BF16, and runs INT8"
    from peoplecounter.common.engine import openvino

    kinds = ", ".join(kind for kind in openvino.capabilities() if kind in ("BF16", "FP16", "INT8"))
    return f"{openvino.VERSION}, this processor has {kinds or 'FP32 only'}"


def _decoders() -> tuple[bool, str]:
    import av

    wanted = [name for name in ("h264", "hevc", "av1", "vp9", "mjpeg") if name in av.codecs_available]
    return {"h264", "hevc"} <= set(wanted), f"PyAV {av.__version__}: {', '.join(wanted)}"


def _nvdec() -> tuple[bool, str]:
    """What the GPU decodes, e.g. "h264 8/10 bit to 4096x4096"; False when it does not decode H.264."""
    from peoplecounter.services.decoder import nvdec

    able, engines = [], 0
    for codec in nvdec.CODECS:
        limits = {bits: nvdec.limits(codec, bits) for bits in (8, 10)}
        engines = max(engines, limits[8].nvdecs)
        bits = [str(b) for b, found in limits.items() if found.supported]
        if bits:
            able.append(f"{codec} {'/'.join(bits)} bit to {limits[8].width_max}x{limits[8].height_max}")
    return any(text.startswith("h264") for text in able), f"{engines} engines: " + (", ".join(able) or "nothing")


def _builder() -> str:
    return "yes" if backend.importable("tensorrt") else "no: only the full TensorRT package can build"


def _mps() -> str:
    """Processes use one GPU at the same time only under MPS."""
    if pipe := backend.mps_pipe():
        return f"a daemon runs in {pipe}"
    return (
        "'run' starts a private one" if backend.mps_binary() else f"no {backend.MPS_CONTROL}: processes are time-sliced"
    )


def _filesystem(path: Path) -> str:
    """The type of a path's file system, from /proc/mounts."""
    mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    holding = [(len(point), kind) for point, kind in mounts if path.is_relative_to(point)]
    return max(holding, default=(0, "unknown"))[1]
