"""A real systemd in namespaces of its own, see systemd.sh; and an installation that its services may see."""

import contextlib
import os
import secrets
import subprocess
import time
from pathlib import Path

from tests.support.cli import checked, without_settings

SCRIPT = Path(__file__).with_suffix(".sh")
TOOLS = ("unshare", "nsenter", "systemctl", "journalctl", "systemd-analyze", "systemd-sysusers")
NEEDED = (*TOOLS, "/lib/systemd/systemd")


class Systemd:
    """PID 1 of its own namespaces; `do` runs a command in there."""

    def __init__(self, log: Path):
        self.group = f"pc-test-{secrets.token_hex(4)}"
        self._log = log.open("w")
        self._process = subprocess.Popen([SCRIPT, self.group], stdout=self._log, stderr=self._log)
        self.pid1 = ""
        until_s = time.monotonic() + 20
        while "running" not in self.state():
            if time.monotonic() > until_s or self._process.poll() is not None:
                self.close()
                raise RuntimeError(f"systemd does not start: {log.read_text()[-2000:]}")
            time.sleep(0.05)

    def state(self) -> str:
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        with contextlib.suppress(OSError):
            for child in children.read_text().split():
                if Path(f"/proc/{child}/comm").read_text() == "systemd\n":
                    self.pid1 = child
        return self.do("systemctl", "is-system-running", check=False) if self.pid1 else ""

    @property
    def root(self) -> Path:
        """Its file system, as seen from here."""
        return Path(f"/proc/{self.pid1}/root")

    def do(self, *command: object, check: bool = True, timeout: float = 90) -> str:
        """What a command printed in there; with `check`, an error is one here."""
        inside = ("nsenter", "-t", self.pid1, "-m", "-p", "-C", "-i", "-u", "--")
        environment = without_settings()
        done = checked(*inside, *command, check=check, timeout=timeout, cwd="/", env=environment)
        return done.stdout + done.stderr

    def show(self, unit: str, *properties: str) -> list[str]:
        """Values of a unit's properties, in this order."""
        listed = dict(line.split("=", 1) for line in self.do("systemctl", "show", unit).splitlines() if "=" in line)
        return [listed[name] for name in properties]

    def close(self) -> None:
        """Ends everything in there and takes its control groups away."""
        if self.pid1:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(self.pid1), 9)
        self._process.kill()
        self._process.wait()
        self._log.close()
        time.sleep(0.1)
        for folder in sorted(Path("/sys/fs/cgroup").glob(f"**/{self.group}"), reverse=True):
            for below in sorted((p for p in folder.rglob("*") if p.is_dir()), reverse=True):
                with contextlib.suppress(OSError):
                    below.rmdir()
            with contextlib.suppress(OSError):
                folder.rmdir()
