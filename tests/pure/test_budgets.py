"""Percentiles of the last seconds beside their budgets."""

from common.settings import Budgets
from services.fusion.budgets import WINDOW_NS, Window

SECOND = 1_000_000_000


def test_p95_is_what_counts_and_old_frames_are_forgotten():
    window = Window(Budgets(end_to_end_ms=30, decode_ms=5))
    for i in range(100):
        window.add(i * SECOND // 100, {"end_to_end": 20.0 if i < 96 else 500.0, "decode": 6.0, "copy": 1.0})
    states = window.states(SECOND)
    assert states.keys() == {"end_to_end", "decode"}  # no budget for a copy, no frame with the others
    assert states["end_to_end"] == {"budget_ms": 30, "p95_ms": 20.0, "over_ms": 0.0}
    assert states["decode"] == {"budget_ms": 5, "p95_ms": 6.0, "over_ms": 1.0}
    window.add(SECOND + WINDOW_NS, {"decode": 1.0})
    assert window.states(SECOND + WINDOW_NS + 1) == {"decode": {"budget_ms": 5, "p95_ms": 1.0, "over_ms": 0.0}}
