"""What `run` and `watch` print: a live table on a terminal, plain lines elsewhere, JSON lines for machines."""

import json
import sys
import time
from collections import deque
from collections.abc import Sequence
from typing import Any, Protocol

from rich.console import Console
from rich.live import Live
from rich.table import Table

DISPLAYED = ("counts", "dropped", "status", "budgets", "areas", "alerts")  # kinds of messages
LINE_EVERY_S = 2.0
RATE_S = 5.0


class Display(Protocol):
    def show(self, kind: str, name: str, content: dict) -> None:
        """Shows one message of a running group."""

    def say(self, line: str) -> None:
        """Shows one line about the group itself."""

    def close(self) -> None:
        """Ends the display."""


def aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """A table as lines of text, its columns below each other."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(text.ljust(width) for text, width in zip(row, widths)).rstrip() for row in rows]


def display(as_json: bool) -> Display:
    """JSON lines, a live table on a terminal, or plain lines."""
    if as_json:
        return JsonLines()
    return LiveTable() if sys.stdout.isatty() else PlainLines()


class JsonLines:
    """Every counted frame as it was published, one object a line; lines for people go to stderr."""

    def show(self, kind: str, name: str, content: dict) -> None:
        if kind == "counts":
            print(json.dumps(content, separators=(",", ":")), flush=True)

    def say(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    def close(self) -> None:
        pass


class ProcessStates:
    """The last published state of each process."""

    def __init__(self) -> None:
        self._states: dict[str, str] = {}

    def change(self, name: str, state: str) -> str:
        """A line when a process has gone, is frozen, or is back; otherwise empty."""
        before, self._states[name] = self._states.get(name, "up"), state
        if state == before or state == "ended":
            return ""
        return f"{name} is up again" if state == "up" else f"{name} is {state}"


def budget_words(name: str, state: dict) -> str:
    """A budget in words: its name, its p95, its limit."""
    over = f", {state['over_ms']:.1f} over" if state["over_ms"] else ""
    return f"{name} {state['p95_ms']:.1f} of {state['budget_ms']:g} ms{over}"


def moved(status: dict) -> str:
    """The totals of a source's lines and the people in its zones; empty without any."""
    words = [f"{name} {line['in']} in, {line['out']} out" for name, line in status.get("lines", {}).items()]
    return " · ".join([*words, *(f"{name} {zone['people']} people" for name, zone in status.get("zones", {}).items())])


def noted(kind: str, name: str, content: dict) -> str:
    """An area or an alert in words."""
    if kind == "areas":
        return f"area {name}: {content['occupancy']} people"
    return f"alert {name}: {content['state']} at {content['value']:g}"


