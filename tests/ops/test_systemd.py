"""A real systemd runs the units of `peoplecounter install systemd`: killed, frozen, scaled, at their limits."""

import json
import subprocess
from pathlib import Path

import pytest

from tests.ops.conftest import ENOUGH, FPS, check_started_again
from tests.support.cli import missing_as_root, without_settings
from tests.support.dashboard import JPEG, Dashboard
from tests.support.published import Published
from tests.support.rtsp import free_port
from tests.support.systemd import NEEDED, Systemd

pytestmark = pytest.mark.skipif(bool(lacking := missing_as_root(*NEEDED)), reason=f"this machine lacks {lacking}")

CONFIG = """
[sources.plaza]
url = "{clip}"
realtime = true
loop = true
fps = {fps}
[engine]
threads = 1
[workers]
infer_tiles = 2
[dashboard]
listen = "127.0.0.1:{port}"
"""
PORT = free_port()
UNITS = {
    "decoder.plaza": "peoplecounter-decoder@plaza",
    "preprocess.0": "peoplecounter-preprocess@0",
    "infer_global.0": "peoplecounter-infer-global@0",
    "infer_tiles.1": "peoplecounter-infer-tiles@1",
    "fusion.0": "peoplecounter-fusion@0",
    "dashboard.0": "peoplecounter-dashboard",
}


class Machine(Systemd):
    """With an installed group."""

    def __init__(self, installation, log: Path):
        super().__init__(log)
        self.cli = installation.bin / "peoplecounter"
        config = self.root / "etc/peoplecounter.toml"
        config.write_text(CONFIG.format(clip=installation.clip, fps=FPS, port=PORT))
        config.chmod(0o600)
        self.do(self.cli, "install", "systemd", "--config", "/etc/peoplecounter.toml")
        self.do("systemctl", "enable", "--now", "peoplecounter.target")
        self.seen = Published(f"ipc://{self.root}/run/peoplecounter/counts.sock")
        self.seen.tail = lambda: self.do("journalctl", "--no-pager", "-n", "50", "-t", "python", check=False)

    def pids(self) -> dict[str, str]:
        """Unit -> main pid, of every service that is ready: only then its watchdog notices that it is frozen."""
        shown = ("-p", "Id", "-p", "MainPID", "-p", "ActiveState")
        listed = self.do("systemctl", "show", "peoplecounter-*.service", *shown)
        rows = [dict(line.split("=", 1) for line in block.splitlines()) for block in listed.split("\n\n")]
        ready = [row for row in rows if row and row["ActiveState"] == "active"]
        return {row["Id"].removesuffix(".service"): row["MainPID"] for row in ready}

    def peoplecounter(self, *arguments: object, check: bool = True) -> str:
        return self.do(self.cli, *arguments, check=check)

    def close(self) -> None:
        self.seen.close()
        super().close()


@pytest.fixture(scope="module")
def machine(installation, tmp_path_factory):
    one = Machine(installation, tmp_path_factory.mktemp("systemd") / "log")
    yield one
    one.close()


def test_the_demo_is_counted_with_root_alone_knowing_the_settings(machine, installation):
    seconds = machine.seen.wait_counts(2 * ENOUGH, 60)
    print(f"{2 * ENOUGH} complete counts {seconds:.1f} s after the start of the target")
    installation.check_counts(machine.seen, "plaza")
    rows = json.loads(machine.peoplecounter("ps", "--json"))
    assert {row["service"] for row in rows} == {*UNITS, "infer_tiles.0"}
    assert {row["supervisor"] for row in rows} == {"systemd:peoplecounter"}
    (user,) = {machine.do("stat", "-c", "%U", f"/proc/{pid}").strip() for pid in machine.pids().values()}
    assert user == "peoplecounter"
    assert machine.do("stat", "-c", "%a %U", "/run/peoplecounter").strip() == "700 peoplecounter"
    assert machine.peoplecounter("dashboard").strip() == f"http://127.0.0.1:{PORT}/"
    dashboard = Dashboard(PORT)  # the machine has our network
    assert dashboard.ask("/api/v1/sources/plaza/picture")[2].startswith(JPEG)
    line = {"points": [[0.5, 0], [0.5, 1]], "inside": [0.9, 0.5]}
    dashboard.json("/api/v1/sources/plaza/lines/middle", "PUT", line)
    machine.seen.wait_for(lambda: "middle" in machine.seen.of("status", "plaza")[-1].get("lines", {}), "its line")


@pytest.mark.parametrize("number", ["KILL", "STOP"])
@pytest.mark.parametrize("name", UNITS)
def test_one_service_is_started_again_and_the_others_go_on(machine, name, number):
    """A frozen one starves its watchdog."""
    check_started_again(machine.seen, machine.pids, UNITS[name], lambda pid: machine.do("kill", f"-{number}", pid))


def test_scale_source_and_restart_work_through_the_units(machine, installation):
    before = machine.pids()
    assert machine.peoplecounter("scale", "infer_tiles", 3) == "infer_tiles: 3 ready, before: 2\n"
    assert machine.peoplecounter("source", "add", "yard", installation.clip, "--realtime") == "yard is online\n"
    more = machine.pids()
    assert more.items() > before.items()
    assert more.keys() - before.keys() == {"peoplecounter-infer-tiles@2", "peoplecounter-decoder@yard"}
    assert machine.do("systemctl", "is-enabled", "peoplecounter-decoder@yard").strip() == "enabled"
    assert (machine.root / "var/lib/peoplecounter/sources/yard.json").exists()
    machine.seen.wait_for(lambda: machine.seen.of("counts", "yard"), "counts of the other source")
    assert machine.peoplecounter("source", "remove", "yard") == "yard was removed\n"
    assert machine.peoplecounter("scale", "infer_tiles", 2) == "infer_tiles: 2 ready, before: 3\n"
    assert machine.pids() == before
    assert "fusion.0 is ready again" in machine.peoplecounter("restart", "fusion")
    assert machine.pids().keys() == before.keys()
    machine.seen.wait_counts(ENOUGH)


