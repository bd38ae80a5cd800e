"""Debian's Prometheus scrapes a running group, and answers what the dashboard asks."""

import json
import re
import subprocess
import time
import urllib.parse
import urllib.request

import pytest

from tests.pipeline.test_metrics import AREAS, LIVE, ON_A_GPU, SHAPES, TRACED, queries
from tests.support.cli import missing
from tests.support.rtsp import free_port

pytestmark = pytest.mark.skipif(bool(lacking := missing("prometheus")), reason=f"this machine lacks {lacking}")

CONFIG = """
global: {{scrape_interval: 1s}}
scrape_configs: [{{job_name: peoplecounter, static_configs: [{{targets: ["127.0.0.1:{port}"]}}]}}]
"""


@pytest.fixture
def prometheus(tmp_path):
    """Makes a server that scrapes a port; returns its own."""
    servers = []

    def make(port: int) -> int:
        (tmp_path / "prometheus.yml").write_text(CONFIG.format(port=port))
        own = free_port()
        argv = ["prometheus", f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/data"]
        with (tmp_path / "log").open("w") as log:
            argv.append(f"--web.listen-address=127.0.0.1:{own}")
            servers.append(subprocess.Popen(argv, stdout=log, stderr=log))
        return own

    yield make
    for server in servers:
        server.kill()
        server.wait()


def ask(port: int, query: str) -> list[dict]:
    """The answer of its API; none while it is not up."""
    url = f"http://127.0.0.1:{port}/api/v1/query?" + urllib.parse.urlencode({"query": query})
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return json.loads(answer.read())["data"]["result"]
    except OSError:
        return []


def test_prometheus_scrapes_a_running_group(group, clip, prometheus):
    port = free_port()
    source = {"url": str(clip), **LIVE, "fps": 400, **SHAPES}
    g = group({"cam": source}, telemetry__prometheus=f"127.0.0.1:{port}", areas=AREAS, **TRACED)
    g.start()
    g.wait_for(lambda: g.of("dropped"), "drops", 60)
    server = prometheus(port)
    rate = 'sum(rate(peoplecounter_frames_counted_total{source="cam"}[5s]))'
    g.wait_for(lambda: ask(server, rate), "two scrapes", 60)
    began, before = time.monotonic(), g.totals()["counted"]
    g.wait_counts(100, 60)
    time.sleep(5)
    measured = (g.totals()["counted"] - before) / (time.monotonic() - began)
    assert float(ask(server, rate)[0]["value"][1]) == pytest.approx(measured, rel=0.5)
    asked = [query.replace("$source", ".*") for query in queries()]
    silent = [query for query in asked if not ask(server, query) and not any(name in query for name in ON_A_GPU)]
    assert not silent
    assert not [q for q in asked if re.search(r"\$(?!__)", q)]
