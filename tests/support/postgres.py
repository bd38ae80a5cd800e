"""A real PostgreSQL server of a test's own, on a unix socket in a private folder."""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

BIN = next((path for path in sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)), Path("/usr/bin"))
USER = "postgres"


def missing() -> str:
    """What this machine lacks; empty: nothing."""
    if not (BIN / "postgres").exists():
        return "postgresql"
    return "runuser" if os.getuid() == 0 and not shutil.which("runuser") else ""


class Postgres:
    """A server that may be killed and started again."""

    def __init__(self, folder: Path):
        self.folder, self.process = folder, None
        folder.mkdir()
        if os.getuid() == 0:  # the server refuses to run as root
            shutil.chown(folder, USER, USER)
        self._run("initdb", "-D", folder / "db", "-U", USER, "--auth=trust", "--no-sync", "-E", "UTF8")
        self.url = f"postgresql+psycopg://{USER}@/{USER}?host={folder}"
        self.start()

    def start(self) -> None:
        """Returns when it answers."""
        options = (
            "-k",
            self.folder,
            "-c",
            "listen_addresses=",
            "-c",
            "shared_buffers=16MB",
            "-c",
            "max_connections=10",
        )
        log = (self.folder / "log").open("a")
        self.process = subprocess.Popen(self._words("postgres", "-D", self.folder / "db", *options), stderr=log)
        for _ in range(200):
            if not subprocess.run([BIN / "pg_isready", "-q", "-h", self.folder]).returncode:
                return
            time.sleep(0.05)
        raise RuntimeError((self.folder / "log").read_text())

    def kill(self) -> None:
        """SIGKILL to the server and all of its processes, as when a machine loses its power."""
        pid = (self.folder / "db" / "postmaster.pid").read_text().split()[0]
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        for one in (pid, *children):
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(one), signal.SIGKILL)
        self.process.wait()
        while any(Path(f"/proc/{one}").exists() for one in children):
            time.sleep(0.01)
        (self.folder / "db" / "postmaster.pid").unlink(missing_ok=True)

    def close(self) -> None:
        pid = (self.folder / "db" / "postmaster.pid").read_text().split()[0]
        os.kill(int(pid), signal.SIGINT)
        self.process.wait(10)

    def _run(self, program: str, *arguments: object) -> None:
        subprocess.run(self._words(program, *arguments), check=True, capture_output=True)

    def _words(self, program: str, *arguments: object) -> list[str]:
        user = ["runuser", "-u", USER, "--"] if os.getuid() == 0 else []
        return [*user, str(BIN / program), *map(str, arguments)]
