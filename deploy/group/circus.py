"""A group in the foreground, supervised by circus: processes are started, restarted when they die, and end with us."""

import contextlib
import logging
import os
import shlex
import signal
import sys
import time
from collections import deque
from collections.abc import Callable
from math import ceil
from pathlib import Path

from peoplecounter.common import backend, cores, shape_changes, sources
from peoplecounter.common.errors import FINAL, RESTART, SOFTWARE
from peoplecounter.common.files import Lock, make_private, make_private_folder
from peoplecounter.common.process import gpus
from peoplecounter.common.process.control import SUPERVISOR, sources_to_decode
from peoplecounter.common.process.runtime import SUPERVISOR_PID
from peoplecounter.common.settings import DATA, Settings
from peoplecounter.common.sources import forget_folder, redacted
from peoplecounter.common.topology import BY_NAME, SERVICES, ServiceRow
from peoplecounter.deploy.group import mps
from peoplecounter.deploy.group.client import owners

LEFTOVERS = ("*.sock", "*.shm", "*.journal", "*.lock", gpus.FILE)
FOLDERS = (sources.FOLDER, shape_changes.FOLDER, DATA)
WANTED: dict[str, Callable[[Settings], object]] = {  # which optional services a group has
    "history": lambda settings: settings.history_url,
    "dashboard": lambda settings: settings.dashboard.address,
}
RESTARTS_MAX, WITHIN_S = 10, 60.0  # with more restarts within that time the group gives up
CHECK_S = 0.25  # how often circus looks for dead processes
STOP_S = 5.0  # then SIGKILL


def watchers(settings: Settings, environment: dict[str, str]) -> list[dict]:
    """circus' description of every service. Each process claims its own source or number."""
    return [
        {
            "name": row.name,
            "cmd": shlex.join([sys.executable, "-m", row.module]),
            "numprocesses": process_count(row, settings),
            "env": environment,
            "copy_env": True,
            "graceful_timeout": STOP_S,
            "max_retry": -1,
        }
        for row in SERVICES
    ]


def process_count(row: ServiceRow, settings: Settings) -> int:
    """How many processes of a service a group starts with."""
    if row.each == "source":
        return decoder_count(len(list(sources_to_decode(settings))), len(backend.gpus(settings)))
    if row.optional and not WANTED[row.name](settings):
        return 0
    if row.each == "worker":
        return cores.process_count(settings, row.name) * (max(1, len(backend.gpus(settings))) if row.on_gpu else 1)
    return 1


def decoder_count(sources: int, gpus: int) -> int:
    """How many decoders so many sources need. With several GPUs there are spare ones, as many as a GPU has sources:
    they wait for those of a GPU that is lost."""
    return sources + (ceil(sources / gpus) if gpus > 1 else 0)


def circus_endpoint(run_dir: Path) -> str:
    """Where the circus of a group takes its commands."""
    return f"ipc://{run_dir}/circus.sock"


