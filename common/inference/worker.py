"""The infer services: each offered part is answered with its persons, or dropped with a reason."""

from collections.abc import Callable
from functools import partial

from peoplecounter.common import cores
from peoplecounter.common.engine.base import Boxes, Engine
from peoplecounter.common.engine.placing import Placing
from peoplecounter.common.errors import SOFTWARE, AppError, ModelOutputError
from peoplecounter.common.inference.swap import Swap
from peoplecounter.common.ipc.consumer import Lease, RingConnection, RingConsumer
from peoplecounter.common.ipc.messages import (
    IMAGES_MAX,
    ROW_BYTES,
    Detections,
    FrameHeader,
    Offer,
    Part,
    TensorLayout,
)
from peoplecounter.common.process.runtime import Runtime

MAX_ERRORS_IN_A_ROW = 3  # then the process ends, to be restarted


def run(rt: Runtime) -> None:
    """Infers the part that topology.py names for this service, until the service is asked to end."""
    swap = rt.closing(Swap(rt, cores.threads(rt.settings, rt.row.name)))
    engine = swap.load()
    early = 2 if rt.work.kind == "cuda" else 1  # on a GPU some offers are of frames that are still being decoded
    largest = engine.batch(IMAGES_MAX) if rt.work.kind == "cuda" else 0
    tensors = rt.open_inputs(rt.settings.link.credits * early, engine.input, largest)
    inference = rt.closing(Inference(rt, engine, tensors))
    swap.start(inference)
    if cores.poll(rt.settings):
        rt.work.poll()
    rt.ready()
    while rt.running:
        rt.tick()
        for connection, offer in tensors.offers():
            inference.answer(connection, offer)


Collect = Callable[[], tuple[Boxes, int]]  # see Engine.start


class Inference:
    """Answers offers with detections. On a GPU the next part is queued while this one runs: credit limits how many."""

    def __init__(self, rt: Runtime, engine: Engine, tensors: RingConsumer):
        self._rt, self._engine, self._tensors = rt, engine, tensors
        self._next_engine: Engine | None = None
        self._errors_in_a_row = 0

    def exchange(self, engine: Engine) -> None:
        """From the next part on, uses this engine."""
        if self._next_engine:
            self._next_engine.close()  # it has inferred nothing yet
        self._next_engine = engine

    def close(self) -> None:
        for engine in filter(None, (self._engine, self._next_engine)):
            engine.close()

    def answer(self, connection: RingConnection, offer: Offer) -> None:
        """Leases the part and starts its inference. Every way out either answers the part or drops it with a reason."""
        rt, header, part = self._rt, offer.header, offer.part
        if self._next_engine:  # between two parts, so no part is inferred by both; queued work of the old one finishes
            old, self._engine, self._next_engine = self._engine, self._next_engine, None
            rt.work.on_done(old.close)
        while rt.running and rt.results.behind(header.source) and not rt.late(header):
            rt.tick()  # a lossless source waits here, a live one until its deadline
        lease = self._tensors.lease(connection, offer)
        if lease is None:
            return rt.drop(header, "stale", part)
        if rt.late(header):
            lease.release()
            return rt.drop(header, "deadline", part)
        if header.live and rt.results.full(header.source):
            lease.release()
            return rt.drop(header, "stale", part)
        began_ns = rt.loop.now_ns()
        try:
            batches = self._start(lease, header, part)
        except AppError:  # a link was refused while this process ticked, or the GPU is lost
            raise
        except Exception as error:
            return self._fail(lease, offer, error)
        rt.work.on_done(lambda: self._finish(lease, offer, batches, began_ns))

    def _start(self, lease: Lease, header: FrameHeader, part: Part) -> list[Collect]:
        """Starts every batch of the part, or those before the slot was lost: then the lease is aborted."""
        assert isinstance(lease.layout, TensorLayout)
        frame, edge_px = (header.width, header.height), self._rt.settings.fusion.edge_px
        whole = Placing(part.views, part.first, lease.layout.input.size, frame, edge_px)
        engine, batches = self._engine, list[Collect]()
        for placing in whole.batches(engine.batch):
            start = partial(engine.start, lease.slot, lease.layout, placing)
            batches.append(self._rt.work.call(start, self._rt.tick))
            if lease.stale:
                break
        return batches

    def _finish(self, lease: Lease, offer: Offer, batches: list[Collect], began_ns: int) -> None:
        rt, header, part = self._rt, offer.header, offer.part
        arrived_ns = rt.loop.now_ns()
        try:
            boxes, times_ns = zip(*(collect() for collect in batches))
            if lease.aborted:
                lease.release()
                return rt.drop(header, "stale", part)
        except Exception as error:
            return self._fail(lease, offer, error)
        self._errors_in_a_row = 0
        data, gpu_ns = b"".join(boxes), sum(times_ns)
        ended_ns = rt.loop.now_ns()
        if gpu_ns:
            began_ns = max(began_ns, arrived_ns - gpu_ns)  # it may have waited for its input
        rt.results.send(Detections(header, part, data, began_ns, ended_ns, gpu_ns))
        lease.release()  # last: a process frozen before this has answered a part that its owner takes for lost
        rt.counters["parts_inferred"] += 1
        images, persons = len(part.views), len(data) // ROW_BYTES
        rt.tracer.record(rt.row.name, header, began_ns, ended_ns, images=images, persons=persons, part=part.index)

    def _fail(self, lease: Lease, offer: Offer, error: Exception) -> None:
        self._rt.work.on_done(lease.release)  # behind the work that was queued before the error
        self._errors_in_a_row += 1
        self._rt.drop(offer.header, "engine_error", offer.part)
        known = isinstance(error, ModelOutputError)
        if self._errors_in_a_row >= MAX_ERRORS_IN_A_ROW:
            if known:
                raise AppError(f"The engine failed on {MAX_ERRORS_IN_A_ROW} parts in a row: {error}.", SOFTWARE)
            raise error
        source, seq = offer.header.source, offer.header.seq
        if known:
            self._rt.log.error("the engine failed on %s %d: %s", source, seq, error)
        else:
            self._rt.log.error("the engine failed on %s %d", source, seq, exc_info=error)
