"""On a machine with several GPUs: a group uses the chosen one, or all of them, and the dashboard sees them all."""

import pytest

from peoplecounter.common import backend
from peoplecounter.common.errors import AppError
from peoplecounter.common.process.gpus import Gpus
from peoplecounter.common.settings import Settings
from tests.support.cli import gpus_used_mb
from tests.support.dashboard import Dashboard, acknowledge, parts
from tests.support.rtsp import free_port

try:
    SEVERAL = len(backend.gpus(Settings(backend="cuda", gpus="all"))) > 1
except AppError:  # CUDA_VISIBLE_DEVICES names what is not there
    SEVERAL = False
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not SEVERAL, reason="this machine has no second GPU")]
SERVICES = ("infer_global", "infer_tiles", "preprocess")


def test_a_group_uses_the_gpu_that_was_chosen(gpu_group, street):
    before = gpus_used_mb()
    group = gpu_group({"cam": {"url": str(street), "loop": True, "realtime": True}}, gpu="1")
    group.start()
    group.wait_counts(30, 90)
    more = [now - then for now, then in zip(gpus_used_mb(), before)]
    print(f"MB of GPU memory: {more}")
    assert more[1] > 1000 > 50 > more[0]


def test_both_gpus_count_and_the_dashboard_shows_both(gpu_group, street):
    before, port = gpus_used_mb(), free_port()
    camera = {"url": str(street), "loop": True, "realtime": True}
    group = gpu_group({"a": camera, "b": camera}, gpus="0,1", dashboard__listen=f"127.0.0.1:{port}")
    workers = [f"{service}.{number}" for service in SERVICES for number in (0, 1)]
    group.start("fusion.0", *workers, "decoder.a", "decoder.b", "dashboard.0")
    for source in ("a", "b"):
        group.wait_for(lambda source=source: len(group.of("counts", source)) > 60, f"counts of {source}", 120)
    assert sorted(Gpus(group.run_dir).placement.sources.values()) == [0, 1]
    assert all(now - then > 1000 for now, then in zip(gpus_used_mb(), before[:2]))
    dashboard, seen = Dashboard(port), dict.fromkeys(("a", "b"), 0)
    dashboard.wait()
    with dashboard.live(*({"source": source, "width": 640, "fps": 20} for source in seen)) as looking:
        while min(seen.values()) < 20:
            about, jpeg = parts(looking.recv(timeout=60))
            assert len(about["boxes"]) == about["count"] > 50 and len(jpeg) > 10_000
            seen[about["source"]] += 1
            acknowledge(looking, about)
    for source in seen:
        group.check_books(source, unheard=200)
