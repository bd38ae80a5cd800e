"""A new model for a running group: every infer process loads it beside the old one, then all change at once.

engine swap                            each infer process, on engine.<name>.sock
Prepare(model, sha256)           -->   loads it in a thread, frames go on
                                 <--   Prepared(seconds) | Prepared(refusal): then nobody changes
(all are prepared: written down in the run directory, so a restarted process loads the new one)
Commit                           -->   from the next frame on
                                 <--   Committed
"""

import os
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

from common import engine as engines
from common.engine import Engine, Swapped
from common.errors import SOFTWARE, GpuLost, Refused
from common.journal import Journal
from common.link import Listen, Peer
from common.messages import Commit, Committed, Message, Prepare, Prepared, Welcome
from common.runtime import Runtime

JOURNAL = "engine.journal"
REFUSAL_MAX = 900  # characters


class Swap:
    """The engine that this process begins with, and its exchange while it runs."""

    def __init__(self, rt: Runtime, processes: int):
        self._rt, self._processes = rt, processes
        self._inference = None
        self._engine: Engine | None = None
        self._thread = ThreadPoolExecutor(1, "swap")
        self._loading: tuple[Peer, Future, float] | None = None
        self._ready: tuple[Peer, Engine] | None = None
        self._record: Swapped | None = None  # what this process began with
        welcome = Welcome(f"{rt.name}.{os.getpid()}", os.getpid())
        self._link = Listen(
            rt.loop, rt.settings.run_dir, f"engine.{rt.name}", rt.timing,
            lambda hello: welcome if self._inference else None, self._on_message, self._forget, self._forget,
        )  # fmt: skip
        rt.loop.every_tick(self._look)

    def load(self) -> Engine:
        """The engine of the settings, or the one the group was swapped to; warmed up."""
        self._record = record = read_record(self._rt.settings.run_dir)
        if record:
            self._rt.log.info("this group was swapped to %s", record.model)
        self._engine = self._load(record)
        return self._engine

    def serve(self, inference) -> None:
        """From now on a model can be exchanged for the one `inference` uses."""
        self._inference = inference
        self._link.invite()
        if read_record(self._rt.settings.run_dir) != self._record:
            raise Refused("The group was given another model while this process began: start it again.", SOFTWARE)

    def close(self) -> None:
        self._rt.loop.leave(self._look)
        self._link.close()
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _load(self, swapped: Swapped | None) -> Engine:
        engine = engines.load(self._rt.settings, self._processes, self._rt.work, swapped, self._rt.count)
        engine.warm_up()
        return engine

    def _on_message(self, peer: Peer, message: Message) -> None:
        if isinstance(message, Prepare):
            if self._loading or self._ready:
                self._link.send(peer, Prepared(0, "another model is being swapped in"))
                return
            swapped = Swapped(message.model, message.sha256)
            self._loading = peer, self._thread.submit(self._load, swapped), time.monotonic()
        elif isinstance(message, Commit) and self._ready and self._ready[0] is peer:
            (_, self._engine), self._ready = self._ready, None
            self._inference.exchange(self._engine)
            self._rt.count["engines_swapped"] += 1
            self._link.send(peer, Committed())
        else:
            self._rt.loop.counters["messages_unexpected"] += 1

    def _look(self, now_ns: int) -> None:
        """Tells when a model is loaded, or why it is not."""
        if self._loading is None or not self._loading[1].done():
            return
        (peer, loading, began_s), self._loading = self._loading, None
        error, refusal = loading.exception(), ""
        if isinstance(error, GpuLost):
            raise error
        if error is not None:
            refusal = str(error) if isinstance(error, Refused) else f"it does not load ({error})"
        elif loading.result().input != self._engine.input:
            ours, theirs = self._engine.input, loading.result().input
            refusal = (
                f"It reads {theirs.dtype} {theirs.size_px} px, this group's tensors are {ours.dtype} {ours.size_px} px."
            )
            loading.result().close()
        elif peer.identity not in self._link.peers:
            return loading.result().close()
        else:
            self._ready = peer, loading.result()
        self._link.send(peer, Prepared(time.monotonic() - began_s, refusal[:REFUSAL_MAX]))

    def _forget(self, peer: Peer) -> None:
        """Who asked has gone or gone silent before all were ready: the old model stays."""
        if self._ready and self._ready[0] is peer:
            self._ready[1].close()
            self._ready = None


def read_record(run_dir: Path) -> Swapped | None:
    """What the group of this run directory was swapped to; None: it runs what its settings say."""
    if not (run_dir / JOURNAL).exists():
        return None
    with closing(Journal(run_dir / JOURNAL, Swapped)) as journal:
        return journal.read()


def write_record(run_dir: Path, record: Swapped) -> None:
    with closing(Journal(run_dir / JOURNAL, Swapped)) as journal:
        journal.write(record)
