"""Asking and telling the processes of a running group, over the private socket that each of them has."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from peoplecounter.common.errors import NO_INPUT, SOFTWARE, Refused
from peoplecounter.common.ipc.link import Dial, Timing
from peoplecounter.common.ipc.loop import Loop
from peoplecounter.common.ipc.messages import SCHEMA, Describe, Described, Done, Hello, Message, Restart, SetLevel
from peoplecounter.common.process.control import PREFIX
from peoplecounter.common.settings import CONFIG_VARIABLE, Settings, load_settings
from peoplecounter.common.settings import PREFIX as ENVIRONMENT

ANSWER_S = 3.0  # a process that has not answered by then is frozen, or busy loading
BACK_S = 60.0  # until a process that was started is ready
SYSTEM_RUN_DIR = Path("/run/peoplecounter")  # of the group that `install systemd` sets up


@dataclass(frozen=True)
class Group:
    """A group that runs here."""

    settings: Settings  # as far as we know them: its run directory, at least
    run_dir: Path
    timing: Timing


def group(config: Path | None = None, run_dir: Path | None = None) -> Group:
    """The group that is meant: of a configuration, of a run directory, this user's, or else this machine's."""
    if config:
        os.environ[CONFIG_VARIABLE] = str(config)
    if run_dir:
        os.environ[ENVIRONMENT + "RUN_DIR"] = str(run_dir.absolute())
    settings = load_settings()
    if not {"run_dir"} & settings.model_fields_set and not owners(settings.run_dir) and SYSTEM_RUN_DIR.is_dir():
        settings = settings.model_copy(update={"run_dir": SYSTEM_RUN_DIR})
    timing = Timing.of_ms(settings.link.beat_ms, settings.link.silent_ms)
    return Group(settings, settings.run_dir, timing)


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
    if run_dir.is_dir() and not os.access(run_dir, os.R_OK | os.X_OK):
        raise Refused(f"The run directory {run_dir} is {run_dir.owner()}'s: become that user, or root.")
    found = owners(run_dir)
    if not found:
        raise Refused(f"No group runs in {run_dir}: name its --config or --run-dir.", NO_INPUT)
    return found


def ask(group: Group, names: list[str], message: Message) -> dict[str, Message]:
    """The answers of those processes that gave one within ANSWER_S; only a question is put to a successor, too."""
    loop, answers, dials, told = Loop(), {}, {}, set()
    hello = Hello(SCHEMA, "peoplecounter", os.getpid())

    def tell(name: str) -> None:
        if name not in told or isinstance(message, Describe):
            told.add(name)
            dials[name].send(message)

    try:
        for name in names:
            dials[name] = Dial(
                loop, group.run_dir / f"{PREFIX}{name}.sock", hello, group.timing,
                lambda welcome, name=name: tell(name),
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


def table(group: Group) -> list[dict]:
    """A row for each process: what it says of itself; `state` is ready, starting, silent or down."""
    there = processes(group.run_dir)
    alive = [name for name, pid in there.items() if lives(pid)]
    answers = ask(group, alive, Describe())
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
                "about": said.about,
                "rss_mb": _rss_mb(pid),
                "log_level": said.log_level,
                "counters": said.counters,
            }
        rows.append(row)
    return rows


def supervisor(group: Group) -> str:
    """Who starts the processes of a group: "run", "systemd:PREFIX_OF_UNITS" or "compose"; empty: somebody by hand."""
    for name, pid in processes(group.run_dir).items():
        said = ask(group, [name], Describe()).get(name) if lives(pid) else None
        if isinstance(said, Described):
            return said.supervisor
    raise Refused(f"No process of the group in {group.run_dir} answers.", SOFTWARE)


def restart(group: Group, service: str) -> Iterator[str]:
    """Restarts a process, or all of a service, one after the other; says how each went.

    A process that does not answer is killed. Raises Refused when there is no such process, nobody would start it again,
    or it does not come back.
    """
    for name in _chosen(group.run_dir, service):
        pid = processes(group.run_dir)[name]
        said = ask(group, [name], Describe()).get(name) if lives(pid) else None
        if isinstance(said, Described) and not said.supervisor:
            raise Refused(f"{name} was started by hand: nobody would start it again.", SOFTWARE)
        began_s = time.monotonic()
        if isinstance(said, Described):
            ask(group, [name], Restart())
        elif _is_ours(pid):
            yield f"{name} does not answer: killed"
            os.kill(pid, signal.SIGKILL)
        await_ready(group, name, pid)
        yield f"{name} is ready again after {time.monotonic() - began_s:.1f} s"


def set_level(group: Group, service: str, level: str) -> list[str]:
    """Names of the processes that now log from `level` up."""
    names = _chosen(group.run_dir, service)
    answers = ask(group, names, SetLevel(level))
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


def wait_until(condition: Callable[[], bool], for_s: float, sentence: str) -> None:
    """Returns when the condition holds; raises Refused with the sentence when it does not in time."""
    until_s = time.monotonic() + for_s
    while not condition():
        if time.monotonic() > until_s:
            raise Refused(sentence, SOFTWARE)
        time.sleep(0.1)


def await_ready(group: Group, name: str, before: int = 0) -> None:
    """Returns when a process of this name, another one than the pid `before`, is ready. Raises Refused if it is not."""

    def ready() -> bool:
        pid = owners(group.run_dir).get(name, before)
        said = ask(group, [name], Describe()).get(name) if pid != before and lives(pid) else None
        return isinstance(said, Described) and said.ready and said.pid != before

    wait_until(ready, BACK_S, f"{name} is not ready after {BACK_S:.0f} s: look at its supervisor's log.")


def _is_ours(pid: int) -> bool:
    """True for a service of ours: a pid in a file may by now be somebody else's."""
    try:
        return b"peoplecounter.services." in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def _rss_mb(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20
    except OSError:
        return 0
