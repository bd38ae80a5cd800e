"""Asking and telling the processes of a running group, over the private socket that each of them has."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from common import settings as settings_module
from common.control import PREFIX
from common.errors import NO_INPUT, SOFTWARE, Refused
from common.link import Dial, Timing
from common.loop import Loop
from common.messages import SCHEMA, Describe, Described, Done, Hello, Message, Restart, SetLevel
from common.settings import CONFIG_VARIABLE
from common.settings import PREFIX as ENVIRONMENT

ANSWER_S = 3.0  # a process that has not answered by then is frozen, or busy loading
BACK_S = 60.0  # until a restarted process is ready


def group(config: Path | None, run_dir: Path | None) -> tuple[Path, Timing]:
    """The run directory of the group that is meant, and how often its processes beat."""
    if config:
        os.environ[CONFIG_VARIABLE] = str(config)
    if run_dir:
        os.environ[ENVIRONMENT + "RUN_DIR"] = str(run_dir)
    settings = settings_module.load()
    return settings.run_dir, Timing.of_ms(settings.link.beat_ms, settings.link.silent_ms)


def owners(run_dir: Path) -> dict[str, int]:
    """Name -> pid of every process that runs here, or was lost and has not come back."""
    found = {}
    for path in sorted(run_dir.glob(f"{PREFIX}*.lock")):
        text = path.read_text().strip()
        if text.isdigit():
            found[path.stem.removeprefix(PREFIX)] = int(text)
    return found


def lives(pid: int) -> bool:
    """True while a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def processes(run_dir: Path) -> dict[str, int]:
    """The owners; raises Refused when there is none."""
    found = owners(run_dir)
    if not found:
        raise Refused(f"No group runs in {run_dir}: name its --config or --run-dir.", NO_INPUT)
    return found


def ask(run_dir: Path, timing: Timing, names: list[str], message: Message) -> dict[str, Message]:
    """The answers of those processes that gave one within ANSWER_S."""
    loop, answers, dials = Loop(), {}, {}
    hello = Hello(SCHEMA, "peoplecounter", os.getpid())
    try:
        for name in names:
            dials[name] = Dial(
                loop, run_dir / f"{PREFIX}{name}.sock", hello, timing,
                lambda welcome, name=name: dials[name].send(message),
                lambda answer, name=name: answers.setdefault(name, answer), lambda: None,
            )  # fmt: skip
        until_s = time.monotonic() + ANSWER_S
        while len(answers) < len(names) and time.monotonic() < until_s:
            loop.tick()
        return answers
    finally:
        for dial in dials.values():
            dial.close()
        loop.close()


def table(run_dir: Path, timing: Timing) -> list[dict]:
    """A row for each process: what it says of itself; `state` is ready, starting, silent or down."""
    there = processes(run_dir)
    alive = [name for name, pid in there.items() if lives(pid)]
    answers = ask(run_dir, timing, alive, Describe())
    rows = []
    for name, pid in there.items():
        row = {"service": name, "pid": pid, "state": "silent" if name in alive else "down"}
        said = answers.get(name)
        if isinstance(said, Described):
            row |= {
                "state": "ready" if said.ready else "starting",
                "supervisor": said.supervisor,
                "age_s": round(said.age_s, 1),
                "restarts": said.starts - 1,
                "epoch": said.epoch,
                "slots": said.slots,
                "leases": said.leases,
                "rss_mb": _rss_mb(pid),
                "log_level": said.log_level,
                "counters": said.counters,
            }
        rows.append(row)
    return rows


def restart(run_dir: Path, timing: Timing, service: str) -> Iterator[str]:
    """Restarts a process, or all of a service, one after the other; says how each went.

    A process that does not answer is killed. Raises Refused when there is no such process, nobody would start it again,
    or it does not come back.
    """
    for name in _chosen(run_dir, service):
        pid = processes(run_dir)[name]
        said = ask(run_dir, timing, [name], Describe()).get(name) if lives(pid) else None
        if isinstance(said, Described) and not said.supervisor:
            raise Refused(f"{name} was started by hand: nobody would start it again.", SOFTWARE)
        began_s = time.monotonic()
        if isinstance(said, Described):
            ask(run_dir, timing, [name], Restart())
        elif _is_ours(pid):
            yield f"{name} does not answer: killed"
            os.kill(pid, signal.SIGKILL)
        _await(run_dir, timing, name, pid)
        yield f"{name} is ready again after {time.monotonic() - began_s:.1f} s"


def set_level(run_dir: Path, timing: Timing, service: str, level: str) -> list[str]:
    """Names of the processes that now log from `level` up."""
    names = _chosen(run_dir, service)
    answers = ask(run_dir, timing, names, SetLevel(level))
    silent = [name for name in names if not isinstance(answers.get(name), Done)]
    if silent:
        raise Refused(f"{silent[0]} does not answer.", SOFTWARE)
    return names


def _chosen(run_dir: Path, service: str) -> list[str]:
    there = processes(run_dir)
    names = [name for name in there if service in (name, name.split(".")[0])]
    if not names:
        raise Refused(f"There is no {service!r} here: there is {', '.join(there)}.", NO_INPUT)
    return names


def _await(run_dir: Path, timing: Timing, name: str, before: int) -> None:
    until_s = time.monotonic() + BACK_S
    while time.monotonic() < until_s:
        pid = processes(run_dir).get(name, before)
        if pid != before and lives(pid):
            said = ask(run_dir, timing, [name], Describe()).get(name)
            if isinstance(said, Described) and said.ready and said.pid != before:
                return
        time.sleep(0.1)
    raise Refused(f"{name} has not come back within {BACK_S:.0f} s: look at its supervisor's log.", SOFTWARE)


def _is_ours(pid: int) -> bool:
    """True for a service of ours: a pid in a file may by now be somebody else's."""
    try:
        return b"services." in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def _rss_mb(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20
    except OSError:
        return 0
