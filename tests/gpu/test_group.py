"""The five processes on one GPU: every frame counted as on the CPU, every death survived, no memory kept."""

import json
import os
import signal
import time
from pathlib import Path

import pytest

from tests.pipeline.test_metrics import ON_A_GPU, scrape
from tests.support.cli import gpu_used_mb
from tests.support.group import SERVICES
from tests.support.rtsp import free_port

pytestmark = pytest.mark.gpu
RESTARTS = int(os.environ.get("RESTARTS", 20))


def test_all_frames_are_counted_as_on_the_cpu(gpu_group, street):
    """The CPU's counts of the same frames and weights: `run CLIP --model ONNX --out cpu_counts.jsonl`."""
    group = gpu_group({"cam": {"url": str(street)}})
    group.start()
    group.wait_for(group.ended, "the end", 120)
    group.check_books()
    counts = {c["seq"]: c["count"] for c in group.of("counts")}
    assert len(counts) == 96 and all(c["complete"] for c in group.of("counts"))
    reference = Path(os.environ.get("CPU_COUNTS", ".gpu/cpu_counts.jsonl"))
    if not reference.is_file():
        pytest.skip(f"no counts of the CPU at {reference}: set CPU_COUNTS")
    cpu = {c["seq"]: c["count"] for c in map(json.loads, reference.read_text().splitlines())}
    gpu_sum, cpu_sum = sum(counts.values()), sum(cpu[seq] for seq in counts)
    each = sum(abs(counts[seq] - cpu[seq]) for seq in counts) / len(counts)
    print(f"GPU {gpu_sum / 96:.2f}, CPU {cpu_sum / 96:.2f} people a frame; mean difference of a frame {each:.3f}")
    assert abs(gpu_sum - cpu_sum) <= 0.02 * cpu_sum
    assert each <= 0.02 * cpu_sum / len(counts)


def test_each_service_is_killed_and_frozen_and_counting_resumes(gpu_group, street):
    group = gpu_group({"cam": {"url": str(street), "loop": True, "realtime": True}})
    group.start()
    group.wait_counts(60, 90)
    for name in SERVICES:
        group.signal(name, signal.SIGKILL)
        time.sleep(0.3)
        group.start(name)
        killed_s = group.wait_counts(10, 60)
        group.signal(name, signal.SIGSTOP)
        time.sleep(5)
        group.signal(name, signal.SIGCONT)
        frozen_s = group.wait_counts(10, 60)
        print(f"{name:16} ten complete counts {killed_s:5.2f} s after its start, {frozen_s:5.2f} s after SIGCONT")
    group.wait_counts(30, 60)
    alive = [name for name, process in group.processes.items() if process.poll() is None]
    assert sorted(alive) == sorted(SERVICES), group.tail()
    group.check_books(unheard=200)


def test_nobody_asks_for_torch(gpu_group, street, tmp_path):
    """With a torch that says when it is imported, and an empty cache: the kernel is compiled, too."""
    told = tmp_path / "imported"
    (tmp_path / "torch.py").write_text(f"open({str(told)!r}, 'a').close()\nraise ModuleNotFoundError('torch')\n")
    group = gpu_group({"cam": {"url": str(street), "loop": True, "realtime": True}})
    paths = [str(tmp_path), os.environ.get("PYTHONPATH", "")]
    group.environment |= {"PYTHONPATH": os.pathsep.join(paths), "CACHE_DIRECTORY": str(tmp_path / "cache")}
    group.environment |= {"TRITON_CACHE_DIR": str(tmp_path / "triton")}
    group.start()
    print(f"sixty counts {group.wait_counts(60, 90):.1f} s after the start, nothing cached")
    assert len(list((tmp_path / "cache" / "cubins").glob("nv12_to_images.*.cubin"))) == 1
    assert not told.exists()


def test_metrics_tell_of_the_gpu(gpu_group, street):
    port = free_port()
    camera = {"url": str(street), "loop": True, "realtime": True}
    group = gpu_group({"cam": camera}, telemetry__prometheus=f"127.0.0.1:{port}")
    group.start()
    group.wait_counts(60, 90)
    seen = scrape(port)
    (used,), (there,) = (seen[name].values() for name in sorted(ON_A_GPU, reverse=True))
    assert 1e9 < used < there
    batches = seen["peoplecounter_engine_batches_total"]
    graphs = {labels: n for labels, n in batches.items() if ("mode", "graph") in labels}
    assert len(graphs) == 2 and min(graphs.values()) > 20
    print(f"{used / 1e6:.0f} of {there / 1e6:.0f} MB, batches launched as graphs: {graphs}")


def test_gpu_memory_returns_to_its_level(gpu_group, street):
    """The four services with GPU memory are killed and started again 20 times."""
    group = gpu_group({"cam": {"url": str(street), "loop": True, "realtime": True}})
    group.start()
    group.wait_counts(30, 90)
    names = [name for name in SERVICES if name != "fusion.0"]  # it has no GPU memory
    levels = []
    for _ in range(RESTARTS):
        for name in names:
            group.signal(name, signal.SIGKILL)
        group.start(*names)
        group.wait_counts(3, 60)
        levels.append(gpu_used_mb())
        print(f"{levels[-1]} MB of GPU memory after restart {len(levels)} of all four services", flush=True)
    first, last = levels[0], levels[-3:]
    assert min(last) <= first + 64, levels
