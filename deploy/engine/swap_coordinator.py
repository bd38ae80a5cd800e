"""Gives a running group another model, all infer processes at once or none. Their end of it: common/swap.py."""

import os
import time
from pathlib import Path

from peoplecounter.common.engine import Swapped
from peoplecounter.common.errors import CONFIG, SOFTWARE, Refused
from peoplecounter.common.files import sha256
from peoplecounter.common.inference.swap import write_record
from peoplecounter.common.ipc.link import Dial, Timing
from peoplecounter.common.ipc.loop import Loop
from peoplecounter.common.ipc.messages import SCHEMA, Commit, Committed, Hello, Message, Prepare, Prepared, Welcome
from peoplecounter.common.process.control import PREFIX
from peoplecounter.deploy.group import client

REACH_S = 5.0  # until every process has answered a hello
PREPARE_S = 120.0  # until a model is loaded and refitted
COMMIT_S = 10.0


class _Process:
    """One infer process, as it is told to change."""

    def __init__(self, loop: Loop, path: Path, timing: Timing):
        self.name = path.stem.removeprefix(PREFIX)
        self.reached, self.lost, self.committed = False, False, False
        self.prepared: Prepared | None = None
        hello = Hello(SCHEMA, "engine swap", os.getpid())
        self.link = Dial(loop, path, hello, timing, self._on_welcome, self._on_message, self._on_lost)

    def _on_welcome(self, welcome: Welcome) -> None:
        self.reached = True

    def _on_message(self, message: Message) -> None:
        if isinstance(message, Prepared):
            self.prepared = message
        self.committed = self.committed or isinstance(message, Committed)

    def _on_lost(self) -> None:
        self.lost = True


def swap(run_dir: Path, model: Path, timing: Timing) -> dict[str, float]:
    """Seconds that each process took to load the model beside the old one.

    Raises Refused, in one sentence that says whether anybody changed.
    """
    paths = _infer_processes(run_dir)
    if not paths:
        raise Refused(f"No infer service runs in {run_dir}: name the group's --config or --run-dir.", CONFIG)
    digest = sha256(_read(model))
    loop = Loop()
    processes = [_Process(loop, path, timing) for path in paths]
    try:
        _prepare(loop, processes, Prepare(str(model.absolute()), digest))
        if _infer_processes(run_dir) != paths:
            raise Refused("Infer services came or went meanwhile, all keep the old model: try again.", SOFTWARE)
        write_record(run_dir, Swapped(str(model.absolute()), digest))  # from here on who is restarted loads it
        for one in processes:
            one.link.send(Commit())
        late = _wait(loop, COMMIT_S, lambda: [p for p in processes if not p.committed and not p.lost])
        if late:
            raise Refused(f"{late[0].name} has not changed yet: restart it, it will load the new model.", SOFTWARE)
        return {p.name: p.prepared.seconds for p in processes}
    finally:
        for one in processes:
            one.link.close()
        loop.close()


def _prepare(loop: Loop, processes: list[_Process], prepare: Prepare) -> None:
    """Every process has the new model beside the old one, or all keep the old one."""
    late = _wait(loop, REACH_S, lambda: [p for p in processes if not p.reached])
    if late:
        raise Refused(f"{late[0].name} does not answer: all keep the old model.", SOFTWARE)
    for one in processes:
        one.link.send(prepare)
    late = _wait(
        loop, PREPARE_S, lambda: [p for p in processes if not p.prepared and not any(q.lost for q in processes)]
    )
    gone = next((p for p in processes if p.lost), None)
    if gone:
        raise Refused(f"{gone.name} ended meanwhile, all keep the old model: try again.", SOFTWARE)
    if late:
        raise Refused(f"{late[0].name} did not load it within {PREPARE_S:.0f} s: all keep the old model.", SOFTWARE)
    refusal = next((p for p in processes if p.prepared.refusal), None)
    if refusal:
        raise Refused(f"{refusal.name} refused the model, all keep the old one: {refusal.prepared.refusal}")


def _wait(loop: Loop, seconds: float, missing) -> list[_Process]:
    """Ticks until nobody is missing, for a bounded time; returns who still is."""
    end_s = time.monotonic() + seconds
    while (left := missing()) and time.monotonic() < end_s:
        loop.tick()
    return left


def _infer_processes(run_dir: Path) -> list[Path]:
    """Sockets of the infer processes that live: a killed one leaves its socket behind."""
    there = client.owners(run_dir)
    names = (name for name, pid in there.items() if name.startswith("infer_") and client.lives(pid))
    return [run_dir / f"{PREFIX}{name}.sock" for name in names]


def _read(model: Path) -> bytes:
    try:
        str(model).encode()
        return model.read_bytes()
    except (OSError, UnicodeEncodeError) as error:
        raise Refused(
            f"The model {str(model)!r} cannot be read: {getattr(error, 'strerror', 'its name is no text')}."
        ) from None
