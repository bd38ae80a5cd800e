"""CUDA graphs of an engine's launches: one per (address, batch), captured at first use, the oldest replaced."""

import logging
import threading
from collections import Counter
from collections.abc import Callable

from peoplecounter.common.cuda import CudaError, check, cudart
from peoplecounter.common.ipc.memory import WorkQueue

GRAPHS_MAX = 64  # (address, batch) pairs that have a graph at once
LOADING = threading.Lock()  # held while a thread loads an engine: its calls may break a capture


class GraphCache:
    """Captured launches on the stream of `work`.

    `launch(address, images)` queues a batch and returns whether TensorRT accepted it; it runs once before the capture,
    because a new shape sets itself up outside of a capture. `explain()` says why it was not accepted.
    """

    def __init__(
        self,
        work: WorkQueue,
        launch: Callable[[int, int], bool],
        explain: Callable[[], str],
        counters: Counter[str],
    ):
        self._work, self._launch, self._explain, self._counters = work, launch, explain, counters
        self._graphs: dict[tuple[int, int], object | None] = {}  # oldest first; None: this batch cannot be captured

    def __len__(self) -> int:
        return len(self._graphs)

    def get(self, address: int, images: int) -> object | None:
        """The graph of this batch, captured now if it is new; None when the batch must be launched without one."""
        key = (address, images)
        if key not in self._graphs:
            if not LOADING.acquire(blocking=False):
                return None  # try again with the next batch
            try:
                if len(self._graphs) >= GRAPHS_MAX:
                    self._remove_oldest()
                self._graphs[key] = self._capture(address, images)
            finally:
                LOADING.release()
        return self._graphs[key]

    def close(self) -> None:
        """Frees the graphs; none of them may be running."""
        for graph in self._graphs.values():
            if graph is not None:
                check(cudart.cudaGraphExecDestroy(graph))
        self._graphs.clear()

    def _remove_oldest(self) -> None:
        oldest = self._graphs.pop(next(iter(self._graphs)))
        if oldest is not None:
            self._work.finish()  # it may still be running
            check(cudart.cudaGraphExecDestroy(oldest))

    def _capture(self, address: int, images: int) -> object | None:
        """A graph of one batch; None, with one warning, when TensorRT cannot be captured."""
        if not self._launch(address, images):
            raise RuntimeError(f"TensorRT did not start a batch of {images}: {self._explain()}")
        self._work.finish()
        mode = cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        check(cudart.cudaStreamBeginCapture(self._work.stream, mode))
        launched = self._launch(address, images)
        try:
            graph = check(cudart.cudaStreamEndCapture(self._work.stream))
            if not launched:
                raise RuntimeError(self._explain())
            captured = check(cudart.cudaGraphInstantiate(graph, 0))
            check(cudart.cudaGraphDestroy(graph))
        except (CudaError, RuntimeError) as error:
            log = logging.getLogger("tensorrt")
            log.warning("no CUDA graph for a batch of %d, it is launched without one: %s", images, error)
            return None
        self._counters["graphs_captured"] += 1
        return captured
