"""Are live frames as fast as they are meant to be? Percentiles of the last seconds beside settings.budgets. Pure."""

from collections import deque

import numpy as np

from common.settings import Budgets

WINDOW_NS = 10_000_000_000


class Window:
    """Times of the frames of the last WINDOW_NS, by budget."""

    def __init__(self, budgets: Budgets):
        self._budgets = budgets.by_name
        self._times: dict[str, deque[tuple[int, float]]] = {name: deque() for name in self._budgets}

    def add(self, now_ns: int, times_ms: dict[str, float]) -> None:
        """The times of one frame; what has no budget is ignored."""
        for name, times in self._times.items():
            if name in times_ms:
                times.append((now_ns, times_ms[name]))

    def states(self, now_ns: int) -> dict[str, dict]:
        """Budget -> `budget_ms`, `p95_ms`, `over_ms` (0: it is kept); only those of which there was a frame."""
        found = {}
        for name, times in self._times.items():
            while times and now_ns - times[0][0] > WINDOW_NS:
                times.popleft()
            if times:
                p95 = float(np.percentile([ms for _, ms in times], 95))
                over = max(0.0, p95 - self._budgets[name])
                found[name] = {"budget_ms": self._budgets[name], "p95_ms": round(p95, 3), "over_ms": round(over, 3)}
        return found
