"""A new model for a running group: every infer process loads it beside the old one, then all change at once.

engine swap                            each infer process, on its control socket
Prepare(model, sha256)           -->   loads it in a thread while frames go on
                                 <--   Prepared(seconds), or Prepared(refusal): then no process changes
(all are prepared: recorded in the run directory, so that a restarted process loads the new model)
Commit                           -->   uses it from the next frame on
                                 <--   Committed
"""

import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from peoplecounter.common.engine.base import Engine
from peoplecounter.common.engine.loading import load_engine
from peoplecounter.common.engine.model import SwappedModel
from peoplecounter.common.errors import SOFTWARE, AppError, GpuLost
from peoplecounter.common.ipc.link import Peer
from peoplecounter.common.ipc.messages import Commit, Committed, Prepare, Prepared
from peoplecounter.common.process.journal import Journal
from peoplecounter.common.process.runtime import Runtime

JOURNAL = "engine.journal"
REFUSAL_MAX = 900  # characters


class Exchange(Protocol):
    """What uses the engine."""

    def exchange(self, engine: Engine) -> None:
        """From the next part on, uses this engine."""


@dataclass(frozen=True)
class _Loading:
    peer: Peer
    future: Future[Engine]
    began_s: float


class Swap:
    """The engine that this process starts with, and its exchange while the process runs."""

    def __init__(self, rt: Runtime, threads: int):
        self._rt, self._threads = rt, threads
        self._inference: Exchange | None = None
        self._engine: Engine | None = None
        self._thread = ThreadPoolExecutor(1, "swap")
        self._loading: _Loading | None = None
        self._prepared: tuple[Peer, Engine] | None = None
        self._record: SwappedModel | None = None  # what this process started with
        rt.control.on(Prepare, self._prepare)
        rt.control.on(Commit, self._commit)
        rt.control.on_lost.append(self._forget)
        rt.loop.every_tick(self._check_loading)

    def load(self) -> Engine:
        """The engine of the settings, or the one that the group was swapped to, warmed up."""
        self._record = record = read_record(self._rt.settings.run_dir)
        if record:
            self._rt.log.info("this group was swapped to %s", record.model)
        return self._use(self._load(record))

    def start(self, inference: Exchange) -> None:
        """From now on the engine of `inference` can be exchanged."""
        self._inference = inference
        if read_record(self._rt.settings.run_dir) != self._record:
            raise AppError("The group was swapped to another model while this process started: restart it.", SOFTWARE)

    def close(self) -> None:
        self._rt.loop.stop_calling(self._check_loading)
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _use(self, engine: Engine) -> Engine:
        """From now on this is the current engine, which `ps` shows."""
        self._engine, self._rt.about = engine, engine.about
        return engine

    def _load(self, swapped: SwappedModel | None) -> Engine:
        engine = load_engine(self._rt.settings, self._threads, self._rt.work, swapped, self._rt.counters)
        engine.warm_up()
        return engine

    def _prepare(self, peer: Peer, message: Prepare) -> None:
        if self._inference is None:
            self._rt.control.send(peer, Prepared(0, "it is still starting"))
        elif self._loading or self._prepared:
            self._rt.control.send(peer, Prepared(0, "another model is being swapped in"))
        else:
            future = self._thread.submit(self._load, SwappedModel(message.model, message.sha256))
            self._loading = _Loading(peer, future, time.monotonic())

    def _commit(self, peer: Peer, message: Commit) -> None:
        if self._inference is None or self._prepared is None or self._prepared[0] is not peer:
            self._rt.counters["messages_unexpected"] += 1
            return
        engine = self._use(self._prepared[1])
        self._prepared = None
        self._inference.exchange(engine)
        self._rt.counters["engines_swapped"] += 1
        self._rt.control.send(peer, Committed())

    def _check_loading(self, now_ns: int) -> None:
        """Answers Prepare when the model is loaded or has failed to load."""
        loading = self._loading
        if loading is None or not loading.future.done():
            return
        self._loading = None
        error, refusal = loading.future.exception(), ""
        if isinstance(error, GpuLost):
            raise error
        if isinstance(error, AppError):
            refusal = str(error)
        elif error is not None:
            refusal = f"the model cannot be loaded ({error})"
        else:
            engine = loading.future.result()
            if not self._rt.control.is_connected(loading.peer):
                engine.close()
                return
            refusal = self._mismatch(engine)
            if refusal:
                engine.close()
            else:
                self._prepared = loading.peer, engine
        prepared = Prepared(time.monotonic() - loading.began_s, refusal[:REFUSAL_MAX])
        self._rt.control.send(loading.peer, prepared)

    def _mismatch(self, engine: Engine) -> str:
        """Why this engine cannot replace the current one; empty when it can."""
        assert self._engine is not None
        ours, theirs = self._engine.input, engine.input
        if theirs == ours:
            return ""
        return f"The model reads {theirs}, this group's tensors are {ours}."

    def _forget(self, peer: Peer) -> None:
        """The peer that asked for the swap has gone before all were ready: the old model stays."""
        if self._prepared and self._prepared[0] is peer:
            self._prepared[1].close()
            self._prepared = None


def read_record(run_dir: Path) -> SwappedModel | None:
    """The model that the group of this run directory was swapped to; None: the model of its settings."""
    if not (run_dir / JOURNAL).exists():
        return None
    with closing(Journal(run_dir / JOURNAL, SwappedModel)) as journal:
        return journal.read()


def write_record(run_dir: Path, record: SwappedModel) -> None:
    """Records the model that a group was swapped to."""
    with closing(Journal(run_dir / JOURNAL, SwappedModel)) as journal:
        journal.write(record)
