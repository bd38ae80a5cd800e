"""A running group's metrics as Prometheus reads them, and as a collector gets them; budgets as subscribers do."""

import json
import re
import signal
import socket
import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families

from peoplecounter.common.settings import Settings
from peoplecounter.services.fusion.metrics import OBSERVED
from tests.support.cli import ROOT
from tests.support.otlp import Collector
from tests.support.rtsp import free_port
from tests.support.squares import FRAMES

LIVE = {"realtime": True, "loop": True}
ON_A_GPU = {"hw_gpu_memory_usage_bytes", "hw_gpu_memory_limit_bytes"}
SHAPES = {  # of a source, so that the dashboard has something to show
    "lines": {"door": {"points": [[0.5, 0], [0.5, 1]], "inside": [0.9, 0.5]}},
    "zones": {"desk": {"points": [[0, 0], [1, 0], [1, 1]]}},
}
AREAS = '{"room": {"lines": ["cam.door"]}}'
TRACED = {"telemetry__exporter": "file", "telemetry__ratio": "1", "telemetry__file": "/dev/null"}


@pytest.fixture
def port():
    return free_port()


def scrape(port: int) -> dict[str, dict[tuple, float]]:
    """Metric -> its labels, as sorted pairs -> value."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        families = text_string_to_metric_families(answer.read().decode())
        samples = [sample for family in families for sample in family.samples]
    found: dict[str, dict[tuple, float]] = {}
    for sample in samples:
        found.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
    return found


def value(port: int, metric: str, labels: tuple) -> float | None:
    """None while there is no such thing."""
    return scrape(port).get(metric, {}).get(labels)


def of(service: str) -> tuple:
    name, _, instance = service.partition(".")
    return (("service_instance_id", instance), ("service_name", f"peoplecounter.{name}"))


def queries() -> list[str]:
    """What the dashboard's panels ask for."""
    board = json.loads((ROOT / "deploy/monitoring/grafana.json").read_text())
    return [target["expr"] for panel in board["panels"] for target in panel["targets"]]


def dashboard() -> set[str]:
    """Every metric that the dashboard reads."""
    return {name for query in queries() for name in re.findall(r"\b(?:peoplecounter|process|hw|otel)_\w+", query)}


def test_a_file_that_was_counted_is_in_the_metrics_to_the_last_frame(group, clip, port):
    g = group({"cam": {"url": str(clip)}}, telemetry__prometheus=f"127.0.0.1:{port}", **TRACED)
    g.start()
    g.wait_for(g.ended, "the end", 60)
    cam = (("source", "cam"),)
    g.wait_for(lambda: scrape(port)["peoplecounter_source_online"][cam] == 0, "the source to be gone")
    seen = scrape(port)
    assert seen["peoplecounter_frames_total"][cam] == seen["peoplecounter_frames_counted_total"][cam] == FRAMES
    assert seen["peoplecounter_frame_duration_seconds_count"][cam] == FRAMES
    assert seen["peoplecounter_stage_duration_seconds_count"][("stage", "infer_tiles"),] == FRAMES
    assert seen["peoplecounter_hop_duration_seconds_count"][("hop", "fusion_wait"),] == FRAMES
    assert seen["peoplecounter_people"][cam] == g.of("counts")[-1]["count"]
    mean_ms = sum(c["end_to_end_ms"] for c in g.of("counts")) / FRAMES
    assert seen["peoplecounter_frame_duration_seconds_sum"][cam] * 1000 / FRAMES == pytest.approx(mean_ms, rel=1e-3)
    plain = (("mode", "plain"), *of("infer_global.0"))
    g.wait_for(lambda: value(port, "peoplecounter_engine_batches_total", plain) == FRAMES + 1, "what they report")


def test_what_the_dashboard_reads_is_there(group, clip, port):
    """But for a GPU's memory, which tests/gpu looks at."""
    source = {"url": str(clip), **LIVE, "fps": 400, **SHAPES}
    g = group({"cam": source}, telemetry__prometheus=f"127.0.0.1:{port}", areas=AREAS, **TRACED)
    g.start()
    g.wait_for(lambda: g.of("budgets") and g.totals()["dropped"], "drops and budgets", 60)
    names = {name.removesuffix("_total") for name in scrape(port)}
    assert {name.removesuffix("_total") for name in dashboard()} - names == ON_A_GPU
    observed = {name.replace(".", "_") for name, *_ in OBSERVED}
    assert not [name for name in observed if not any(read.startswith(name) for read in dashboard())]