class Rows:
    """The latest values of each source, with the frames counted per second over at least the last RATE_S."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, Any]] = {}
        self._counted: dict[str, deque[tuple[float, int]]] = {}

    def update(self, kind: str, name: str, content: dict) -> dict[str, Any]:
        row = self.rows.setdefault(name, {"count": "–", "seq": "–", "state": "online", "fps": 0.0, "moved": ""})
        if kind == "status":
            about = content["detail"] or content.get("warning")
            row["state"] = content["state"] + (f" ({about})" if about else "")
            row["moved"] = moved(content)
        if kind == "counts":
            row["fps"] = self._rate(name, content["totals"]["counted"])
            row["count"], row["incomplete"] = content["count"], "" if content["complete"] else " (incomplete)"
            row["seq"], row["ms"] = content["seq"], content["end_to_end_ms"]
        row["totals"] = content["totals"]
        return row

    def _rate(self, name: str, counted: int) -> float:
        """Frames counted per second. Pauses are included, because the oldest count that is kept precedes them."""
        now, seen = time.monotonic(), self._counted.setdefault(name, deque())
        seen.append((now, counted))
        while len(seen) > 2 and now - seen[1][0] > RATE_S:
            seen.popleft()
        then, before = seen[0]
        return (counted - before) / (now - then) if now - then > 0.5 else 0.0


def dropped(totals: dict) -> str:
    return ", ".join(f"{n} {reason}" for reason, n in sorted(totals["dropped"].items())) or "0"


class PlainLines:
    """One line per source every two seconds, and on every change of its state."""

    def __init__(self) -> None:
        self._rows = Rows()
        self._noted: dict[tuple[str, str], str] = {}
        self._due_s: dict[str, float] = {}
        self._over: set[str] = set()

    def show(self, kind: str, name: str, content: dict) -> None:
        if kind == "budgets":
            return self._show_budgets(content)
        if kind in ("areas", "alerts"):
            words = noted(kind, name, content)
            if self._noted.get((kind, name)) != words:
                self._noted[kind, name] = words
                self.say(words)
            return None
        known = self._rows.rows.get(name, {})
        before, moved_before = known.get("state", "online"), known.get("moved", "")
        row = self._rows.update(kind, name, content)
        now = time.monotonic()
        if kind == "counts" and now >= self._due_s.get(name, 0):
            self._due_s[name] = now + LINE_EVERY_S
            rate = f"{row['fps']:.1f} frames/s, " if row["fps"] else ""
            people = f"{row['count']} people{row['incomplete']}"
            behind = f"{row['ms']:.0f} ms behind, dropped {dropped(row['totals'])}"
            self.say(f"{name}: frame {row['seq']}, {people}, {rate}{behind}")
        elif row["state"] != before:
            self.say(f"{name}: {row['state']}")
        if row["moved"] != moved_before:
            self.say(f"{name}: {row['moved'] or 'no lines or zones'}")

    def _show_budgets(self, states: dict[str, dict]) -> None:
        """Prints a line when a budget is exceeded, or kept again."""
        before, self._over = self._over, {name for name, state in states.items() if state["over_ms"]}
        for name in sorted(before ^ self._over):
            if name in states:
                how = "over budget" if name in self._over else "within budget again"
                self.say(f"{how}: {budget_words(name, states[name])}")

    def say(self, line: str) -> None:
        print(line, flush=True)

    def close(self) -> None:
        pass


class LiveTable:
    """A table that is redrawn a few times a second."""

    def __init__(self) -> None:
        self._rows = Rows()
        self._budgets: dict[str, dict] = {}
        self._noted: dict[tuple[str, str], str] = {}
        self._live = Live(self._table(), console=Console(), refresh_per_second=5)
        self._live.start()

    def show(self, kind: str, name: str, content: dict) -> None:
        if kind == "budgets":
            self._budgets = content
        elif kind in ("areas", "alerts"):
            self._noted[kind, name] = noted(kind, name, content)
        else:
            self._rows.update(kind, name, content)
        self._live.update(self._table())

    def say(self, line: str) -> None:
        self._live.console.print(line, highlight=False)

    def close(self) -> None:
        self._live.stop()

    def _table(self) -> Table:
        table = Table(box=None, pad_edge=False, caption=self._caption(), caption_justify="left")
        titles = ["source", "people", "frame", "frames/s", "ms behind", "dropped", "state"]
        if any(row["moved"] for row in self._rows.rows.values()):
            titles.append("lines, zones")
        for title in titles:
            right = title in ("people", "frame", "frames/s", "ms behind")
            table.add_column(title, justify="right" if right else "left")
        for name, row in sorted(self._rows.rows.items()):
            table.add_row(
                name, f"[bold]{row['count']}[/]{row.get('incomplete', '')}", str(row["seq"]), f"{row['fps']:.1f}",
                f"{row.get('ms', 0):.0f}", dropped(row["totals"]), row["state"], *[row["moved"]][: len(titles) - 7],
            )  # fmt: skip
        return table

    def _caption(self) -> str:
        """The budgets; exceeded ones in red."""
        words = [(budget_words(name, state), state["over_ms"]) for name, state in self._budgets.items()]
        shown = " · ".join(f"[bold red]{text}[/]" if over else text for text, over in words)
        others = "\n" + " · ".join(self._noted.values()) if self._noted else ""
        return others + (f"\np95 of the last 10 s: {shown}" if words else "")


def summary_lines(summary: dict) -> list[str]:
    """The summary of a run, for people."""
    frames, counted = summary["frames"], summary["counted"]
    lines = [
        f"frames   {frames}",
        f"counted  {counted}" + (f" ({summary['incomplete']} incomplete)" if summary["incomplete"] else ""),
        f"dropped  {dropped(summary)}",
        *(f"line     {name}: {line['in']} in, {line['out']} out" for name, line in summary["lines"].items()),
    ]
    if summary["mae"] is not None:
        share = summary["mae"] / summary["mean_truth"] if summary["mean_truth"] else 0
        lines.append(
            f"error    {summary['mae']:.2f} people a frame on average, {share:.1%} of {summary['mean_truth']:.1f}"
        )
    if summary["stages_ms"]:
        lines.append(f"{'ms':<14}{'p50':>9}{'p99':>9}")
        lines += [f"{stage:<14}{t['p50']:>9.1f}{t['p99']:>9.1f}" for stage, t in summary["stages_ms"].items()]
    for name, state in summary.get("budgets", {}).items():
        lines.append(f"budget   {budget_words(name, state)}{'' if state['over_ms'] else ': ok'}")
    return lines


def source_lines(rows: list[dict]) -> list[str]:
    """The lines of `source list`."""
    lines = [f"{'source':<20}{'state':<14}{'s since frame':>14}{'counted':>10}  dropped, url"]
    for row in rows:
        lines.append(
            f"{row['source']:<20}{row['state']:<14}{row['seconds_since_frame'] or 0:>14.1f}"
            f"{row['totals']['counted']:>10}  {dropped(row['totals'])}, {row['url'] or 'no decoder'}"
            + (f" ({row['detail']})" if row["detail"] else "")
        )
    return lines


def process_lines(rows: list[dict]) -> list[str]:
    """The lines of `ps`."""
    lines = [
        f"{'service':<20}{'state':<10}{'pid':>8}{'up s':>9}{'restarts':>9}{'MB':>6}{'leases':>7}  ring, dropped, engine"
    ]
    for row in rows:
        head = f"{row['service']:<20}{row['state']:<10}{row['pid']:>8}"
        if "age_s" not in row:
            lines.append(head)
            continue
        ring = ", ".join(f"{n} {state}" for state, n in row["slots"].items() if n)
        drops = {k.removeprefix("dropped_"): n for k, n in row["counters"].items() if k.startswith("dropped_")}
        tail = [f"GPU {row['gpu']}"] if row["gpu"] is not None else []
        tail += [f"{row['epoch'][:6]}: {ring}"] if ring else []
        tail += [f"{n} {reason}" for reason, n in sorted(drops.items())]
        tail += [row["about"]] if row["about"] and not row["service"].startswith("decoder.") else []
        lines.append(
            f"{head}{row['age_s']:>9.0f}{row['restarts']:>9}{row['rss_mb']:>6}{row['leases']:>7}  {', '.join(tail)}"
        )
    return lines
