"""Logs on stderr, for a supervisor to keep and rotate: text for people or JSON for machines, repeats held back."""

import json
import logging
import re
import sys
import time
from collections.abc import Callable
from typing import Literal

Level = Literal["debug", "info", "warning", "error"]
BURST, WITHIN_S = 5, 10.0  # more of one message than this within that time are counted, not shown
KINDS_MAX = 1000  # kinds of messages that are told apart; of the oldest ones beyond that, repeats are forgotten
_PLACEHOLDER = re.compile(r"%[-#0 +]*\d*(\.\d+)?[a-z]")


def configure(form: str, level: str) -> None:
    """Sends everything from `level` up to stderr: "text", or "json" with one object a line."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Json() if form == "json" else Text("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    handler.addFilter(Repeats())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


class Text(logging.Formatter):
    converter = time.gmtime

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        held = getattr(record, "held_back", 0)
        return f"{text} ({held} more like it were held back)" if held else text


class Json(logging.Formatter):
    """{"time", "level", "service", "message", "held_back", "exception"}; the last two where there is something."""

    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"
        line = {
            "time": stamp,
            "level": record.levelname.lower(),
            "service": record.name,
            "message": record.getMessage(),
        }
        if held := getattr(record, "held_back", 0):
            line["held_back"] = held
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


class Repeats(logging.Filter):
    """Lets BURST records of one kind through in WITHIN_S; the next one after that says how many were held back."""

    def __init__(self, clock_s: Callable[[], float] = time.monotonic):
        super().__init__()
        self._clock_s = clock_s
        self._seen: dict[tuple[str, str], list] = {}  # (logger, kind of message) -> [since, shown, held]

    def filter(self, record: logging.LogRecord) -> bool:
        now = self._clock_s()
        seen = self._seen.setdefault((record.name, _kind(record)), [now, 0, 0])
        if len(self._seen) > KINDS_MAX:
            del self._seen[next(iter(self._seen))]
        if now - seen[0] > WITHIN_S:
            if seen[2]:
                record.held_back = seen[2]
            seen[:] = now, 0, 0
        seen[1] += 1
        seen[2] += seen[1] > BURST
        return seen[1] <= BURST


def _kind(record: logging.LogRecord) -> str:
    """What repeats of a message have in common: its template, or the whole text of one that is only a placeholder."""
    template = str(record.msg)
    return template if re.search(r"\w", _PLACEHOLDER.sub("", template)) else record.getMessage()


def refusal_line(form: str, name: str, sentence: str) -> str:
    """The last line of a process that refuses to go on: JSON where the log is, else `NAME: SENTENCE`."""
    if form != "json":
        return f"{name}: {sentence}"
    return Json().format(logging.LogRecord(name, logging.ERROR, "", 0, sentence, None, None))
