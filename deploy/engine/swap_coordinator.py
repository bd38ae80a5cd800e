"""Swaps the model of a running group, in all infer processes or in none. Their side is common/inference/swap.py."""

import os
import time
from pathlib import Path

from peoplecounter.common.engine.model import SwappedModel, read_model
from peoplecounter.common.errors import CONFIG, SOFTWARE, AppError
from peoplecounter.common.files import sha256
from peoplecounter.common.inference.swap import write_record
from peoplecounter.common.ipc.link import LinkClient, Timing
from peoplecounter.common.ipc.loop import Loop
from peoplecounter.common.ipc.messages import SCHEMA, Commit, Committed, Hello, Message, Prepare, Prepared, Welcome
from peoplecounter.common.process.control import PREFIX
from peoplecounter.common.settings import EngineSettings
from peoplecounter.deploy.group import client

REACH_S = 5.0  # until every process has answered a hello
PREPARE_S = 120.0  # until a model is loaded and refitted
COMMIT_S = 10.0
LIMIT_MB = 65_536  # the processes themselves apply engine.limit_mb


class _Process:
    """One infer process."""

    def __init__(self, loop: Loop, path: Path, timing: Timing):
        self.name = path.stem.removeprefix(PREFIX)
        self.reached, self.lost, self.committed = False, False, False
        self.prepared: Prepared | None = None
        hello = Hello(SCHEMA, "engine swap", os.getpid())
        self.link = LinkClient(loop, path, hello, timing, self._on_welcome, self._on_message, self._on_lost)

    def _on_welcome(self, welcome: Welcome) -> None:
        self.reached = True

    def _on_message(self, message: Message) -> None:
        if isinstance(message, Prepared):
            self.prepared = message
        self.committed = self.committed or isinstance(message, Committed)

    def _on_lost(self) -> None:
        self.lost = True


def swap_model(run_dir: Path, model: Path, timing: Timing) -> dict[str, float]:
    """Swaps a group to another model; returns the seconds that each process took to load it.

    Raises AppError, which says whether processes changed.
    """
    paths = _infer_processes(run_dir)
    if not paths:
        raise AppError(f"No infer service runs in {run_dir}: use --config or --run-dir.", CONFIG)
    try:
        str(model).encode()
    except UnicodeEncodeError:
        raise AppError(f"The model {str(model)!r} cannot be read: its name is not valid text.") from None
    digest = sha256(read_model(EngineSettings(model=str(model), limit_mb=LIMIT_MB)).blob)
    loop = Loop()
    processes = [_Process(loop, path, timing) for path in paths]
    try:
        _prepare(loop, processes, Prepare(str(model.absolute()), digest))
        if _infer_processes(run_dir) != paths:
            raise AppError(
                "Infer processes started or ended meanwhile, so all keep the old model: try again.", SOFTWARE
            )
        write_record(run_dir, SwappedModel(str(model.absolute()), digest))  # from now on a restarted process loads it
        for process in processes:
            process.link.send(Commit())
        late = _wait(loop, COMMIT_S, lambda: [p for p in processes if not p.committed and not p.lost])
        if late:
            raise AppError(f"{late[0].name} has not changed yet: restart it to load the new model.", SOFTWARE)
        return {p.name: p.prepared.seconds for p in processes if p.prepared}
    finally:
        for process in processes:
            process.link.close()
        loop.close()


def _prepare(loop: Loop, processes: list[_Process], prepare: Prepare) -> None:
    """Makes every process load the new model. Raises AppError when one cannot: then all keep the old model."""
    late = _wait(loop, REACH_S, lambda: [p for p in processes if not p.reached])
    if late:
        raise AppError(f"{late[0].name} does not answer, so all keep the old model.", SOFTWARE)
    for process in processes:
        process.link.send(prepare)
    late = _wait(
        loop, PREPARE_S, lambda: [p for p in processes if not p.prepared and not any(q.lost for q in processes)]
    )
    gone = next((p for p in processes if p.lost), None)
    if gone:
        raise AppError(f"{gone.name} ended meanwhile, so all keep the old model: try again.", SOFTWARE)
    if late:
        raise AppError(
            f"{late[0].name} did not load the model within {PREPARE_S:.0f} s, so all keep the old model.", SOFTWARE
        )
    for process in processes:
        if process.prepared and process.prepared.refusal:
            raise AppError(f"{process.name} refused the model, so all keep the old one: {process.prepared.refusal}")


def _wait(loop: Loop, seconds: float, missing) -> list[_Process]:
    """Ticks until no process is missing, for a bounded time; returns the missing ones."""
    end_s = time.monotonic() + seconds
    while (left := missing()) and time.monotonic() < end_s:
        loop.tick()
    return left


def _infer_processes(run_dir: Path) -> list[Path]:
    """Control sockets of the running infer processes: a killed process leaves its socket behind."""
    pids = client.owners(run_dir)
    names = (name for name, pid in pids.items() if name.startswith("infer_") and client.is_running(pid))
    return [run_dir / f"{PREFIX}{name}.sock" for name in names]
