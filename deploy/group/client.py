"""Questions and orders to the processes of a running group, over the private control socket that each of them has."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from peoplecounter.common.errors import NO_INPUT, SOFTWARE, AppError
from peoplecounter.common.ipc.link import LinkClient, Timing
from peoplecounter.common.ipc.loop import Loop
from peoplecounter.common.ipc.messages import (
    SCHEMA,
    Describe,
    Described,
    Done,
    Hello,
    Message,
    Restart,
    SetLevel,
    Welcome,
)
from peoplecounter.common.logs import Level
from peoplecounter.common.process.control import PREFIX
from peoplecounter.common.settings import CONFIG_VARIABLE, Settings, load_settings
from peoplecounter.common.settings import PREFIX as ENVIRONMENT
from peoplecounter.common.topology import SERVICES

ANSWER_S = 3.0  # a process that has not answered by then is frozen or busy loading
READY_S = 60.0  # until a process that was started is ready
SYSTEM_RUN_DIR = Path("/run/peoplecounter")  # of the group that `install systemd` sets up


@dataclass(frozen=True)
class RunningGroup:
    """A group that runs on this machine."""

    settings: Settings  # at least the run directory is the group's own

    @property
    def run_dir(self) -> Path:
        return self.settings.run_dir

    @property
    def timing(self) -> Timing:
        """How often the ends of its links beat."""
        return Timing.of_ms(self.settings.link.beat_ms, self.settings.link.silent_ms)


def read_settings(config: Path | None) -> Settings:
    """Those of a file or of the environment."""
    if config:
        os.environ[CONFIG_VARIABLE] = str(config.absolute())
    return load_settings()


def find_group(config: Path | None = None, run_dir: Path | None = None) -> RunningGroup:
    """The group of a configuration or a run directory; without either, this user's, or else this machine's."""
    if run_dir:
        os.environ[ENVIRONMENT + "RUN_DIR"] = str(run_dir.absolute())
    settings = read_settings(config)
    if not {"run_dir"} & settings.model_fields_set and not owners(settings.run_dir) and SYSTEM_RUN_DIR.is_dir():
        settings = settings.model_copy(update={"run_dir": SYSTEM_RUN_DIR})
    return RunningGroup(settings)


def owners(run_dir: Path) -> dict[str, int]:
    """Name -> pid of every process that runs, or was lost and has not been replaced."""
    pids = {}
    for path in sorted(run_dir.glob(f"{PREFIX}*.lock")):
        text = path.read_text().strip()
        if text.isdigit():
            pids[path.stem.removeprefix(PREFIX)] = int(text)
    return pids


def is_running(pid: int) -> bool:
    """True while a process runs; False for a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def processes(run_dir: Path) -> dict[str, int]:
    """The same as owners(). Raises AppError when there is none."""
    if run_dir.is_dir() and not os.access(run_dir, os.R_OK | os.X_OK):
        raise AppError(f"The run directory {run_dir} belongs to {run_dir.owner()}: run this as that user or as root.")
    pids = owners(run_dir)
    if not pids:
        raise AppError(f"No group runs in {run_dir}: use --config or --run-dir.", NO_INPUT)
    return pids


def ask(group: RunningGroup, names: list[str], message: Message) -> dict[str, Message]:
    """The answers of the processes that answered within ANSWER_S.

    A command is sent only once. A Describe is sent again to a process that replaces the one asked.
    """
    loop = Loop()
    answers: dict[str, Message] = {}
    links: dict[str, LinkClient] = {}
    asked: set[str] = set()
    hello = Hello(SCHEMA, "peoplecounter", os.getpid())

    def on_welcome(name: str) -> Callable[[Welcome], None]:
        def send(welcome: Welcome) -> None:
            if name not in asked or isinstance(message, Describe):
                asked.add(name)
                links[name].send(message)

        return send

    def on_answer(name: str) -> Callable[[Message], None]:
        def keep(answer: Message) -> None:
            answers.setdefault(name, answer)

        return keep

    try:
        for name in names:
            path = group.run_dir / f"{PREFIX}{name}.sock"
            links[name] = LinkClient(loop, path, hello, group.timing, on_welcome(name), on_answer(name), lambda: None)
        until_s = time.monotonic() + ANSWER_S
        while len(answers) < len(names) and time.monotonic() < until_s:
            loop.tick()
        return answers
    finally:
        for link in links.values():
            link.close()
        loop.close()


