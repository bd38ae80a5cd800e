"""Percentiles of the last seconds beside their budgets."""

from rich.text import Text

from peoplecounter.common.budgets import WINDOW_NS, BudgetWindow
from peoplecounter.common.settings import BudgetSettings
from peoplecounter.deploy.cli.display import LiveTable, PlainLines, summary_lines
from peoplecounter.deploy.group.subscribe import Tally

SECOND = 1_000_000_000
TOTALS = {"frames": 20, "counted": 20, "incomplete": 0, "dropped": {}}


def test_p95_is_what_counts_and_old_frames_are_forgotten():
    window = BudgetWindow(BudgetSettings(end_to_end_ms=30, decode_ms=5))
    for i in range(100):
        window.add(i * SECOND // 100, {"end_to_end": 20.0 if i < 96 else 500.0, "decode": 6.0, "copy": 1.0})
    states = window.states(SECOND)
    assert states.keys() == {"end_to_end", "decode"}  # no budget for a copy, no frame with the others
    assert states["end_to_end"] == {"budget_ms": 30, "p95_ms": 20.0, "over_ms": 0.0}
    assert states["decode"] == {"budget_ms": 5, "p95_ms": 6.0, "over_ms": 1.0}
    window.add(SECOND + WINDOW_NS, {"decode": 1.0})
    assert window.states(SECOND + WINDOW_NS + 1) == {"decode": {"budget_ms": 5, "p95_ms": 1.0, "over_ms": 0.0}}


OVER = {"decode": {"budget_ms": 5.0, "p95_ms": 6.0, "over_ms": 1.0}}
KEPT = {"decode": {"budget_ms": 5.0, "p95_ms": 4.0, "over_ms": 0.0}}


def test_lines_say_when_a_budget_is_exceeded_and_kept_again(capsys):
    screen = PlainLines()
    for states in (KEPT, OVER, OVER, KEPT, KEPT):
        screen.show("budgets", "group", states)
    assert capsys.readouterr().out.splitlines() == [
        "over budget: decode 6.0 of 5 ms, 1.0 over",
        "within budget again: decode 4.0 of 5 ms",
    ]


def test_the_table_shows_budgets_and_the_exceeded_in_red():
    screen = LiveTable()
    screen.close()
    screen.show("budgets", "group", {**OVER, "fusion_wait": {"budget_ms": 8.0, "p95_ms": 0.5, "over_ms": 0.0}})
    caption = Text.from_markup(screen._table().caption)
    assert caption.plain.strip() == "p95 of the last 10 s: decode 6.0 of 5 ms, 1.0 over · fusion_wait 0.5 of 8 ms"
    assert ["red" in str(span.style) for span in caption.spans] == [True]


def test_a_summary_has_the_budgets_of_live_sources_over_the_whole_run():
    tally = Tally()
    for seq in range(20):
        for source in ("cam", "file"):
            times = {"end_to_end_ms": 10.0 if source == "cam" else 900.0, "stages_ms": {"decode": 6.0}, "hops_ms": {}}
            tally.add("counts", source, {"seq": seq, "count": 1, "totals": TOTALS, **times})
    budgets = tally.budgets(BudgetSettings(decode_ms=5).by_name, {"cam"})
    assert budgets == {
        "end_to_end": {"budget_ms": 33, "p95_ms": 10.0, "over_ms": 0.0},
        "decode": {"budget_ms": 5, "p95_ms": 6.0, "over_ms": 1.0},
    }
    lines = summary_lines({**tally.summary(), "budgets": budgets})
    assert lines[-2:] == ["budget   end_to_end 10.0 of 33 ms: ok", "budget   decode 6.0 of 5 ms, 1.0 over"]
