"""Logs on stderr, for a supervisor to keep and rotate: text for people or JSON for machines, with repeats held back."""

import json
import logging
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Level = Literal["debug", "info", "warning", "error"]
BURST, WITHIN_S = 5, 10.0  # messages of one kind shown within that time; more are counted
KINDS_MAX = 1000  # kinds of messages told apart; beyond that the oldest kind is forgotten
TEXT_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
PLACEHOLDER = re.compile(r"%[-#0 +]*\d*(\.\d+)?[a-z]")


def configure(log_format: str, level: str) -> None:
    """Sends everything from `level` up to stderr, as "text" or as "json" with one object a line."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter(TEXT_FORMAT))
    handler.addFilter(RepeatFilter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


def final_error_line(log_format: str, name: str, message: str) -> str:
    """The last line of a process that ends with an error: JSON where the log is JSON, else `NAME: MESSAGE`."""
    if log_format != "json":
        return f"{name}: {message}"
    return JsonFormatter().format(logging.LogRecord(name, logging.ERROR, "", 0, message, None, None))


class TextFormatter(logging.Formatter):
    """Lines for people, in UTC."""

    converter = staticmethod(time.gmtime)

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        held_back = getattr(record, "held_back", 0)
        return f"{text} ({held_back} similar messages were held back)" if held_back else text


class JsonFormatter(logging.Formatter):
    """{"time", "level", "service", "message"}, and "held_back" and "exception" where there are any."""

    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"
        line: dict[str, str | int] = {
            "time": stamp,
            "level": record.levelname.lower(),
            "service": record.name,
            "message": record.getMessage(),
        }
        if held_back := getattr(record, "held_back", 0):
            line["held_back"] = held_back
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


@dataclass
class _Window:
    since_s: float
    shown: int = 0
    held_back: int = 0


class RepeatFilter(logging.Filter):
    """Lets BURST messages of one kind through within WITHIN_S; the next one says how many were held back."""

    def __init__(self, clock_s: Callable[[], float] = time.monotonic):
        super().__init__()
        self._clock_s = clock_s
        self._windows: dict[tuple[str, str], _Window] = {}  # (logger, kind of message), oldest first

    def filter(self, record: logging.LogRecord) -> bool:
        now_s, key = self._clock_s(), (record.name, _kind(record))
        window = self._windows.setdefault(key, _Window(now_s))
        if len(self._windows) > KINDS_MAX:
            del self._windows[next(iter(self._windows))]
        if now_s - window.since_s > WITHIN_S:
            if window.held_back:
                record.held_back = window.held_back
            window = self._windows[key] = _Window(now_s)
        window.shown += 1
        if window.shown > BURST:
            window.held_back += 1
            return False
        return True


def _kind(record: logging.LogRecord) -> str:
    """What repeats have in common: the template, or the whole text of a template that is only a placeholder."""
    template = str(record.msg)
    if re.search(r"\w", PLACEHOLDER.sub("", template)):
        return template
    return f"{template} {record.args}"
