"""A real Docker engine builds the image and runs deploy/compose/compose.yaml: killed, frozen, scaled, controlled."""

import json
import os
import signal
from pathlib import Path

import pytest

from peoplecounter.common import topology
from tests.ops.conftest import ENOUGH, FPS, IMAGE, check_started_again
from tests.support.cli import argv, missing_as_root
from tests.support.dashboard import JPEG
from tests.support.docker import NEEDED, Docker
from tests.support.published import Published

pytestmark = pytest.mark.skipif(bool(lacking := missing_as_root(*NEEDED)), reason=f"this machine lacks {lacking}")

PROJECT = "pc"
CONFIG = f"""
[sources.plaza]
url = "/media/plaza.mp4"
realtime = true
loop = true
fps = {FPS}
[engine]
threads = 1
[dashboard]
listen = "127.0.0.1:8650"
"""
SERVICES = [service.name for service in topology.SERVICES if not service.optional]


class Compose:
    """The project, up in an engine of its own."""

    def __init__(self, docker: Docker, tree, folder, clip):
        self.docker, self.folder = docker, tree / "deploy" / "compose"
        media = folder / "media"
        media.mkdir()
        (media / clip.name).write_bytes(clip.read_bytes())
        config = folder / "peoplecounter.toml"
        config.write_text(CONFIG)
        config.chmod(0o644)
        docker.environment |= {
            "IMAGE": IMAGE, "CONFIG": str(config), "MEDIA": str(media), "COMPOSE_PROJECT_NAME": PROJECT,
        }  # fmt: skip
        self.compose("--profile", "dashboard", "up", "-d", "--no-build")
        volume = docker.folder / "data/volumes" / f"{PROJECT}_run/_data"
        self.run_dir = docker.root / str(volume / "group")[1:]
        self.seen = Published(f"ipc://{self.run_dir}/counts.sock")
        self.seen.tail = lambda: self.compose("logs", "--tail", "20", check=False)

    def compose(self, *arguments: object, check: bool = True) -> str:
        files = ("-f", self.folder / "compose.yaml")
        return self.docker.do("docker-compose", *files, *arguments, check=check)

    def pids(self) -> dict[str, int]:
        """Container -> pid of its process, of all that run."""
        ids = self.docker.do("docker", "ps", "-q").split()
        rows = self.docker.do("docker", "inspect", "-f", "{{.Name}} {{.State.Pid}}", *ids).splitlines() if ids else []
        return {
            name.strip("/").removeprefix(f"{PROJECT}_"): int(pid) for name, pid in map(str.split, rows) if pid != "0"
        }

    def peoplecounter(self, *arguments: object) -> str:
        return self.docker.do("docker", "exec", f"{PROJECT}_fusion_1", "peoplecounter", *arguments)

    def close(self) -> None:
        self.seen.close()
        self.compose("down", "-v", "-t", "3", check=False)


@pytest.fixture(scope="module")
def compose(docker, source_tree, plaza, tmp_path_factory):
    one = Compose(docker, source_tree, tmp_path_factory.mktemp("compose"), plaza.clip)
    yield one
    one.close()


def test_the_demo_is_counted_by_five_containers_that_may_do_nothing_else(compose, plaza):
    compose.seen.wait_counts(2 * ENOUGH, 60)
    plaza.check_counts(compose.seen, "plaza")
    rows = json.loads(compose.peoplecounter("ps", "--json"))
    assert {row["service"].split(".")[0] for row in rows} == {*SERVICES, "dashboard"}
    asked = (
        "import urllib.request as r; print(r.urlopen('http://127.0.0.1:8650/api/v1/sources/plaza/picture').read()[:3])"
    )
    shown = compose.docker.do("docker", "exec", f"{PROJECT}_dashboard_1", "python3", "-c", asked)
    assert shown.strip() == str(JPEG)
    assert {row["supervisor"] for row in rows} == {"compose"}
    print(compose.docker.do("docker", "images", IMAGE))
    for pid in compose.pids().values():
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
        assert status["Uid"].split() == ["10001"] * 4
        assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0
        assert status["NoNewPrivs"] == "1"
    message = compose.docker.do("docker", "exec", f"{PROJECT}_fusion_1", "sh", "-c", "echo > /opt/x", check=False)
    assert "Read-only file system" in message
    networks = compose.docker.do("docker", "inspect", "-f", "{{.HostConfig.NetworkMode}}", f"{PROJECT}_fusion_1")
    assert networks.strip() == "none"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize("service", SERVICES)
def test_one_container_is_started_again_and_the_others_go_on(compose, service, number):
    """A frozen one is ended by its health check."""
    check_started_again(compose.seen, compose.pids, f"{service}_1", lambda pid: os.kill(pid, number))


def test_three_workers_share_the_load(compose):
    before = compose.pids()
    compose.compose("up", "-d", "--no-build", "--no-recreate", "--scale", "infer_tiles=3")
    workers = [f"infer_tiles.{i}" for i in range(3)]
    compose.seen.wait_for(lambda: all(compose.seen.counters(w) for w in workers), "three workers")
    done = {worker: sum(compose.seen.counters(worker).values()) for worker in workers}
    compose.seen.wait_for(
        lambda: all(sum(compose.seen.counters(w).values()) > done[w] for w in workers), "work for all three"
    )
    assert compose.pids().items() > before.items()


def test_restart_and_scale_back_work_from_the_host(compose):
    before = compose.pids()
    message = compose.docker.do(*argv("scale", "infer_tiles", 1, "--run-dir", compose.run_dir))
    assert message == "infer_tiles: 1 ready, before: 3\n"
    assert len(compose.pids()) == len(before) - 2
    assert "preprocess.0 is ready again" in compose.peoplecounter("restart", "preprocess")
    compose.seen.wait_counts(ENOUGH)


def test_an_image_without_settings_ends_with_one_error(compose):
    """Asked of the image itself, as its user would."""
    message = compose.docker.do(
        "docker", "run", "--rm", "--network", "none", IMAGE, "peoplecounter.services.preprocess", check=False
    )
    assert message.endswith(
        ": The configuration file /etc/peoplecounter.toml cannot be read: No such file or directory.\n"
    )
    assert message.count("\n") == 1
