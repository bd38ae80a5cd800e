"""What infer_global and infer_tiles have in common: one offered part in, its persons or the reason for none out."""

from collections.abc import Callable

import numpy as np

from common.engine import Engine
from common.errors import Refused
from common.messages import Detections, Header, Offer, Part, TensorLayout
from common.runtime import Runtime
from common.upstream import Attached, Upstream

ERRORS_IN_A_ROW = 3  # then the process ends, to be restarted

# (layout, header, part, persons of each image, edge_px) -> float32 [n, 7], see messages.Detections
ToFrame = Callable[[TensorLayout, Header, Part, list[np.ndarray]], np.ndarray]


class Inference:
    """Answers offers with detections. Between two images it ticks, so a long batch is not taken for a freeze."""

    def __init__(self, rt: Runtime, engine: Engine, tensors: Upstream, to_frame: ToFrame):
        self._rt, self._engine, self._tensors, self._to_frame = rt, engine, tensors, to_frame
        self._errors = 0

    def answer(self, owner: Attached, offer: Offer) -> None:
        """Leases the part, infers, sends; every way out either answers the part or says why not."""
        rt, header, part = self._rt, offer.header, offer.part
        while rt.running and rt.results.full and not rt.late(header):
            rt.tick()  # fusion is behind: a lossless source waits here, a live one until its deadline
        with self._tensors.lease(owner, offer) as slot:
            if slot is None:
                return rt.drop(header, "stale", part)
            if rt.late(header):
                return rt.drop(header, "deadline", part)
            layout, began_ns = owner.layout, rt.loop.now_ns()
            try:
                persons = self._run(_images(slot, layout, part))
                boxes = self._to_frame(layout, header, part, persons)
            except Refused:  # said by a link while we ticked
                raise
            except Exception:
                return self._failed(offer)
        self._errors = 0
        ended_ns = rt.loop.now_ns()
        rt.count["parts_inferred"] += 1
        rt.tracer.record(rt.service, header, began_ns, ended_ns, images=part.count, persons=len(boxes), part=part.index)
        data = boxes.astype("<f4").tobytes()
        rt.results.send(Detections(header, part, data, began_ns, ended_ns))

    def _run(self, images: np.ndarray) -> list[np.ndarray]:
        persons = []
        for first in range(0, len(images), self._engine.max_batch):
            if first:
                self._rt.tick(0)
            persons += self._engine.run(images[first : first + self._engine.max_batch])
        if not all(np.isfinite(found).all() for found in persons):
            raise ValueError("the model's boxes are not finite")
        return persons

    def _failed(self, offer: Offer) -> None:
        self._errors += 1
        self._rt.drop(offer.header, "engine_error", offer.part)
        if self._errors >= ERRORS_IN_A_ROW:
            raise
        self._rt.log.exception("engine failed on %s %d", offer.header.source, offer.header.seq)


def _images(slot: np.ndarray, layout: TensorLayout, part: Part) -> np.ndarray:
    """The part's images [count, 3, S, S] in the slot, without a copy."""
    images = slot.view(layout.dtype).reshape(layout.images, 3, layout.size_px, layout.size_px)
    return images[part.first : part.first + part.count]