class GroupSupervisor:
    """The processes of one run directory. run() blocks until stop(), a signal, or a service that cannot go on.

    `say(line)` shows a line to the user. `on_ended()` is called when a source has ended.
    """

    def __init__(
        self,
        settings: Settings,
        environment: dict[str, str],
        say: Callable[[str], None],
        on_ended: Callable[[], None] = lambda: None,
    ):
        make_private(settings.run_dir)
        if settings.data_dir:
            make_private_folder(Path(settings.data_dir), "data_dir")
        self._settings, self._run_dir, self._say, self._on_ended = settings, settings.run_dir, say, on_ended
        self._lock = Lock(settings.run_dir / "group.lock")
        self._sweep()
        self.restarts: dict[str, int] = {}
        self.exit_code = 0
        self._restart_times_s: deque[float] = deque(maxlen=RESTARTS_MAX)
        self._optional_times_s: deque[float] = deque(maxlen=RESTARTS_MAX)
        self._stopping = self._ended = False
        self._gpus = len(backend.gpus(settings))
        self._mps = contextlib.ExitStack()
        variables = self._mps.enter_context(mps.daemon(settings))
        self._arbiter = self._build(settings, {**environment, **variables})

    def _build(self, settings: Settings, environment: dict[str, str]):
        from circus import get_arbiter  # imports tornado: only `run` needs it

        for name in ("circus", "tornado.application"):  # they log their own conflicts, see _stop
            logging.getLogger(name).setLevel(logging.CRITICAL)
        environment = {**environment, SUPERVISOR_PID: str(os.getpid()), SUPERVISOR: "run"}
        rows = watchers(settings, environment)
        for row in rows:
            row["hooks"] = {"after_reap": (self._after_reap, True)}
        arbiter = get_arbiter(
            rows,
            controller=circus_endpoint(self._run_dir),
            pubsub_endpoint=f"ipc://{self._run_dir}/circus-events.sock",
            check_delay=CHECK_S,
        )
        for watcher in arbiter.watchers:
            reap_before_replacing(watcher)
        return arbiter

    def run(self) -> None:
        try:
            self._arbiter.start()
        finally:
            self._ended = True
            self._mps.close()
            self._remove()
            self._lock.close()

    def stop(self) -> None:
        """Ends every process. May be called from any thread."""
        self._stopping = True
        self._arbiter.loop.add_callback(self._stop)

    def _stop(self) -> None:
        from circus.exc import ConflictError

        if self._ended:  # asked twice; the next group of this process has the same event loop
            return
        try:
            self._arbiter.stop()
        except ConflictError:  # circus is checking its processes right now
            self._arbiter.loop.call_later(0.05, self._stop)

    def _after_reap(self, watcher, process_pid: int, exit_code: int, **_) -> bool:
        if self._stopping or watcher.is_stopping() or watcher.is_stopped():
            return True
        if watcher.name == "decoder" and exit_code == 0:  # its source has ended
            wanted = decoder_count(len(list(sources_to_decode(self._settings))), self._gpus)
            watcher.numprocesses = max(wanted, len(watcher.processes))  # circus would end the oldest, which decode
            self._on_ended()
        if len(watcher.processes) >= watcher.numprocesses:  # the service was scaled down
            return True
        if BY_NAME[watcher.name].optional:
            self._restart_optional(watcher, exit_code)
            return True
        if exit_code in FINAL:  # the process printed why; a restart would end in the same way
            self.exit_code = exit_code
            self.stop()
            return True
        pids = owners(self._run_dir)
        name = next((name for name, pid in pids.items() if pid == process_pid), watcher.name)
        if exit_code == RESTART:
            self._say(f"{name} restarts")
        else:
            self._count_restart(name, exit_code)
        return True

    def _restart_optional(self, watcher, exit_code: int) -> None:
        """The others do not need it: when it cannot go on, they do."""
        if exit_code in FINAL or _too_often(self._optional_times_s):
            watcher.numprocesses = 0
            self._say(f"{watcher.name} has stopped: counting goes on without it")
        elif exit_code == RESTART:
            self._say(f"{watcher.name} restarts")
        else:
            self._say(f"{watcher.name} ended with {_how(exit_code)}: restarted")

    def _count_restart(self, name: str, exit_code: int) -> None:
        how = _how(exit_code)
        self.restarts[name] = self.restarts.get(name, 0) + 1
        if _too_often(self._restart_times_s):
            self._say(f"{name} ended with {how}. More than {RESTARTS_MAX} restarts in {WITHIN_S:.0f} s: giving up.")
            self.exit_code = SOFTWARE
            self.stop()
        else:
            self._say(f"{name} ended with {how}: restarted")

    def _sweep(self) -> None:
        """Removes the files of this group, or of a killed one before it. The lock proves that no process uses them."""
        for pattern in LEFTOVERS:
            for path in self._run_dir.glob(pattern):
                if path.name != "group.lock":
                    path.unlink(missing_ok=True)
        for folder in FOLDERS:
            forget_folder(self._run_dir, folder)

    def _remove(self) -> None:
        self._sweep()
        (self._run_dir / "group.lock").unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # it contains files of others
            self._run_dir.rmdir()


def _too_often(times_s: deque[float]) -> bool:
    """Notes a restart; True when there were RESTARTS_MAX others within WITHIN_S."""
    now_s = time.monotonic()
    often = len(times_s) == RESTARTS_MAX and now_s - times_s[0] < WITHIN_S
    times_s.append(now_s)
    return often


def _how(exit_code: int) -> str:
    """How a process ended, in words."""
    return signal.Signals(-exit_code).name if exit_code < 0 else f"exit code {exit_code}"


def reap_before_replacing(watcher) -> None:
    """Makes a watcher of circus call after_reap for a process that dies right before it looks for dead ones.

    Otherwise it replaces such a process without a word.
    """
    from circus.process import DEAD_OR_ZOMBIE, UNEXISTING

    manage = watcher.manage_processes

    def reap_and_manage():
        for process in list(watcher.processes.values()):
            if process.status in (DEAD_OR_ZOMBIE, UNEXISTING):
                watcher.reap_process(process.pid)
        return manage()

    watcher.manage_processes = reap_and_manage


def source_name(url: str, taken: set[str]) -> str:
    """A name made from a URL without its secrets: letters, digits, - and _ only; different from the taken ones."""
    stem = Path(redacted(url).rstrip("/")).stem or "source"
    name = "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "-" for c in stem).strip("-_")[:48] or "source"
    candidates = [name, *(f"{name}-{i}" for i in range(2, 1000))]
    return next(c for c in candidates if c not in taken)
