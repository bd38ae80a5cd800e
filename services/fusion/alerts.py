"""Alerts: a value that stays beyond its limit for a while, and later comes back. Pure, but for Webhooks."""

import http.client
import json
import logging
import queue
import threading
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from msgspec import Struct

from peoplecounter.common.counting import AlertSettings
from peoplecounter.common.files import make_private_folder
from peoplecounter.common.process.journal import Journal
from peoplecounter.common.settings import Settings
from peoplecounter.common.sources import redacted
from peoplecounter.services.fusion.publish import utc

LINE_OVER_S, CROSSINGS_MAX = 60.0, 10_000  # what a line's alert looks at
QUEUE_MAX = 100
TIMEOUT_S, TRIES, BETWEEN_S = 5.0, 3, 2.0


class RaisedAlerts(Struct):
    """What survives a restart of fusion."""

    names: list[str] = []
    numbers: dict[str, int] = {}  # changes of each alert


class Alerts:
    """All alerts of a group. `value(kind, name)` of an "area", "zone" or "line" (0); None: it is not known, or does not
    exist. For a "zone" or "line", `is_missing(kind, name)` says which.

    Times, `now_s`, are of a clock that is never set.
    """

    def __init__(
        self,
        settings: Settings,
        value: Callable[[str, str], float | None],
        is_missing: Callable[[str, str], bool] = lambda kind, name: True,
    ):
        self._value, self._is_missing = value, is_missing
        self._crossed_s, self._missing_told = dict[str, deque[float]](), set[str]()
        make_private_folder(settings.data, "data_dir")
        self._journal = Journal(settings.data / "alerts.journal", RaisedAlerts)
        self._record = self._journal.read() or RaisedAlerts()
        self._alerts = {name: Alert(one, name in self._record.names) for name, one in settings.alerts.items()}
        hooked = any(one.webhook for one in settings.alerts.values())
        self._webhooks = Webhooks() if hooked else None

    def crossed(self, line: str, now_s: float) -> None:
        """Somebody crossed SOURCE.LINE."""
        self._crossed_s.setdefault(line, deque(maxlen=CROSSINGS_MAX)).append(now_s)

    def update(self, now_s: float) -> list[tuple[str, dict]]:
        """(name, what to publish) of each alert that was raised or cleared."""
        changes = []
        for name, alert in self._alerts.items():
            value = self._of(alert.settings, now_s)
            self._tell_missing(name, value is None and self._is_missing(*self._watched(alert.settings)))
            if value is None or not alert.update(value, now_s):
                continue
            number = self._record.numbers[name] = self._record.numbers.get(name, 0) + 1
            state = "raised" if alert.raised else "cleared"
            watched = alert.settings.model_dump(include={"area", "zone", "line"}, exclude_none=True)
            content = {
                "alert": name,
                "state": state,
                **watched,
                "value": value,
                "time": utc(time.time()),
                "number": number,
            }
            changes.append((name, content))
            if self._webhooks and alert.settings.webhook:
                self._webhooks.post(alert.settings.webhook, content)
        if changes:
            self._record.names = [name for name, alert in self._alerts.items() if alert.raised]
            self._journal.write(self._record)
        return changes

    def raised(self, now_s: float) -> dict[str, dict]:
        """What is raised now: alert -> what it watches, its limit, and the value."""
        found = {}
        for name, alert in self._alerts.items():
            if alert.raised:
                about = alert.settings.model_dump(include={"area", "zone", "line", "above", "below"}, exclude_none=True)
                found[name] = {**about, "value": self._of(alert.settings, now_s)}
        return found

    def close(self) -> None:
        if self._webhooks:
            self._webhooks.close()
        self._journal.close()

    def _tell_missing(self, name: str, missing: bool) -> None:
        """Logs once that an alert watches something that does not exist."""
        if missing and name not in self._missing_told:
            logging.getLogger("fusion.alerts").warning("the alert %s watches a line or zone that does not exist", name)
        (self._missing_told.add if missing else self._missing_told.discard)(name)

    def _of(self, settings: AlertSettings, now_s: float) -> float | None:
        if settings.line is not None:
            crossed_s, known = self._crossed_s.get(settings.line, ()), self._value("line", settings.line)
            return None if known is None else sum(s > now_s - LINE_OVER_S for s in crossed_s)
        return self._value(*self._watched(settings))

    @staticmethod
    def _watched(settings: AlertSettings) -> tuple[str, str]:
        """(kind, name) of what an alert watches."""
        return next((kind, name) for kind in ("area", "zone", "line") if (name := getattr(settings, kind)) is not None)


@dataclass
class Alert:
    """One alert: raised or not."""

    settings: AlertSettings
    raised: bool = False
    _since_s: float | None = None  # since when the value asks for the other state

    def update(self, value: float, now_s: float) -> bool:
        """True when the alert was raised or cleared by this value."""
        if self._wants(value) == self.raised:
            self._since_s = None
            return False
        self._since_s = now_s if self._since_s is None else self._since_s
        if now_s - self._since_s < self.settings.for_s:
            return False
        self.raised, self._since_s = not self.raised, None
        return True

    def _wants(self, value: float) -> bool:
        s = self.settings
        if s.above is not None:
            return value > s.above or (self.raised and s.clear_below is not None and value >= s.clear_below)
        assert s.below is not None
        return value < s.below or (self.raised and s.clear_above is not None and value <= s.clear_above)


class Webhooks(threading.Thread):
    """Posts alerts, each TRIES times at most. It never delays fusion."""

    def __init__(self) -> None:
        super().__init__(daemon=True, name="webhooks")
        self._log = logging.getLogger("fusion.webhooks")
        self._waiting: queue.Queue[tuple[str, dict] | None] = queue.Queue(QUEUE_MAX)
        self.start()

    def post(self, url: str, content: dict) -> None:
        try:
            self._waiting.put_nowait((url, content))
        except queue.Full:
            self._log.error("%s is too slow: an alert was not sent", redacted(url))

    def run(self) -> None:
        while (waiting := self._waiting.get()) is not None:
            url, content = waiting
            problem = ""
            for left in reversed(range(TRIES)):
                problem = _post(url, content)
                if not problem:
                    break
                if left:
                    time.sleep(BETWEEN_S)
            if problem:
                self._log.error("%s did not take an alert: %s", redacted(url), problem)

    def close(self) -> None:
        try:
            self._waiting.put_nowait(None)
        except queue.Full:
            return
        self.join(timeout=1)


def _post(url: str, content: dict) -> str:
    """Sends one request; returns what is wrong, or an empty text."""
    request = urllib.request.Request(url, json.dumps(content).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S):
            return ""
    except urllib.error.HTTPError as error:
        return f"HTTP {error.code}"
    except (OSError, ValueError, http.client.HTTPException) as error:
        return str(getattr(error, "reason", error)) or type(error).__name__
