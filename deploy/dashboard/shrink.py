"""Scales a surface in a slot to a small picture in this process' memory, and says when the slot was read."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import av
import numpy as np

from peoplecounter.common.ipc.memory import Slot, WorkQueue
from peoplecounter.common.ipc.messages import SurfaceLayout
from peoplecounter.deploy.report.pictures import small

OnShrunk = Callable[[av.VideoFrame], None]


class Shrinker(Protocol):
    def is_ready(self, layout: SurfaceLayout, width: int) -> bool:
        """True when surfaces of this layout can be scaled to this width; what that needs begins with the question."""
        ...

    def shrink(self, slot: Slot, layout: SurfaceLayout, width: int, on_shrunk: OnShrunk) -> None:
        """Calls `on_shrunk`, from the loop, with a picture of at most this width: the slot is not needed any more."""


class CpuShrinker:
    """For shared memory."""

    def is_ready(self, layout: SurfaceLayout, width: int) -> bool:
        return True

    def shrink(self, slot: np.ndarray, layout: SurfaceLayout, width: int, on_shrunk: OnShrunk) -> None:
        on_shrunk(small(layout, slot, width))


class GpuShrinker:
    """For GPU memory. Torch is loaded, and each kernel compiled, in a thread: the loop goes on beating."""

    def __init__(self, work: WorkQueue):
        self._work = work
        self._thread = ThreadPoolExecutor(1, "shrink")
        self._kernel: Any = None
        self._prepared: dict[tuple[SurfaceLayout, int], Future[None]] = {}

    def is_ready(self, layout: SurfaceLayout, width: int) -> bool:
        key = layout, width
        if key not in self._prepared:
            self._prepared[key] = self._thread.submit(self._prepare, layout, width)
        if not self._prepared[key].done():
            return False
        self._prepared[key].result()
        return True

    def shrink(self, block: Slot, layout: SurfaceLayout, width: int, on_shrunk: OnShrunk) -> None:
        copied = self._kernel.shrink(block, layout, width)
        self._work.on_done(lambda: on_shrunk(small(copied.layout, copied.surface(), width)))

    def _prepare(self, layout: SurfaceLayout, width: int) -> None:
        from peoplecounter.deploy.dashboard.shrink_triton import ShrinkKernel

        self._kernel = self._kernel or ShrinkKernel(self._work.stream)
        self._kernel.prepare(layout, width)


def load_shrinker(work: WorkQueue) -> Shrinker:
    """The one for this kind of memory."""
    return CpuShrinker() if work.kind == "shm" else GpuShrinker(work)
