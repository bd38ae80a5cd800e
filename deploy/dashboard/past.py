"""The history as the API shows it: bounded, and with an error in words where there is none."""

import time
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from peoplecounter.common.errors import NO_INPUT, AppError
from peoplecounter.common.settings import Settings
from peoplecounter.deploy.history.intervals import MINUTES, STEPS, day_of, moment

NONE = "There is no history: set data_dir in the settings, and install the extra 'history'."
INTERVALS_MAX = 3000
SPAN_MAX_S = 5 * 366 * 86_400.0


class Past:
    """May be used from any thread."""

    REFRESH_S = 20.0  # how often what was counted before today is read

    def __init__(self, settings: Settings):
        self._settings = settings
        self._engine: Any = None

    @property
    def is_kept(self) -> bool:
        return bool(self._settings.history_url)

    def engine(self) -> Any:
        """The database. Raises AppError when there is none, or none yet."""
        if not self.is_kept:
            raise AppError(NONE, NO_INPUT)
        if self._engine is None:
            try:
                from peoplecounter.services.history.tables import open_existing
            except ModuleNotFoundError:
                raise AppError(NONE, NO_INPUT) from None
            self._engine = open_existing(self._settings.history_url)
        return self._engine

    def at_midnight(self) -> dict[str, tuple[int, int]] | None:
        """SOURCE.LINE -> what it had counted when the local day began, in and out; None where that is not known."""
        if not self.is_kept:
            return None
        try:
            from sqlalchemy.exc import SQLAlchemyError

            from peoplecounter.deploy.history.query import totals_before
        except ModuleNotFoundError:
            return None
        try:
            return totals_before(self.engine(), day_of(time.time(), ZoneInfo(self._settings.timezone)))
        except (AppError, SQLAlchemyError):  # there is none yet, or it is away
            return None

    def intervals(self, by: str, begin: str, end: str, zone: str, names: dict[str, list[str]]) -> list[dict]:
        """Rows as `peoplecounter history` has them. Raises AppError."""
        engine = self.engine()
        from peoplecounter.deploy.history import query

        question = self._question(by, begin, end, zone, names)
        wanted = (question.end_s - question.begin_s) / (60 * MINUTES.get(by, 1440))
        if wanted > INTERVALS_MAX:
            raise AppError(f"{wanted:.0f} intervals of {by} are too many, {INTERVALS_MAX} at most: choose longer ones.")
        return query.rows(engine, question)

    def raw(self, table: str, begin: str, end: str, zone: str, names: dict[str, list[str]], limit: int) -> list[dict]:
        """Rows of a table, the newest of them where there are more. Raises AppError."""
        engine = self.engine()
        from peoplecounter.deploy.history import query

        return query.raw(engine, table, self._question("hour", begin, end, zone, names), limit)

    def _question(self, by: str, begin: str, end: str, zone: str, names: dict[str, list[str]]):
        from peoplecounter.deploy.history.query import Question

        if by not in STEPS:
            raise AppError(f"Unknown interval {by!r}: use one of {', '.join(STEPS)}.")
        try:
            local = ZoneInfo(zone or self._settings.timezone)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise AppError(f"Unknown time zone {zone!r}: use a name such as Europe/Berlin.") from None
        now_s = time.time()
        begin_s, end_s = moment(begin, local, now_s), moment(end, local, now_s)
        if end_s <= begin_s:
            raise AppError("The time to show is empty: the end must be later than the begin.")
        if end_s - begin_s > SPAN_MAX_S:
            raise AppError("The time to show is longer than five years.")
        return Question(begin_s, end_s, by, local, **names)
