"""Every supervisor starts what topology.py says: systemd, compose and Kubernetes, on a GPU too."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from peoplecounter.common import backend
from peoplecounter.common.process.liveness import write_heartbeat
from peoplecounter.common.settings import Settings
from peoplecounter.common.topology import SERVICES
from peoplecounter.deploy.systemd import install

DEPLOY = Path(install.__file__).parents[1]
NAMES = {service.name for service in SERVICES}
ALWAYS = {service.name for service in SERVICES if not service.optional}


@pytest.mark.parametrize("file", ["compose.yaml", "compose.gpu.yaml"])
def test_compose_has_the_services(file):
    services = yaml.safe_load((DEPLOY / "compose" / file).read_text())["services"]
    assert services.keys() - {"mps"} == NAMES
    assert ("mps" in services) == (file == "compose.gpu.yaml")
    if file == "compose.yaml":
        assert {name: one["command"] for name, one in services.items()} == {row.name: [row.module] for row in SERVICES}
        online = {name for name, one in services.items() if one["network_mode"] != "none"}
        assert online == {s.name for s in SERVICES if install.needs_network(s, Settings(data_dir="/data"))}
        assert {name for name, one in services.items() if "profiles" in one} == NAMES - ALWAYS


@pytest.mark.parametrize(
    "settings, online",
    [
        ({}, {"decoder", "dashboard"}),
        ({"fusion": {"publish": "tcp://127.0.0.1:5570"}}, {"decoder", "dashboard", "fusion"}),
        ({"telemetry": {"prometheus": "127.0.0.1:9464"}}, {"decoder", "dashboard", "fusion"}),
        ({"telemetry": {"metrics_endpoint": "http://collector:4318/v1/metrics"}}, {"decoder", "dashboard", "fusion"}),
        ({"telemetry": {"exporter": "otlp"}}, NAMES),
        ({"history": {"database": "postgresql+psycopg://host/x"}}, {"decoder", "dashboard", "history"}),
        (
            {"areas": {"a": {"lines": ["x.y"]}}, "alerts": {"b": {"area": "a", "above": 1, "webhook": "http://host/"}}},
            {"decoder", "dashboard", "fusion"},
        ),
        ({"engine": {"model": "tcp://127.0.0.1:5580"}}, {"decoder", "dashboard", "infer_global", "infer_tiles"}),
    ],
)
def test_units_give_a_network_to_those_who_need_it(settings, online):
    settings = Settings(**{"data_dir": "/data", **settings})
    assert {s.name for s in SERVICES if install.needs_network(s, settings)} == online


@pytest.mark.parametrize("file", ["base/group.yaml", "gpu/pod.yaml"])
def test_kubernetes_has_the_services(file):
    stateful = [d for d in yaml.safe_load_all((DEPLOY / "kubernetes" / file).read_text()) if d["kind"] == "StatefulSet"]
    containers = stateful[0]["spec"]["template"]["spec"]["containers"]
    if file == "base/group.yaml":
        runs = {c["args"][0] for c in containers if c["args"][0].startswith("peoplecounter.services.")}
        assert runs == {f"peoplecounter.services.{name}" for name in ALWAYS}
    ours = {c["name"].replace("-", "_") for c in containers if not c["name"].startswith("decoder-")}
    assert ours - {"share", "mps"} == ALWAYS


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_systemd_has_the_services(kind, monkeypatch):
    monkeypatch.setattr(backend, "resolve", lambda settings: kind)
    monkeypatch.setattr(backend, "mps_binary", lambda: "/usr/bin/nvidia-cuda-mps-control")
    history = {"history": {"database": ""}}
    settings = Settings(sources={"door": {"url": "rtsp://camera/1"}}, workers={"infer_tiles": 2}, **history)
    units = install.units(settings, Path("/etc/peoplecounter.toml"), "pc", "pc")
    assert ("pc-mps.service" in units) == (kind == "cuda")
    assert all(("char-nvidia-uvm" in text) == (kind == "cuda") for name, text in units.items() if "target" not in name)
    assert {f"peoplecounter.services.{name}" for name in ALWAYS} == {
        word for text in units.values() for word in text.split() if word.startswith("peoplecounter.services.")
    }
    started = {name.removesuffix(".service") for name in install.instances(settings, "pc")} - {"pc-mps"}
    workers = {"pc-infer-tiles@0", "pc-infer-tiles@1", "pc-infer-global@0", "pc-preprocess@0"}
    assert started == workers | {"pc-decoder@door", "pc-fusion@0"}


def test_optional_services_have_units_and_a_data_dir_elsewhere_may_be_written():
    listen = {"listen": "127.0.0.1:8650"}
    settings = Settings(sources={"door": {"url": "rtsp://camera/1"}}, data_dir="/srv/counts", dashboard=listen)
    units = install.units(settings, Path("/etc/peoplecounter.toml"), "pc", "pc")
    assert "pc-history.service" in units and "pc-history.service" in install.instances(settings, "pc")
    assert "PEOPLECOUNTER_DATA_DIR=/srv/counts " in units["pc-fusion@.service"]
    writers = {name for name, text in units.items() if "ReadWritePaths=/srv/counts\n" in text}
    assert writers == {"pc-fusion@.service", "pc-history.service", "pc-dashboard.service"}
    assert " -m peoplecounter.deploy.dashboard\n" in units["pc-dashboard.service"]
    assert "pc-dashboard.service" in install.instances(settings, "pc")
    usual = install.units(settings.model_copy(update={"data_dir": "/var/lib/pc"}), Path("/etc/x.toml"), "pc", "pc")
    assert not [name for name, text in usual.items() if "ReadWritePaths" in text]


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_only_a_decoder_may_open_usb_cameras_and_only_if_there_are_any(kind, monkeypatch):
    monkeypatch.setattr(backend, "resolve", lambda settings: kind)
    for url, allowed in (("/dev/video0", {"pc-decoder@.service"}), ("rtsp://camera/1", set())):
        units = install.units(Settings(sources={"door": {"url": url}}), Path("/etc/peoplecounter.toml"), "pc", "pc")
        assert {name for name, text in units.items() if "char-video4linux" in text} == allowed
        private = {name for name, text in units.items() if "PrivateDevices=yes" in text}
        assert not private & allowed and bool(private) == (kind == "cpu")


def test_a_heartbeat_holds_nothing_of_the_one_before_it(tmp_path):
    """The successor of a container's process finds the file, with a pid of perhaps more digits."""
    heartbeat = tmp_path / "heartbeat"
    heartbeat.write_text("4194303\n4194303\n")
    write_heartbeat(heartbeat)
    assert heartbeat.read_text() == f"{os.getpid()}\n"


@pytest.mark.parametrize("age_s, code", [(0, 0), (60, 1)])
def test_a_health_check_is_the_age_of_a_heartbeat_and_ends_a_frozen_process(age_s, code, tmp_path):
    heartbeat = tmp_path / "heartbeat"
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as frozen:
        heartbeat.write_text(json.dumps(frozen.pid))
        stamp = heartbeat.stat().st_mtime - age_s
        os.utime(heartbeat, (stamp, stamp))
        assert subprocess.run(["sh", DEPLOY / "compose" / "healthy.sh", heartbeat, "5", "end"]).returncode == code
        ended = frozen.wait(5) if code else frozen.poll()
        frozen.kill()
    assert ended == (-9 if code else None)
