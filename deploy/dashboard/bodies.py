"""What requests contain: their bodies, and what of the history is asked."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from peoplecounter.common.counting import LineSettings, ZoneSettings
from peoplecounter.common.ipc.messages import NOTE_MAX, PEOPLE_MAX
from peoplecounter.deploy.dashboard.tokens import TOKEN_MAX

Format = Literal["json", "csv"]
HistoryName = Annotated[str, Field(max_length=128)]


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Login(Body):
    token: str = Field(max_length=TOKEN_MAX)


class Draft(Body):
    """A line or a zone to try."""

    line: LineSettings | None = None
    zone: ZoneSettings | None = None


class Correction(Body):
    people: int = Field(ge=0, le=PEOPLE_MAX)
    note: str = Field("", max_length=NOTE_MAX)


class Number(Body):
    number: int = Field(ge=1, le=64)


class Asked(BaseModel):
    """What of the history is asked. Without any names: everything."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    begin: str = Field("today", alias="from", max_length=40)
    """2026-11-26, 2026-11-26T08:00, today, yesterday or now"""
    end: str = Field("now", alias="to", max_length=40)
    source: list[HistoryName] = Field([], max_length=64)
    line: list[HistoryName] = Field([], max_length=64)
    zone: list[HistoryName] = Field([], max_length=64)
    area: list[HistoryName] = Field([], max_length=64)
    tz: str = Field("", max_length=64)
    form: Format = Field("json", alias="format")

    def names(self) -> dict[str, list[str]]:
        return {"sources": self.source, "lines": self.line, "zones": self.zone, "areas": self.area}


class HistoryIntervals(Asked):
    by: str = Field("hour", max_length=10)


class HistoryRows(Asked):
    limit: int = Field(1000, ge=1, le=10_000)
