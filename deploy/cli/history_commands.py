"""The commands for lines, zones, areas and the history."""

import json
import re
import time
from pathlib import Path
from typing import Annotated
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import typer

from peoplecounter.common import shape_changes
from peoplecounter.common.counting import LineSettings, ZoneSettings
from peoplecounter.common.errors import NO_INPUT, AppError
from peoplecounter.common.ipc.messages import PEOPLE_MAX
from peoplecounter.common.settings import section_settings
from peoplecounter.common.sources import known_sources
from peoplecounter.deploy.cli.options import AsJson, Config, RunDir
from peoplecounter.deploy.group import client, counting_changes

line_app = typer.Typer(no_args_is_help=True, help="Add, remove and list the lines and zones of a running group.")
zone_app = typer.Typer(no_args_is_help=True, help="Add, remove and list zones: the same as lines.")

SourceName = Annotated[str, typer.Argument(help="Name of the source.")]
ShapeName = Annotated[str, typer.Argument(help="Name of the line or zone.")]
Points = Annotated[str, typer.Option(help="Points, as shares of width and height: '0.1,0.62 0.88,0.6'.")]
Anchor = Annotated[str, typer.Option(help="Point of a person that counts: feet, centre or head.")]
Names = Annotated[list[str] | None, typer.Option(help="Only this one. Repeat for more.")]


@line_app.command("add")
def add_line(
    source: SourceName,
    name: ShapeName,
    points: Points,
    inside: Annotated[str, typer.Option(help="A point on the inner side: '0.5,0.95'.")],
    anchor: Anchor = "feet",
    band: Annotated[float, typer.Option(help="Width of its band, as a share of the person's height.")] = 0.15,
    count: Annotated[str, typer.Option(help="crossings, or persons: see deploy/SETTINGS.md.")] = "crossings",
    config: Config = None,
    run_dir: RunDir = None,
) -> None:
    """Add a line to a source, or give one of that name another geometry: that is a new revision."""
    line = section_settings(
        LineSettings, points=_points(points), inside=_point(inside), anchor=anchor, band=band, count=count
    )
    _write(source, name, line, config, run_dir)


@zone_app.command("add")
def add_zone(
    source: SourceName,
    name: ShapeName,
    points: Points,
    anchor: Anchor = "feet",
    enter_s: Annotated[float, typer.Option(help="Who stays inside for this long has entered, s.")] = 0.5,
    leave_s: Annotated[float, typer.Option(help="Who stays outside for this long has left, s.")] = 1.0,
    config: Config = None,
    run_dir: RunDir = None,
) -> None:
    """Add a zone to a source, or give one of that name another geometry: that is a new revision."""
    zone = section_settings(ZoneSettings, points=_points(points), anchor=anchor, enter_s=enter_s, leave_s=leave_s)
    _write(source, name, zone, config, run_dir)


@line_app.command("remove")
@zone_app.command("remove")
def remove_shape(source: SourceName, name: ShapeName, config: Config = None, run_dir: RunDir = None) -> None:
    """Remove a line or zone. What it has counted stays in the history."""
    _write(source, name, None, config, run_dir)


@line_app.command("list")
@zone_app.command("list")
def list_shapes(config: Config = None, run_dir: RunDir = None, as_json: AsJson = False) -> None:
    """Show the lines and zones of all sources."""
    settings = client.find_group(config, run_dir).settings
    for name, change in known_sources(settings).items():
        assert change.source is not None
        for shape_name, shape in shape_changes.known_shapes(settings, name, change.source).items():
            kind = counting_changes.kind_of(shape)
            row = {"kind": kind, "source": name, "name": shape_name, **shape.model_dump(mode="json")}
            print(json.dumps(row) if as_json else f"{kind}  {name}.{shape_name}  {_text(shape)}")


def correct(
    area: Annotated[str, typer.Argument(help="Name of the area.")],
    people: Annotated[int, typer.Argument(min=0, max=PEOPLE_MAX, help="How many people are in it now.")],
    note: Annotated[str, typer.Option(help="Why, for the history.")] = "",
    config: Config = None,
    run_dir: RunDir = None,
) -> None:
    """Say how many people are in an area. The correction is recorded."""
    before, after = counting_changes.correct(client.find_group(config, run_dir), area, people, note)
    print(f"{area}: {before} -> {after} people")


