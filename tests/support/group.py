"""A real group of service processes that a test may kill, freeze, slow down and start again; it is the supervisor."""

import json
import signal
import subprocess
import sys
from pathlib import Path

from peoplecounter.common.topology import BY_NAME
from tests.support.cli import DEFAULTS, ROOT, argv, without_settings
from tests.support.published import Published

SERVICES = ("fusion.0", "infer_global.0", "infer_tiles.0", "preprocess.0", "decoder.cam")


class Group(Published):
    """Five processes in a run directory of their own, and everything they have published."""

    def __init__(self, run_dir: Path, model: Path, sources: dict[str, dict], **settings: str):
        self.run_dir = run_dir
        self.processes: dict[str, subprocess.Popen] = {}
        self.killed: set[str] = set()
        self.log = (run_dir.parent / f"{run_dir.name}.log").open("w+")
        self.environment = {
            **without_settings(),
            **DEFAULTS,
            "PEOPLECOUNTER_RUN_DIR": str(run_dir),
            "PEOPLECOUNTER_ENGINE__MODEL": str(model),
            "PEOPLECOUNTER_ENGINE__THREADS": "1",
            "PEOPLECOUNTER_SOURCES": json.dumps(sources),
            **{f"PEOPLECOUNTER_{key.upper()}": value for key, value in settings.items()},
        }
        super().__init__(f"ipc://{run_dir}/counts.sock")

    def start(self, *names: str, fault: tuple[str, ...] = (), without: str = "") -> None:
        """Starts processes: "decoder.cam", or "decoder" for one that takes a source without a decoder.

        `fault` is passed to tests.support.faulty, e.g. ("--raise-at", "20"); `without` an optimization: see
        tests.bench.without.
        """
        for name in names or SERVICES:
            service, _, instance = name.partition(".")
            module = [BY_NAME[service].module]
            if fault:
                module = ["tests.support.faulty", service, *fault, "--"]
            elif without:
                module = ["tests.bench.without", without, service]
            command = [sys.executable, "-m", *module, *filter(None, [instance])]
            self.processes[name] = subprocess.Popen(command, env=self.environment, stdout=self.log, stderr=self.log)

    def peoplecounter(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        """Runs a command in this group's environment."""
        return subprocess.run(
            argv(*arguments), cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=120
        )

    def signal(self, name: str, number: signal.Signals) -> None:
        self.processes[name].send_signal(number)
        if number == signal.SIGKILL:
            self.processes[name].wait()
            self.killed.add(f"control.{name}.sock")  # stays until its successor, or the end of the run directory

    def wait_exit(self, name: str, timeout_s: float = 20) -> int:
        """The exit code of a process that ends by itself."""
        return self.processes[name].wait(timeout_s)

    def close(self) -> None:
        """Stops what still runs (SIGTERM, then SIGKILL), then checks that nothing was left behind."""
        survivors = []
        for process in self.processes.values():
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.terminate()
        for name, process in self.processes.items():
            try:
                process.wait(8)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                survivors.append(name)
        super().close()
        assert not survivors, f"did not end on SIGTERM: {survivors}\n{self.tail()}"
        left = {path.name for pattern in ("*.shm", "*.sock") for path in self.run_dir.glob(pattern)} - self.killed
        assert not left, f"left behind: {sorted(left)}"

    def tail(self) -> str:
        self.log.flush()
        return Path(self.log.name).read_text()[-3000:]
