"""Drawings as SVG: bars of time, pairs before and after, distributions. Colours are the page's variables."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, floor, log10

WIDTH, LABEL, ROW, BAR = 980, 150, 26, 15  # px


@dataclass(frozen=True)
class Bar:
    """One row of a waterfall."""

    label: str
    begin_ms: float
    end_ms: float
    colour: str  # a variable of the page
    note: str = ""


def waterfall(bars: Sequence[Bar]) -> str:
    """One row per bar, time from left to right."""
    longest_ms = max((bar.end_ms for bar in bars), default=1.0) or 1.0
    step = _step(longest_ms)
    right = 96  # room for the note of the longest bar

    def x(ms: float) -> float:
        return LABEL + ms / longest_ms * (WIDTH - LABEL - right)

    height = len(bars) * ROW + 26
    parts = []
    for tick in range(floor(longest_ms / step) + 1):
        at = x(tick * step)
        parts.append(f"<line class='grid' x1='{at:.1f}' x2='{at:.1f}' y1='0' y2='{height - 20}'/>")
        parts.append(f"<text class='soft middle' x='{at:.1f}' y='{height - 4}'>{tick * step:g}</text>")
    parts.append(f"<text class='soft' x='{x(longest_ms) + 8:.1f}' y='{height - 4}'>ms</text>")
    for i, bar in enumerate(bars):
        y, width = i * ROW + 4, max(1.5, x(bar.end_ms) - x(bar.begin_ms))
        middle = y + BAR / 2 + 4
        parts.append(f"<text class='end' x='{LABEL - 12}' y='{middle}'>{escape(bar.label)}</text>")
        parts.append(
            f"<rect x='{x(bar.begin_ms):.1f}' y='{y}' width='{width:.1f}' height='{BAR}' rx='2.5' "
            f"fill='var(--{bar.colour})'>"
            f"<title>{escape(bar.label)}: {bar.begin_ms:.2f} to {bar.end_ms:.2f} ms</title></rect>"
        )
        note = bar.note or f"{bar.end_ms - bar.begin_ms:.2f}"
        parts.append(f"<text class='soft' x='{x(bar.begin_ms) + width + 6:.1f}' y='{middle}'>{escape(note)}</text>")
    return _svg(height, parts)


def pairs(rows: Sequence[tuple[str, str, float, float, str, str]]) -> str:
    """(name, what, before, after, text of before, text of after): two bars each, scaled to the longer one."""
    step, label, room, parts = 48, 380, 110, []
    for i, (name, what, before, after, before_text, after_text) in enumerate(rows):
        y, longest = i * step, max(before, after) or 1
        parts.append(f"<text class='end' x='{label - 14}' y='{y + 18}'>{escape(name)}</text>")
        parts.append(f"<text class='end soft small' x='{label - 14}' y='{y + 33}'>{escape(_cut(what))}</text>")
        bars = (before, before_text, "before"), (after, after_text, "after")
        for j, (value, text, colour) in enumerate(bars):
            width, top = max(1.5, value / longest * (WIDTH - label - room)), y + 6 + j * 16
            box = f"x='{label}' y='{top}' width='{width:.1f}' height='13' rx='2.5'"
            parts.append(f"<rect {box} fill='var(--{colour})'/>")
            kind = "" if j else " class='soft'"
            parts.append(f"<text{kind} x='{label + width + 7:.1f}' y='{top + 11}'>{escape(text)}</text>")
    return _svg(len(rows) * step, parts)


def quantiles(curves: Sequence[tuple[str, Sequence[float], str]]) -> str:
    """(label, values at evenly spaced shares 0 … 1, colour): share of frames over time, without the long tail."""
    height, left, bottom, right = 300, 46, 32, 270
    low = min(values[0] for _, values, _ in curves)
    high = max(values[round(0.95 * (len(values) - 1))] for _, values, _ in curves)
    step = _step(high - low)
    first, last = floor(low / step) * step, ceil(high / step) * step

    def x(value: float) -> float:
        return left + (min(value, last) - first) / (last - first) * (WIDTH - left - right)

    def y(share: float) -> float:
        return 8 + (1 - share) * (height - bottom - 8)

    parts = []
    for tick in range(round((last - first) / step) + 1):
        at = x(first + tick * step)
        parts.append(f"<line class='grid' x1='{at:.1f}' x2='{at:.1f}' y1='8' y2='{height - bottom}'/>")
        parts.append(
            f"<text class='soft middle' x='{at:.1f}' y='{height - bottom + 17}'>{first + tick * step:g}</text>"
        )
    for share in (0, 0.5, 0.95, 1):
        parts.append(f"<line class='grid' x1='{left}' x2='{WIDTH - right}' y1='{y(share):.1f}' y2='{y(share):.1f}'/>")
        parts.append(f"<text class='soft end' x='{left - 8}' y='{y(share) + 4:.1f}'>{share:.0%}</text>")
    parts.append(f"<text class='soft' x='{WIDTH - right + 22}' y='{height - bottom + 17}'>ms</text>")
    for i, (label, values, colour) in enumerate(curves):
        points = " ".join(f"{x(v):.1f},{y(j / (len(values) - 1)):.1f}" for j, v in enumerate(values) if v <= last)
        parts.append(f"<polyline class='curve' points='{points}' stroke='var(--{colour})'/>")
        at = 22 + i * 20
        parts.append(
            f"<rect x='{WIDTH - right + 16}' y='{at - 9}' width='12' height='4' rx='2' fill='var(--{colour})'/>"
        )
        parts.append(f"<text x='{WIDTH - right + 34}' y='{at - 2}'>{escape(label)}</text>")
    return _svg(height, parts)


def _svg(height: float, parts: Sequence[str]) -> str:
    return f"<svg viewBox='0 0 {WIDTH} {height:g}' role='img' style='min-width:640px'>{''.join(parts)}</svg>"


def _cut(text: str, length: int = 62) -> str:
    return text if len(text) <= length else text[: length - 1].rstrip(" ,") + "…"


def _step(span: float) -> float:
    """A round step that divides the span into four to ten parts."""
    power = 10 ** floor(log10(span / 4)) if span > 0 else 1.0
    return next((power * n for n in (1, 2, 5, 10) if span / (power * n) <= 8), power * 10)
