"""One frame's way through the processes, from a file of `telemetry.exporter = "file"` (OTLP/JSON lines)."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.text import Text

from peoplecounter.common.errors import BAD_DATA, NO_INPUT, AppError
from peoplecounter.deploy.report.charts import Bar, waterfall
from peoplecounter.deploy.report.page import STAGES, figure, page, section, table

COLOURS = {"decode": "blue", "preprocess": "cyan", "infer_global": "yellow", "infer_tiles": "red", "fusion": "magenta"}
PERCENTILES = (50, 95, 99)
DRAWN = (50, 99)


@dataclass(frozen=True)
class Span:
    name: str
    process: str  # "infer_tiles.1"
    begin_ns: int  # of the Unix clock
    end_ns: int
    attributes: dict[str, object]


@dataclass
class TracedFrame:
    """A trace: all spans of one frame, ordered by their begin."""

    trace: str
    spans: list[Span] = field(default_factory=list)

    @property
    def name(self) -> str:
        attributes = self.spans[0].attributes
        return f"{attributes.get('source')}/{attributes.get('seq')}"

    @property
    def complete(self) -> bool:
        """True when the frame was traced from its decoder to its count."""
        return {"decode", "fusion"} <= {span.name for span in self.spans}

    @property
    def begin_ns(self) -> int:
        return self.spans[0].begin_ns

    @property
    def ms(self) -> float:
        """From the begin of the first span to the end of the last."""
        return (max(span.end_ns for span in self.spans) - self.begin_ns) / 1e6

    def bars(self) -> list[Bar]:
        """One row per span."""
        shown = []
        for span in self.spans:
            begin, end = ((ns - self.begin_ns) / 1e6 for ns in (span.begin_ns, span.end_ns))
            part = f", part {span.attributes.get('part')}" if span.name == "infer_tiles" else ""
            note = f"{end - begin:.2f}{part}"
            shown.append(Bar(span.process, begin, end, span.name if span.name in STAGES else "wait", note))
        return shown


def read(path: Path) -> tuple[list[TracedFrame], int]:
    """(every frame of a file, number of unreadable lines). The last line may still be being written.

    Raises AppError for a file that is missing or contains no span.
    """
    frames: dict[str, TracedFrame] = {}
    damaged = 0
    try:
        with path.open("rb") as file:
            for line in file:
                try:
                    _add(json.loads(line), frames)
                except (ValueError, KeyError, TypeError, AttributeError):
                    damaged += 1
    except OSError as error:
        raise AppError(f"The traces file {path} cannot be read: {error.strerror}.", NO_INPUT) from None
    if not frames:
        raise AppError(f"{path} contains no span: set telemetry.exporter = 'file' to write one.", BAD_DATA)
    for frame in frames.values():
        frame.spans.sort(key=lambda span: (span.begin_ns, span.end_ns))
    return list(frames.values()), damaged


def _add(request: dict, frames: dict[str, TracedFrame]) -> None:
    for resource in request["resourceSpans"]:
        named = _attributes(resource["resource"])
        process = f"{str(named['service.name']).rpartition('.')[2]}.{named['service.instance.id']}"
        for span in (span for scope in resource["scopeSpans"] for span in scope["spans"]):
            one = Span(
                span["name"], process, int(span["startTimeUnixNano"]), int(span["endTimeUnixNano"]), _attributes(span)
            )
            frames.setdefault(span["traceId"], TracedFrame(span["traceId"])).spans.append(one)


def _attributes(of: dict) -> dict[str, object]:
    """Attributes from OTLP/JSON, where a value has a type and 64-bit integers are text."""
    found = {}
    for attribute in of.get("attributes", ()):
        ((kind, value),) = attribute["value"].items()
        found[attribute["key"]] = int(value) if kind == "intValue" else value
    return found


def choose(frames: list[TracedFrame], name: str | None) -> list[tuple[str, TracedFrame]]:
    """(title, frame) of the frame SOURCE/SEQ, or of the frames at the percentiles DRAWN. Raises AppError for none."""
    if name is not None:
        found = [frame for frame in frames if frame.name == name]
        if not found:
            raise AppError(
                f"No trace of {name!r}. The file contains {len(frames)} traces, for example {frames[0].name}.", NO_INPUT
            )
        return [(frame.name, frame) for frame in found]
    ranked = sorted((frame for frame in frames if frame.complete), key=lambda frame: frame.ms)
    if not ranked:
        raise AppError("No frame was traced from decoder to count: choose one with --frame SOURCE/SEQ.", BAD_DATA)
    return [(f"p{p}: {(frame := at(ranked, p)).name}", frame) for p in DRAWN]


def at(ranked: Sequence, percentile: float):
    """The element at a percentile of a sorted sequence."""
    return ranked[round(percentile / 100 * (len(ranked) - 1))]


def stages(frames: list[TracedFrame]) -> dict[str, dict[str, float]]:
    """Stage -> number of spans, and ms at PERCENTILES; "frame": the frames that were counted, as a whole."""
    times: dict[str, list[float]] = {}
    for frame in frames:
        for span in frame.spans:
            times.setdefault(span.name, []).append((span.end_ns - span.begin_ns) / 1e6)
        if frame.complete:
            times.setdefault("frame", []).append(frame.ms)
    order = [*STAGES, *sorted(times.keys() - {*STAGES, "frame"}), "frame"]
    ranked = {key: sorted(times[key]) for key in order if key in times}
    return {
        key: {"spans": len(of), **{f"p{p}": round(at(of, p), 3) for p in PERCENTILES}} for key, of in ranked.items()
    }


def about(frames: list[TracedFrame]) -> str:
    """What the percentiles are based on."""
    counted = sum(frame.complete for frame in frames)
    return f"{len(frames)} frames were traced, {counted} of them to their count. Milliseconds:"


def lines(frames: list[TracedFrame]) -> list[str]:
    """The percentiles as lines of text."""
    found = [about(frames)]
    found.append(f"{'':<18}{'spans':>7}" + "".join(f"{f'p{p}':>9}" for p in PERCENTILES))
    for stage, row in stages(frames).items():
        found.append(f"{stage:<18}{row['spans']:>7}" + "".join(f"{row[f'p{p}']:>9.2f}" for p in PERCENTILES))
    return found


def draw(console: Console, title: str, frame: TracedFrame) -> None:
    """Prints a waterfall to the terminal."""
    bars = frame.bars()
    label = max(len(bar.label) for bar in bars) + 2
    columns, whole = max(20, console.width - label - 18), frame.ms or 1.0
    console.print(
        f"\n[bold]{escape(title)}[/]  {frame.ms:.2f} ms{_counted(frame)}  [dim]{frame.trace}[/]", highlight=False
    )
    for bar in bars:
        begin = round(bar.begin_ms / whole * columns)
        length = max(1, round((bar.end_ms - bar.begin_ms) / whole * columns))
        line = Text(f"{bar.label:<{label}}" + " " * min(begin, columns - 1))
        line.append("█" * min(length, columns - begin) or "█", COLOURS.get(bar.colour, "white"))
        line.append(f" {bar.note}", "dim")
        console.print(line, no_wrap=True, overflow="crop", highlight=False)


def html(path: Path, chosen: list[tuple[str, TracedFrame]], frames: list[TracedFrame]) -> str:
    """The page with the waterfalls and the percentiles."""
    rows = [[key, str(r["spans"]), *(f"{r[f'p{p}']:.2f}" for p in PERCENTILES)] for key, r in stages(frames).items()]
    drawn = [
        section(f"{title}, {frame.ms:.2f} ms{_counted(frame)}", f"Trace {frame.trace}", figure(waterfall(frame.bars())))
        for title, frame in chosen
    ]
    columns = ["stage", ">spans", *(f">p{p}" for p in PERCENTILES)]
    lead = f"{about(frames)} {path.name}"
    return page("One frame through five processes", lead, [*drawn, section("All frames", "", table(columns, rows))])


def _counted(frame: TracedFrame) -> str:
    if not frame.complete:
        return ", not counted"
    people = next((span.attributes["people"] for span in frame.spans if "people" in span.attributes), "?")
    return f", {people} people"