def describe(group: RunningGroup, name: str, pid: int) -> Described | None:
    """The state of a process; None when it does not answer."""
    answer = ask(group, [name], Describe()).get(name) if is_running(pid) else None
    return answer if isinstance(answer, Described) else None


def process_rows(group: RunningGroup) -> list[dict]:
    """One row per process: its own description; `state` is ready, starting, silent or down."""
    pids = processes(group.run_dir)
    running = [name for name, pid in pids.items() if is_running(pid)]
    answers = ask(group, running, Describe())
    rows = []
    for name, pid in pids.items():
        row = {"service": name, "pid": pid, "state": "silent" if name in running else "down"}
        answer = answers.get(name)
        if isinstance(answer, Described):
            row |= {
                "state": "ready" if answer.ready else "starting",
                "supervisor": answer.supervisor,
                "age_s": round(answer.age_s, 1),
                "restarts": answer.starts - 1,
                "epoch": answer.epoch,
                "slots": answer.slots,
                "leases": answer.leases,
                "about": answer.about,
                "gpu": answer.gpu,
                "rss_mb": _rss_mb(pid),
                "log_level": answer.log_level,
                "counters": answer.counters,
            }
        rows.append(row)
    return rows


def supervisor(group: RunningGroup) -> str:
    """What starts the group's processes: "run", "systemd:PREFIX_OF_UNITS", "compose"; empty: started by hand."""
    for name, pid in processes(group.run_dir).items():
        answer = describe(group, name, pid)
        if answer:
            return answer.supervisor
    raise AppError(f"No process of the group in {group.run_dir} answers: see 'peoplecounter ps'.", SOFTWARE)


def restart(group: RunningGroup, service: str) -> Iterator[str]:
    """Restarts a process, or all processes of a service one after the other; yields what happened.

    A process that does not answer is killed. Raises AppError when there is no such process, when it has no supervisor,
    or when it does not come back.
    """
    for name in _chosen(group.run_dir, service):
        pid = processes(group.run_dir)[name]
        answer = describe(group, name, pid)
        if answer and not answer.supervisor:
            raise AppError(f"{name} has no supervisor. Restart it by hand.", SOFTWARE)
        began_s = time.monotonic()
        if answer:
            ask(group, [name], Restart())
        elif _is_service(pid):
            yield f"{name} does not answer: killed"
            os.kill(pid, signal.SIGKILL)
        await_ready(group, name, pid)
        yield f"{name} is ready again after {time.monotonic() - began_s:.1f} s"


def set_level(group: RunningGroup, service: str, level: Level) -> list[str]:
    """Sets the log level of a service; returns the names of its processes."""
    names = _chosen(group.run_dir, service)
    answers = ask(group, names, SetLevel(level))
    silent = [name for name in names if not isinstance(answers.get(name), Done)]
    if silent:
        raise AppError(f"{silent[0]} does not answer.", SOFTWARE)
    return names


def wait_until(condition: Callable[[], bool], for_s: float, message: str) -> None:
    """Returns when the condition holds. Raises AppError with the message when it does not hold in time."""
    until_s = time.monotonic() + for_s
    while not condition():
        if time.monotonic() > until_s:
            raise AppError(message, SOFTWARE)
        time.sleep(0.1)


def await_ready(group: RunningGroup, name: str, old_pid: int = 0) -> None:
    """Returns when a process of this name, other than `old_pid`, is ready. Raises AppError when it is not in time."""

    def ready() -> bool:
        pid = owners(group.run_dir).get(name, old_pid)
        answer = describe(group, name, pid) if pid != old_pid else None
        return answer is not None and answer.ready and answer.pid != old_pid

    wait_until(ready, READY_S, f"{name} is not ready after {READY_S:.0f} s: see its supervisor's log.")


def _chosen(run_dir: Path, service: str) -> list[str]:
    """Names of the processes of a service, or of the one process of this name."""
    pids = processes(run_dir)
    names = [name for name in pids if service in (name, name.split(".")[0])]
    if not names:
        raise AppError(f"No process {service!r} in this group. Its processes are {', '.join(pids)}.", NO_INPUT)
    return names


def _is_service(pid: int) -> bool:
    """True for a service process: a pid in a file may have been reused by another program."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
    return any(row.module.encode() in command for row in SERVICES)


def _rss_mb(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20
    except OSError:
        return 0
