"""Log lines for machines are JSON, and one place in the code cannot fill a disk."""

import json
import logging

from common.logs import BURST, WITHIN_S, Json, Repeats


def record(message, *values):
    return logging.LogRecord("decoder.cam", logging.WARNING, __file__, 1, message, values, None)


def test_a_line_is_one_json_object():
    line = json.loads(Json().format(record("seq %d skipped:\n%s", 7, "torn")))
    assert line["time"].endswith("Z")
    del line["time"]
    assert line == {"level": "warning", "service": "decoder.cam", "message": "seq 7 skipped:\ntorn"}


def test_repeats_are_held_back_and_counted():
    now = [0.0]
    repeats = Repeats(lambda: now[0])
    assert sum(repeats.filter(record("seq %d skipped", i)) for i in range(100)) == BURST
    assert repeats.filter(record("another"))
    now[0] = WITHIN_S + 1
    later = record("seq %d skipped", 100)
    assert repeats.filter(later)
    assert json.loads(Json().format(later))["held_back"] == 100 - BURST
