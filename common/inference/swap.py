"""A new model for a running group: every infer process loads it beside the old one, then all change at once.

engine swap                            each infer process, on its control socket
Prepare(model, sha256)           -->   loads it in a thread, frames go on
                                 <--   Prepared(seconds) | Prepared(refusal): then nobody changes
(all are prepared: written down in the run directory, so a restarted process loads the new one)
Commit                           -->   from the next frame on
                                 <--   Committed
"""

import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

from peoplecounter.common.engine import Engine, Swapped, load_engine
from peoplecounter.common.errors import SOFTWARE, GpuLost, Refused
from peoplecounter.common.ipc.link import Peer
from peoplecounter.common.ipc.messages import Commit, Committed, Prepare, Prepared
from peoplecounter.common.process.journal import Journal
from peoplecounter.common.process.runtime import Runtime

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
        rt.control.on(Prepare, self._prepare)
        rt.control.on(Commit, self._commit)
        rt.control.on_lost.append(self._forget)
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
        if read_record(self._rt.settings.run_dir) != self._record:
            raise Refused("The group was given another model while this process began: start it again.", SOFTWARE)

    def close(self) -> None:
        self._rt.loop.leave(self._look)
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _load(self, swapped: Swapped | None) -> Engine:
        engine = load_engine(self._rt.settings, self._processes, self._rt.work, swapped, self._rt.count)
        engine.warm_up()
        return engine

    def _prepare(self, peer: Peer, message: Prepare) -> None:
        if self._inference is None or self._loading or self._ready:
            busy = "another model is being swapped in" if self._inference else "it has only begun"
            self._rt.control.send(peer, Prepared(0, busy))
            return
        swapped = Swapped(message.model, message.sha256)
        self._loading = peer, self._thread.submit(self._load, swapped), time.monotonic()

    def _commit(self, peer: Peer, message: Commit) -> None:
        if not self._ready or self._ready[0] is not peer:
            self._rt.count["messages_unexpected"] += 1
            return
        (_, self._engine), self._ready = self._ready, None
        self._inference.exchange(self._engine)
        self._rt.count["engines_swapped"] += 1
        self._rt.control.send(peer, Committed())

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
        elif not self._rt.control.asks(peer):
            return loading.result().close()
        else:
            self._ready = peer, loading.result()
        self._rt.control.send(peer, Prepared(time.monotonic() - began_s, refusal[:REFUSAL_MAX]))

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