def test_processes_that_die_or_are_started_again_are_seen(group, clip, port):
    g = group({"cam": {"url": str(clip), **LIVE}}, telemetry__prometheus=f"127.0.0.1:{port}")
    g.start()
    g.wait_counts(5)

    def up() -> float | None:
        return value(port, "peoplecounter_process_up", of("preprocess.0"))

    g.wait_for(lambda: up() == 1, "its first report")
    g.signal("preprocess.0", signal.SIGKILL)
    g.wait_for(lambda: up() == 0, "its death to be seen")
    g.start("preprocess.0")
    g.wait_for(lambda: value(port, "peoplecounter_process_restarts_total", of("preprocess.0")) == 1, "its new start")
    g.wait_for(lambda: value(port, "process_memory_usage_bytes", of("decoder.cam")), "the decoder's report")
    seen = scrape(port)
    slots = [n for labels, n in seen["peoplecounter_ring_slots"].items() if of("preprocess.0")[1] in labels]
    assert sum(slots) == 3
    assert seen["process_memory_usage_bytes"][of("decoder.cam")] > 10e6
    assert seen["peoplecounter_ring_credits"][of("infer_tiles.0")] <= 2


def test_a_port_that_is_taken_gives_one_error(group, clip, port):
    with socket.create_server(("127.0.0.1", port)):
        g = group({"cam": {"url": str(clip), **LIVE}}, telemetry__prometheus=f"127.0.0.1:{port}")
        g.start("fusion.0")
        assert g.wait_exit("fusion.0") == 78
        message = f"Metrics cannot be served on 127.0.0.1:{port}: Address already in use. Set telemetry.prometheus."
        assert message in g.tail()
        assert "Traceback" not in g.tail()


@pytest.mark.parametrize("address", ["0.0.0.0:9000", "camera.example:9000", "9000", "127.0.0.1:*", "127.0.0.1:99999"])
def test_metrics_are_scraped_on_loopback_alone(address):
    with pytest.raises(ValueError, match=r"127\.0\.0\.1:PORT"):
        Settings(telemetry={"prometheus": address})


def test_a_collector_gets_them_at_the_latest_in_the_end(group, clip):
    with Collector() as collector:
        g = group({"cam": {"url": str(clip)}}, telemetry__metrics_endpoint=collector.url("metrics"))
        g.environment["OTEL_RESOURCE_ATTRIBUTES"] = "service.instance.id=pod-7"
        g.start()
        g.wait_for(g.ended, "the end", 60)
        g.close()
        points = collector.points()
    assert collector.senders() == {"pod-7"}
    assert points["peoplecounter.frames.counted"] == FRAMES
    assert points["peoplecounter.frame.duration"] == FRAMES


def test_a_mute_collector_costs_no_frame_and_is_seen(group, clip, port):
    with socket.create_server(("127.0.0.1", 0)) as mute:  # accepts, never answers
        address = f"http://127.0.0.1:{mute.getsockname()[1]}/v1"
        g = group(
            {"cam": {"url": str(clip), "loop": True}}, telemetry__prometheus=f"127.0.0.1:{port}",
            telemetry__exporter="otlp", telemetry__ratio="1", telemetry__endpoint=f"{address}/traces",
            telemetry__metrics_endpoint=f"{address}/metrics",
        )  # fmt: skip
        g.start()
        g.wait_counts(2 * FRAMES, 60)
        lost = (("error_type", "lost"), *of("preprocess.0"))
        g.wait_for(lambda: value(port, "otel_sdk_exporter_span_exported_total", lost), "lost spans to be seen", 60)
        assert g.totals()["dropped"] == {}
        g.check_books()
        g.close()  # within the time that a supervisor gives


@pytest.mark.parametrize(
    "url", ["collector:4318", "http://collector:4318", "ftp://collector/v1/metrics", "http://collector/v1/traces"]
)
def test_what_is_not_a_collector_is_rejected(url):
    with pytest.raises(ValueError, match="a collector of metrics: http"):
        Settings(telemetry={"metrics_endpoint": url})


def test_budgets_are_told_of_live_sources(group, clip):
    g = group({"cam": {"url": str(clip), **LIVE}}, budgets__decode_ms="0.001")
    g.start()
    g.wait_for(lambda: g.of("budgets"), "budgets", 60)
    states = g.of("budgets")[-1]
    assert states["decode"]["over_ms"] == pytest.approx(states["decode"]["p95_ms"] - 0.001)
    assert states.keys() == {"end_to_end", "fusion_wait", "infer_tiles", "infer_global", "preprocess", "decode"}
    assert states["end_to_end"]["budget_ms"] == 33
