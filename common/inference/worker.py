"""What infer_global and infer_tiles have in common: one offered part in, its persons or the reason for none out."""

from collections.abc import Callable

import numpy as np

from peoplecounter.common.engine import Engine
from peoplecounter.common.errors import Refused
from peoplecounter.common.ipc.consumer import Attached, Lease, Upstream
from peoplecounter.common.ipc.messages import Detections, Header, Offer, Part, TensorLayout
from peoplecounter.common.process.runtime import Runtime

ERRORS_IN_A_ROW = 3  # then the process ends, to be restarted

# (layout, header, part, persons of the part (see engine.protocol)) -> float32 [n, 7], see messages.Detections
ToFrame = Callable[[TensorLayout, Header, Part, np.ndarray], np.ndarray]


def credits(rt: Runtime) -> int:
    """Parts an infer process accepts at once: on a GPU some of them are of frames that are still being decoded."""
    return rt.settings.link.credits * (2 if rt.work.kind == "cuda" else 1)


class Inference:
    """Answers offers with detections. On a GPU the next part is queued while this one runs: credit says how many."""

    def __init__(self, rt: Runtime, engine: Engine, tensors: Upstream, to_frame: ToFrame):
        self._rt, self._engine, self._tensors, self._to_frame = rt, engine, tensors, to_frame
        self._next: Engine | None = None
        self._errors = 0

    def exchange(self, engine: Engine) -> None:
        """The next part is inferred by this engine, and all after it."""
        if self._next:
            self._next.close()  # it has had no part yet
        self._next = engine

    def close(self) -> None:
        for engine in filter(None, (self._engine, self._next)):
            engine.close()

    def answer(self, owner: Attached, offer: Offer) -> None:
        """Leases the part and starts its inference; every way out either answers the part or says why not."""
        rt, header, part = self._rt, offer.header, offer.part
        if self._next:  # between two parts, so none is of both; what the old one still has queued it finishes
            old, self._engine, self._next = self._engine, self._next, None
            rt.work.then(old.close)
        while rt.running and rt.results.full and not rt.late(header):
            rt.tick()  # fusion is behind: a lossless source waits here, a live one until its deadline
        lease = self._tensors.lease(owner, offer)
        if lease is None:
            return rt.drop(header, "stale", part)
        if rt.late(header):
            lease.release()
            return rt.drop(header, "deadline", part)
        began_ns = rt.loop.now_ns()
        try:
            jobs = self._start(lease, part)
        except Refused:  # said by a link while we ticked, or by a GPU that is lost
            raise
        except Exception as error:
            return self._failed(lease, offer, error)
        rt.work.then(lambda: self._finish(lease, offer, jobs, began_ns))

    def _start(self, lease: Lease, part: Part) -> list[tuple[int, Callable]]:
        """(first image, its job) of every batch, as far as the slot was not lost meanwhile: then it is lifted."""
        jobs, first = [], 0
        while first < part.count:
            if first:
                self._rt.tick(0)  # a long batch on a CPU is not a freeze
                if lease.stale:
                    break
            count = self._engine.batch(part.count - first)
            jobs.append((first, self._engine.start(lease.slot, lease.layout, part.first + first, count)))
            first += count
        return jobs

    def _finish(self, lease: Lease, offer: Offer, jobs: list[tuple[int, Callable]], began_ns: int) -> None:
        rt, header, part = self._rt, offer.header, offer.part
        arrived_ns = rt.loop.now_ns()
        try:
            found, times_ns = zip(*[job() for _, job in jobs])
            if lease.lifted:
                lease.release()
                return rt.drop(header, "stale", part)
            persons = np.vstack(
                [p + np.array([first, 0, 0, 0, 0, 0], np.float32) for p, (first, _) in zip(found, jobs)]
            )
            if not np.isfinite(persons).all():
                raise ValueError("the model's boxes are not finite")
            boxes = self._to_frame(lease.layout, header, part, persons)
        except Exception as error:
            return self._failed(lease, offer, error)
        self._errors = 0
        ended_ns, gpu_ns = rt.loop.now_ns(), sum(times_ns)
        began_ns = max(began_ns, arrived_ns - gpu_ns) if gpu_ns else began_ns  # it may have waited for input
        data = boxes.astype("<f4").tobytes()
        rt.results.send(Detections(header, part, data, began_ns, ended_ns, gpu_ns))
        lease.release()  # last: who is frozen in between has answered what the owner takes for lost
        rt.count["parts_inferred"] += 1
        rt.tracer.record(rt.service, header, began_ns, ended_ns, images=part.count, persons=len(boxes), part=part.index)

    def _failed(self, lease: Lease, offer: Offer, error: Exception) -> None:
        self._rt.work.then(lease.release)  # behind what was queued before it failed
        self._errors += 1
        self._rt.drop(offer.header, "engine_error", offer.part)
        if self._errors >= ERRORS_IN_A_ROW:
            raise error
        self._rt.log.error("engine failed on %s %d", offer.header.source, offer.header.seq, exc_info=error)