def test_at_its_start_limit_a_service_has_failed_and_watch_says_so(machine):
    unit, before = "peoplecounter-infer-tiles@1.service", machine.pids()
    machine.do("systemctl", "reset-failed", unit)  # forgets the starts so far
    for _ in range(20):  # more often than 10 times in 60 s
        (pid,) = machine.show(unit, "MainPID")
        machine.do("kill", "-KILL", pid)
        machine.seen.wait_for(lambda pid=pid: again(machine, unit, pid) or failed(machine, unit), "its end or start")
        if failed(machine, unit):
            break
    assert failed(machine, unit)
    assert "Start request repeated too quickly" in machine.do("journalctl", "--no-pager", "-n", "500")
    machine.seen.wait_for(lambda: machine.seen.state("infer_tiles.1") == "down", "it to be missed")
    assert "infer_tiles.1 is down" in machine.do("timeout", "-s", "INT", "3", machine.cli, "watch", check=False)
    after = machine.pids()
    assert before.items() > after.items()
    machine.seen.wait_counts(ENOUGH)  # by the other worker
    machine.do("systemctl", "reset-failed", unit)
    machine.do("systemctl", "start", unit)
    machine.seen.wait_for(lambda: machine.seen.state("infer_tiles.1") == "up", "it to be back")


def again(machine, unit: str, pid: str) -> bool:
    return machine.show(unit, "MainPID") not in ([pid], ["0"])


def failed(machine, unit: str) -> bool:
    return machine.show(unit, "ActiveState") == ["failed"]


def test_an_upgrade_ends_and_removes_the_unit_of_the_one_fusion(machine):
    """Its units were called differently before a group could have several."""
    old = machine.root / "etc/systemd/system/peoplecounter-fusion.service"
    old.write_text("[Service]\nExecStart=/bin/sleep 1000\n")
    machine.do("systemctl", "daemon-reload")
    machine.do("systemctl", "start", old.name)
    before = machine.pids()
    machine.do(machine.cli, "install", "systemd", "--config", "/etc/peoplecounter.toml")
    assert not old.exists() and machine.show(old.name, "ActiveState") == ["inactive"]
    assert before.keys() - machine.pids().keys() == {"peoplecounter-fusion"}
    machine.seen.wait_counts(ENOUGH)


def test_bad_settings_end_with_one_error_and_no_restart(machine):
    unit = "peoplecounter-preprocess@0.service"
    folder = machine.root / f"etc/systemd/system/{unit}.d"
    folder.mkdir()
    (folder / "bad.conf").write_text("[Service]\nEnvironment=PEOPLECOUNTER_PREPROCESS__SLOTS=1\n")
    machine.do("systemctl", "daemon-reload")
    machine.do("systemctl", "restart", unit, check=False)
    assert machine.show(unit, "ActiveState", "ExecMainStatus", "NRestarts") == ["failed", "78", "0"]
    assert "a ring needs at least 3 slots" in machine.do("journalctl", "--no-pager", "-u", unit, "-n", "5")
    (folder / "bad.conf").unlink()
    machine.do("systemctl", "daemon-reload")
    machine.do("systemctl", "restart", unit)
    machine.seen.wait_counts(ENOUGH)


def test_uninstall_leaves_no_unit_no_process_and_no_run_directory(machine):
    """The last test of this machine."""
    machine.peoplecounter("uninstall", "systemd")
    assert machine.pids() == {}
    assert not (machine.root / "run/peoplecounter").exists()
    units = machine.root / "etc/systemd/system"
    assert not [path for path in units.rglob("*") if path.name.startswith("peoplecounter") and not path.is_dir()]
    assert "peoplecounter.target does not exist" in machine.peoplecounter("uninstall", "systemd", check=False)
    assert machine.do("pgrep", "-f", r"peoplecounter\.(services|deploy)\.", check=False) == ""


def test_the_units_are_valid_and_closed_to_the_outside(installation, tmp_path):
    """systemd's own judgement: no unknown key, exposure at most 1.5 of 10 (without the network: 0.8)."""
    config = tmp_path / "peoplecounter.toml"
    config.write_text(CONFIG.format(clip=installation.clip, fps=FPS, port=PORT))
    command = [installation.bin / "peoplecounter", "install", "systemd", "--config", config, "--root", tmp_path]
    environment = without_settings()
    subprocess.run(command, check=True, capture_output=True, cwd="/", env=environment)
    units = sorted((tmp_path / "etc/systemd/system").glob("*.service"))
    assert len(units) == len(UNITS)
    for unit in units:
        instance = unit.with_name(unit.name.replace("@", "@x"))
        unit.rename(instance)
        done = subprocess.run(["systemd-analyze", "verify", instance], capture_output=True, text=True)
        ours = [line for line in done.stderr.splitlines() if "peoplecounter" in line]
        assert not done.returncode and not ours, done.stderr
        judge = ["systemd-analyze", "security", "--offline=yes", "--threshold=15", "--no-pager", instance]
        done = subprocess.run(judge, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout
        print(done.stdout.splitlines()[-1])
