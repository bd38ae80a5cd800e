"""Gives a running group another model, all infer processes at once or none. Their end of it: common/swap.py."""

import fcntl
import os
import time
from pathlib import Path

from common import plans
from common.errors import CONFIG, SOFTWARE, Refused
from common.link import Dial, Timing
from common.loop import Loop
from common.messages import SCHEMA, Commit, Committed, Hello, Message, Prepare, Prepared, Welcome
from common.swap import Record, read_record, write_record

REACH_S = 5.0  # until every process has answered a hello
PREPARE_S = 120.0  # until a model is loaded and refitted
COMMIT_S = 10.0


class _Process:
    """One infer process, as it is told to change."""

    def __init__(self, loop: Loop, path: Path, timing: Timing):
        self.name = path.stem.removeprefix("engine.")
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
    """Seconds that each process took to load the model beside the old one. Raises Refused when nothing was changed,
    and says so."""
    paths = sorted(path for path in run_dir.glob("engine.*.sock") if _owned(path))
    if not paths:
        raise Refused(f"No infer service runs in {run_dir}: name the group's --config or --run-dir.", CONFIG)
    digest = plans.sha256(_read(model))
    loop = Loop()
    processes = [_Process(loop, path, timing) for path in paths]
    try:
        _until(loop, processes, lambda p: p.reached, REACH_S, "does not answer")
        for one in processes:
            one.link.send(Prepare(str(model.absolute()), digest))
        _until(loop, processes, lambda p: p.prepared, PREPARE_S, "did not load it in time")
        refusal = next((p for p in processes if p.prepared.refusal), None)
        if refusal:
            raise Refused(f"{refusal.name} refused the model, all keep the old one: {refusal.prepared.refusal}")
        before = read_record(run_dir)
        write_record(run_dir, Record(str(model.absolute()), digest))  # from here on a restarted process loads it
        for one in processes:
            one.link.send(Commit())
        try:
            _until(loop, processes, lambda p: p.committed, COMMIT_S, "did not change")
        except Refused as refusal:
            if not any(p.committed for p in processes):
                write_record(run_dir, before) if before else (run_dir / "engine.journal").unlink()
                raise
            raise Refused(f"{refusal} Others did: restart it, it will load the new model.", SOFTWARE) from None
        return {p.name: p.prepared.seconds for p in processes}
    finally:
        for one in processes:
            one.link.close()
        loop.close()


def _until(loop: Loop, processes: list[_Process], done, seconds: float, failure: str) -> None:
    end_s = time.monotonic() + seconds
    while not all(done(p) for p in processes):
        loop.tick()
        gone = next((p for p in processes if p.lost), None)
        if gone:
            raise Refused(f"{gone.name} ended meanwhile: run 'engine swap' again.", SOFTWARE)
        if time.monotonic() > end_s:
            late = next(p for p in processes if not done(p))
            raise Refused(f"{late.name} {failure}: the others keep the old model.", SOFTWARE)


def _owned(socket: Path) -> bool:
    """True when the process that binds it lives: a killed one leaves its socket behind, but not its lock."""
    try:
        with socket.with_suffix(".lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        pass
    return False


def _read(model: Path) -> bytes:
    try:
        return model.read_bytes()
    except OSError as error:
        raise Refused(f"The model {model} cannot be read: {error.strerror}.") from None
