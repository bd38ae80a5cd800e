"""infer_tiles: one group of a frame's tiles -> detections; start more of these to infer groups side by side.

tensors ring, parts "tiles" --> engine --> results to fusion
"""

from functools import partial

import numpy as np

from peoplecounter.common.geometry import TileGrid
from peoplecounter.common.inference.swap import Swap
from peoplecounter.common.inference.worker import Inference, credits
from peoplecounter.common.ipc.consumer import Upstream
from peoplecounter.common.ipc.messages import Header, Part, TensorLayout
from peoplecounter.common.process.runtime import Runtime, serve


def run(rt: Runtime) -> None:
    settings, workers = rt.settings, rt.settings.workers
    swap = rt.closing(Swap(rt, workers.infer_global + workers.infer_tiles))
    engine = swap.load()
    hello = rt.hello("tiles", credits(rt), engine.input)
    rt.rings = tensors = rt.closing(Upstream(rt.loop, settings.run_dir, "tensors", hello, rt.timing, rt.work))
    inference = rt.closing(Inference(rt, engine, tensors, partial(to_frame, edge_px=settings.fusion.edge_px)))
    swap.serve(inference)
    rt.ready()
    while rt.running:
        rt.tick()
        for owner, offer in tensors.offers():
            inference.answer(owner, offer)


def to_frame(layout: TensorLayout, header: Header, part: Part, persons: np.ndarray, edge_px: float) -> np.ndarray:
    """Persons in each tile -> float32 [n, 7] in frame pixels, with their tile and which of its inner edges cut them."""
    grid = TileGrid(header.width, header.height, layout.size_px, layout.overlap)
    tiles = persons[:, 0].astype(np.intp) + part.first - 1  # image 0 of the slot is the letterboxed frame
    boxes, cut = grid.to_frame(tiles, persons[:, 1:5], edge_px)
    return np.hstack([boxes, persons[:, 5:6], cut[:, None].astype(np.float32), tiles[:, None].astype(np.float32)])


if __name__ == "__main__":
    serve("infer_tiles", run)
