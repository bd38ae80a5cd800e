"""Log lines for machines are JSON, and one place in the code cannot fill a disk."""

import json
import logging
import subprocess
import sys

import pytest

from peoplecounter.common.logs import BURST, KINDS_MAX, WITHIN_S, JsonFormatter, RepeatFilter
from tests.support.cli import ROOT, command


def record(message, *values):
    return logging.LogRecord("decoder.cam", logging.WARNING, __file__, 1, message, values, None)


def test_a_line_is_one_json_object():
    line = json.loads(JsonFormatter().format(record("seq %d skipped:\n%s", 7, "torn")))
    assert line["time"].endswith("Z")
    del line["time"]
    assert line == {"level": "warning", "service": "decoder.cam", "message": "seq 7 skipped:\ntorn"}


def test_repeats_are_held_back_and_counted():
    now = [0.0]
    repeats = RepeatFilter(lambda: now[0])
    assert sum(repeats.filter(record("seq %d skipped", i)) for i in range(100)) == BURST
    assert repeats.filter(record("another"))
    now[0] = WITHIN_S + 1
    later = record("seq %d skipped", 100)
    assert repeats.filter(later)
    assert json.loads(JsonFormatter().format(later))["held_back"] == 100 - BURST


def test_two_errors_without_words_in_their_template_are_two_kinds():
    """Two sources that cannot be played were counted as one message: the second one was never shown."""
    repeats = RepeatFilter(lambda: 0.0)
    shown = [repeats.filter(record("%s", f"source {n} is no video")) for _ in range(100) for n in ("door", "yard")]
    assert sum(shown) == 2 * BURST


def test_kinds_of_messages_are_bounded():
    repeats = RepeatFilter(lambda: 0.0)
    assert all(repeats.filter(record("%s", f"frame {n}")) for n in range(3 * KINDS_MAX))
    assert len(repeats._windows) == KINDS_MAX


@pytest.mark.parametrize("where", ["environment", "file", "file with a wrong setting"])
def test_a_refusal_is_json_where_the_log_is(where, run_dir, tmp_path):
    """The line that says why a service ended was the only one that a log collector could not read."""
    wrong = "decoder.slot = 4\n" if where.endswith("setting") else ""
    config = tmp_path / "pc.toml"
    config.write_text(f"{wrong}log_format = 'json'\n" if "file" in where else "")
    variables = {"PEOPLECOUNTER_CONFIG": str(config)}
    if where == "environment":
        variables["PEOPLECOUNTER_LOG_FORMAT"] = "json"
    _, environment = command(run_dir, **variables)
    process = [sys.executable, "-m", "peoplecounter.services.decoder", "door"]
    done = subprocess.run(process, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 78
    line = json.loads(done.stderr)
    assert (line["level"], line["service"]) == ("error", "decoder.door")
    assert ("decoder.slot" if wrong else "does not exist") in line["message"]
