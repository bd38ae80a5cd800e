"""Settings of what is counted: lines, zones, areas, alerts, and their history. The others are in settings.py."""

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from peoplecounter.common import shapes
from peoplecounter.common.errors import AppError

NAME = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$"
Name = Annotated[str, Field(pattern=NAME)]


def check_name(name: str, kind: str) -> None:
    """Raises AppError for an invalid name of a source, a group or the like."""
    if not re.match(NAME, name):
        raise AppError(f"Invalid {kind} name {name!r}: use letters, digits, - and _ (at most 63).")


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)


Share = Annotated[float, Field(ge=0, le=1)]
Point = tuple[Share, Share]


class ShapeSettings(Section):
    """What lines and zones have in common."""

    anchor: Literal["feet", "centre", "head"] = "feet"
    """Which point of a person counts"""


class LineSettings(ShapeSettings):
    points: Annotated[tuple[Point, ...], Field(min_length=2, max_length=64)]
    """Two or more points of the line, as shares of the frame's width and height, e.g. [[0.1, 0.6], [0.9, 0.6]]"""
    inside: Point
    """A point on the inner side: who goes to that side goes in"""
    band: float = Field(0.15, ge=0, le=1)
    """A crossing counts once the person is this far from the line, as a share of the person's height"""
    count: Literal["crossings", "persons"] = "crossings"
    """crossings: each; persons: what remains of them when the person has gone: in, out, or nothing"""

    @model_validator(mode="after")
    def _has_sides(self) -> "LineSettings":
        if any(a == b for a, b in zip(self.points, self.points[1:])):
            raise ValueError("two neighbouring points of a line are the same")
        if not shapes.side(self.points, self.inside):
            raise ValueError("inside lies on the line: choose a point on the inner side")
        return self


class ZoneSettings(ShapeSettings):
    points: Annotated[tuple[Point, ...], Field(min_length=3, max_length=64)]
    """Corners of the zone, as shares of the frame's width and height"""
    enter_s: float = Field(0.5, ge=0, le=60)
    """A person who stays inside for this long has entered, s"""
    leave_s: float = Field(1.0, ge=0, le=60)
    """A person who stays outside for this long has left, s"""

    @field_validator("points")
    @classmethod
    def _has_an_area(cls, points: tuple[Point, ...]) -> tuple[Point, ...]:
        if shapes.crosses_itself(points):
            raise ValueError("two sides of the zone cross each other: give its corners in order")
        if shapes.area(points) < 1e-6:
            raise ValueError("the zone has no area: give three or more corners that do not lie on one line")
        return points


def _of_source(name: str) -> str:
    source, dot, shape = name.partition(".")
    if not (dot and re.match(NAME, source) and re.match(NAME, shape)):
        raise ValueError(f"expected SOURCE.NAME of a line or zone, not {name!r}")
    return name


LineName = Annotated[str, AfterValidator(_of_source)]


class AreaSettings(Section):
    lines: Annotated[tuple[LineName, ...], Field(min_length=1, max_length=64)]
    """Its entrances, SOURCE.LINE: who crosses one of them to its inside is in the area"""
    reset: str = Field("", pattern=r"^(([01]\d|2[0-3]):[0-5]\d)?$")
    """Time of day, in `timezone`, at which nobody is inside, e.g. 04:00; empty: never"""

    @field_validator("lines")
    @classmethod
    def _each_once(cls, lines: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(lines)) < len(lines):
            raise ValueError("a line is named twice: who crosses it would count twice")
        return lines


class AlertSettings(Section):
    area: Name | None = None
    """Watches the people in an area,"""
    zone: LineName | None = None
    """or in a zone, SOURCE.ZONE,"""
    line: LineName | None = None
    """or those who crossed a line in the last minute, in and out, SOURCE.LINE"""
    above: float | None = Field(None, allow_inf_nan=False)
    """Raised when more than this"""
    below: float | None = Field(None, allow_inf_nan=False)
    """or fewer than this"""
    clear_below: float | None = None
    """Cleared when fewer than this; unset: when not above any more"""
    clear_above: float | None = None
    """Cleared when more than this; unset: when not below any more"""
    for_s: float = Field(0, ge=0, le=86_400)
    """How long a change must last, s"""
    webhook: str = Field("", pattern=r"^(https?://[^/\s]\S*)?$")
    """URL that gets a POST with each change, as JSON; empty: alerts are only published, on alerts.NAME"""

    @model_validator(mode="after")
    def _one_of_each(self) -> "AlertSettings":
        if sum(value is not None for value in (self.area, self.zone, self.line)) != 1:
            raise ValueError("an alert watches one thing: set area, zone or line")
        if (self.above is None) == (self.below is None):
            raise ValueError("set above or below")
        if self.clear_below is not None and (self.above is None or self.clear_below > self.above):
            raise ValueError("clear_below belongs to above, and is at most as large")
        if self.clear_above is not None and (self.below is None or self.clear_above < self.below):
            raise ValueError("clear_above belongs to below, and is at least as large")
        return self


class HistorySettings(Section):
    database: str = "auto"
    """SQLAlchemy URL; auto: history.db in data_dir, where SQLAlchemy is installed; empty: no history"""
    log_mb: int = Field(64, ge=4, le=65_536)
    """Maximum size of a source's event log, MB; then the oldest events are deleted, in the database or not"""
    crossings_days: int = Field(400, ge=0)
    """How long crossings are kept in the database, days; 0: for ever"""
    visits_days: int = Field(400, ge=0)
    """How long visits are kept, days; 0: for ever"""
    minutes_days: int = Field(0, ge=0)
    """How long the sums of each minute are kept, days; 0: for ever"""

    @field_validator("database")
    @classmethod
    def _a_url(cls, value: str) -> str:
        if value not in ("", "auto") and not re.match(r"(sqlite|postgresql)(\+\w+)?://", value):
            raise ValueError("expected sqlite:////path/history.db or postgresql+psycopg://user:password@host/name")
        return value
