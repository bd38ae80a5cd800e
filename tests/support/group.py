"""A real group of service processes that a test may kill, freeze, slow down and start again; it is the supervisor."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from deploy.subscribe import Follower
from tests.support.cli import ROOT

SERVICES = ("fusion.0", "infer_global.0", "infer_tiles.0", "preprocess.0", "decoder.cam")
KINDS = ("counts", "detections", "dropped", "status", "service")


class Group:
    """Five processes in a run directory of their own, and everything they have published."""

    def __init__(self, run_dir: Path, model: Path, sources: dict[str, dict], **settings: str):
        self.run_dir = run_dir
        self.messages: list[tuple[str, str, dict]] = []
        self.arrived = threading.Condition()
        self.processes: dict[str, subprocess.Popen] = {}
        self.killed: set[str] = set()
        self.log = (run_dir.parent / f"{run_dir.name}.log").open("w+")
        self.environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith("PEOPLECOUNTER_")},
            "PEOPLECOUNTER_RUN_DIR": str(run_dir),
            "PEOPLECOUNTER_ENGINE__MODEL": str(model),
            "PEOPLECOUNTER_ENGINE__THREADS": "1",
            "PEOPLECOUNTER_SOURCES": json.dumps(sources),
            **{f"PEOPLECOUNTER_{key.upper()}": value for key, value in settings.items()},
        }
        self.follower = Follower(f"ipc://{run_dir}/counts.sock", KINDS, self._on_message)

    def start(self, *names: str, fault: tuple[str, ...] = ()) -> None:
        """Starts processes; `fault` is passed to tests.support.faulty, e.g. ("--raise-at", "20")."""
        for name in names or SERVICES:
            service, _, instance = name.partition(".")
            module = ["tests.support.faulty", service, *fault, "--"] if fault else [f"services.{service}"]
            command = [sys.executable, "-m", *module, instance]
            self.processes[name] = subprocess.Popen(command, env=self.environment, stdout=self.log, stderr=self.log)

    def peoplecounter(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        """Runs a command in this group's environment."""
        command = [sys.executable, "-m", "deploy.cli", *map(str, arguments)]
        return subprocess.run(command, cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=60)

    def signal(self, name: str, number: signal.Signals) -> None:
        self.processes[name].send_signal(number)
        if number == signal.SIGKILL:
            self.processes[name].wait()
            self.killed.add(f"control.{name}.sock")  # stays until its successor, or the end of the run directory

    def wait_exit(self, name: str, timeout_s: float = 20) -> int:
        """The exit code of a process that ends by itself."""
        return self.processes[name].wait(timeout_s)

    def wait_for(self, condition: Callable[[], object], what: str, timeout_s: float = 30) -> float:
        """Seconds until the condition held; fails with the log when it does not."""
        begin = time.monotonic()
        with self.arrived:
            while not condition():
                left = begin + timeout_s - time.monotonic()
                if left <= 0:
                    last = {kind: next((m for m in reversed(self.messages) if m[0] == kind), None) for kind in KINDS}
                    raise AssertionError(f"not within {timeout_s} s: {what}\n{last}\n{self.tail()}")
                self.arrived.wait(min(left, 0.1))
        return time.monotonic() - begin

    def wait_counts(self, more: int, timeout_s: float = 30, complete: bool = True) -> float:
        """Seconds until this many more frames were counted (completely)."""
        target = self.counted(complete) + more
        return self.wait_for(lambda: self.counted(complete) >= target, f"{more} more counts", timeout_s)

    def of(self, kind: str, source: str | None = None) -> list[dict]:
        return [content for k, name, content in self.messages if k == kind and source in (None, name)]

    def counted(self, complete: bool = False) -> int:
        return sum(content["complete"] or not complete for content in self.of("counts"))

    def ended(self, source: str = "cam") -> bool:
        return any(content["state"] == "ended" for content in self.of("status", source))

    def totals(self, source: str = "cam") -> dict:
        return next(c["totals"] for k, name, c in reversed(self.messages) if "totals" in c and name == source)

    def counters(self, name: str) -> dict:
        """The latest counters that a process reported."""
        return next((c["counters"] for k, n, c in reversed(self.messages) if k == "service" and n == name), {})

    def check_books(self, source: str = "cam", unheard: int = 0) -> None:
        """Every frame was counted or dropped with a reason, none twice, in order; published, but for `unheard`."""
        totals = self.totals(source)
        assert totals["frames"] == totals["counted"] + sum(totals["dropped"].values()), totals
        seqs = [content["seq"] for content in self.of("counts", source)]
        gone = [seq for c in self.of("dropped", source) for seq in range(c["seq"], c["seq"] + c["frames"])]
        assert len(set(seqs)) == len(seqs), "a seq was published twice"
        assert not set(seqs) & set(gone), "a seq was counted and dropped"
        assert seqs == sorted(seqs), "counts are out of order"
        silent = set(range(totals["frames"])) - set(seqs) - set(gone)
        assert len(silent) <= unheard, f"neither counted nor dropped: {sorted(silent)[:9]}"

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
        self.follower.close()
        assert not survivors, f"did not end on SIGTERM: {survivors}\n{self.tail()}"
        left = {path.name for pattern in ("*.shm", "*.sock") for path in self.run_dir.glob(pattern)} - self.killed
        assert not left, f"left behind: {sorted(left)}"

    def tail(self) -> str:
        self.log.flush()
        return Path(self.log.name).read_text()[-3000:]

    def _on_message(self, kind: str, name: str, content: dict) -> None:
        with self.arrived:
            self.messages.append((kind, name, content))
            self.arrived.notify_all()
