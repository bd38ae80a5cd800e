"""Whether live frames keep their time budgets: percentiles of the last seconds against settings.budgets. Pure."""

from collections import deque

import numpy as np

from peoplecounter.common.settings import BudgetSettings

WINDOW_NS = 10_000_000_000


def budget_state(budget_ms: float, times_ms: list[float]) -> dict[str, float]:
    """{"budget_ms", "p95_ms", "over_ms"}; over_ms is 0 when the budget is kept."""
    p95 = round(float(np.percentile(times_ms, 95)), 3)
    return {"budget_ms": budget_ms, "p95_ms": p95, "over_ms": round(max(0.0, p95 - budget_ms), 3)}


class BudgetWindow:
    """The times of the frames of the last WINDOW_NS, by budget."""

    def __init__(self, budgets: BudgetSettings):
        self._budgets = budgets.by_name
        self._times: dict[str, deque[tuple[int, float]]] = {name: deque() for name in self._budgets}

    def add(self, now_ns: int, times_ms: dict[str, float]) -> None:
        """Adds the times of one frame. Times without a budget are ignored."""
        for name, times in self._times.items():
            if name in times_ms:
                times.append((now_ns, times_ms[name]))

    def states(self, now_ns: int) -> dict[str, dict]:
        """Budget -> its state, for budgets that had a frame within the window."""
        found = {}
        for name, times in self._times.items():
            while times and now_ns - times[0][0] > WINDOW_NS:
                times.popleft()
            if times:
                found[name] = budget_state(self._budgets[name], [ms for _, ms in times])
        return found