def history(
    by: Annotated[str, typer.Option(help="1m, 5m, 15m, 30m, hour, day, week, month, year or total.")] = "hour",
    begin: Annotated[
        str | None,
        typer.Option("--from", help="2026-11-26, 2026-11-26T08:00, today … Default: the last day; of --rows all."),
    ] = None,
    end: Annotated[str | None, typer.Option("--to", help="The same; this moment is not included.")] = None,
    source: Names = None,
    line: Annotated[list[str] | None, typer.Option(help="SOURCE.LINE. Repeat for more.")] = None,
    zone: Annotated[list[str] | None, typer.Option(help="SOURCE.ZONE. Repeat for more.")] = None,
    area: Names = None,
    rows: Annotated[
        str | None, typer.Option(help="Instead of sums: crossings, visits, corrections, shapes (revisions) or gaps.")
    ] = None,
    timezone: Annotated[str | None, typer.Option("--tz", help="Time zone. Default: that of the settings.")] = None,
    form: Annotated[str, typer.Option("--format", help="table, csv, json or parquet.")] = "table",
    out: Annotated[Path | None, typer.Option("-o", "--out", help="File to write.")] = None,
    database: Annotated[str | None, typer.Option(help="URL of the database. Default: that of the settings.")] = None,
    config: Config = None,
) -> None:
    """Show what was counted, by intervals of local time, and how much of each interval was observed."""
    settings = client.read_settings(config)
    url = database or settings.history_url
    if not url:
        raise AppError(
            "There is no history: use --config of a group with data_dir (and pip install 'peoplecounter[history]')."
        )
    try:
        from peoplecounter.deploy.history import formats, intervals, query
        from peoplecounter.services.history.tables import open_existing
    except ModuleNotFoundError as error:
        raise AppError(f"{error.name} is not installed: pip install 'peoplecounter[history]'.") from None
    if rows is not None and rows not in query.RAW:
        raise AppError(f"Unknown rows {rows!r}: use one of {', '.join(query.RAW)}.")
    try:
        local = ZoneInfo(timezone or settings.timezone)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise AppError(f"Unknown time zone {timezone!r}: use a name such as Europe/Berlin.") from None
    engine, now_s = open_existing(url), time.time()
    first, last = (0, now_s) if rows else query.span(engine)
    begin_s = (
        intervals.moment(begin, local, now_s) if begin else 0 if rows else max(first, intervals.day_of(last - 1, local))
    )
    end_s = intervals.moment(end, local, now_s) if end else last
    if end_s <= begin_s:
        raise AppError("The time to show is empty: --to must be later than --from.", NO_INPUT)
    asked = query.Question(begin_s, end_s, by, local, source or [], line or [], zone or [], area or [])
    formats.write(query.raw(engine, rows, asked) if rows else query.rows(engine, asked), form, out)


def _write(
    source: str, name: str, shape: LineSettings | ZoneSettings | None, config: Path | None, run_dir: Path | None
) -> None:
    group = client.find_group(config, run_dir)
    client.processes(group.run_dir)
    print(f"{source}.{name} was {counting_changes.change_shape(group, source, name, shape)}")


def _points(text: str) -> list[tuple[float, float]]:
    """'0.1,0.62 0.88,0.6' -> points. Raises AppError."""
    if not re.fullmatch(r"\s*(-?[\d.]+,-?[\d.]+\s*)+", text):
        raise AppError(f"Invalid points {text!r}: use X,Y X,Y …, shares of width and height, e.g. '0.1,0.62 0.88,0.6'.")
    try:
        return [(float(x), float(y)) for x, y in (pair.split(",") for pair in text.split())]
    except ValueError:
        raise AppError(f"Invalid points {text!r}: each is two numbers, e.g. 0.1,0.62.") from None


def _point(text: str) -> tuple[float, float]:
    points = _points(text)
    if len(points) != 1:
        raise AppError(f"Invalid point {text!r}: --inside is one point, X,Y.")
    return points[0]


def _text(shape: LineSettings | ZoneSettings) -> str:
    points = " ".join(f"{x:g},{y:g}" for x, y in shape.points)
    if isinstance(shape, LineSettings):
        x, y = shape.inside
        return f"{points}, inside {x:g},{y:g}, {shape.anchor}, {shape.count}"
    return f"{points}, {shape.anchor}"
