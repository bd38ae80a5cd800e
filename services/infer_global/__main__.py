"""infer_global: the letterboxed frame -> detections of the people too large for a tile.

tensors ring, part "global" --> engine --> results to fusion
"""

import numpy as np

from peoplecounter.common.geometry import Letterbox
from peoplecounter.common.inference.swap import Swap
from peoplecounter.common.inference.worker import Inference, credits
from peoplecounter.common.ipc.consumer import Upstream
from peoplecounter.common.ipc.messages import Header, Part, TensorLayout
from peoplecounter.common.process.runtime import Runtime, serve


def run(rt: Runtime) -> None:
    settings, workers = rt.settings, rt.settings.workers
    swap = rt.closing(Swap(rt, workers.infer_global + workers.infer_tiles))
    engine = swap.load()
    hello = rt.hello("global", credits(rt), engine.input)
    rt.rings = tensors = rt.closing(Upstream(rt.loop, settings.run_dir, "tensors", hello, rt.timing, rt.work))
    inference = rt.closing(Inference(rt, engine, tensors, to_frame))
    swap.serve(inference)
    rt.ready()
    while rt.running:
        rt.tick()
        for owner, offer in tensors.offers():
            inference.answer(owner, offer)


def to_frame(layout: TensorLayout, header: Header, part: Part, persons: np.ndarray) -> np.ndarray:
    """Persons in the letterboxed image -> float32 [n, 7] in frame pixels; nothing cuts them, they have no tile."""
    boxes = Letterbox(header.width, header.height, layout.size_px).to_frame(persons[:, 1:5])
    whole = np.tile(np.array([0, -1], np.float32), (len(persons), 1))
    return np.hstack([boxes, persons[:, 5:6], whole])


if __name__ == "__main__":
    serve("infer_global", run)
