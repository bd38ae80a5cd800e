"""How good are the counts at this door? A clip is counted, a person marks its crossings, and both are compared."""

import json
import os
import tempfile
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

from peoplecounter.common.errors import NO_INPUT, SOFTWARE, AppError
from peoplecounter.common.files import Replacement, write_file
from peoplecounter.common.settings import PREFIX, Settings, default_run_dir, load_settings
from peoplecounter.common.sources import redacted
from peoplecounter.deploy.group.foreground import configure, overrides, run_group
from peoplecounter.deploy.report.crossings import (
    CrossingAt,
    compare_crossings,
    comparison_lines,
    disagreement_lines,
    read_crossings,
    write_crossings,
)
from peoplecounter.deploy.report.marking import ClipPictures, MarkingServer

# the settings that decide what is counted; the others say where a group keeps and sends what it counts
DECISIVE = {"backend", "cores", "mps", "workers", "link", "decoder", "views", "preprocess", "engine", "fusion"}
NOT_SENT = {"publish": "", "key": "", "subscribers": ""}
INTERRUPTED = 130  # exit code after Ctrl-C


def validate(
    clip: str,
    model: str | None,
    config: Path | None,
    marks: Path | None,
    page: bool,
    speed: float,
    port: int,
    tolerance_s: float,
    stop_event: Callable[[], threading.Event],
) -> None:
    """Counts a clip, gets its marks from a person, or with `page` False from the file `marks`; prints how they agree.

    `clip`: a file, or NAME=FILE for a source of `config`, which has the lines. `marks` gets the marks; None stands for
    NAME.marks.csv in the current folder. `stop_event()`: one that is set on Ctrl-C. Raises AppError.
    """
    name, settings = source_of(clip, model, config)
    source, marks = settings.sources[name], marks or Path(f"{name}.marks.csv")
    true = _known_marks(marks, page, source.lines.keys())
    pictures = ClipPictures(source)
    server = MarkingServer(pictures, source.lines, speed, port) if page else None
    print(f"{name}: {len(pictures.times_s)} frames are counted first; the marks come after that.", flush=True)
    found = counted(settings, name, len(pictures.times_s))

    def told(marked: list[CrossingAt]) -> list[str]:
        result = compare_crossings(found, marked, tolerance_s)
        return [*comparison_lines(result), *disagreement_lines(result)]

    def on_done(marked: list[CrossingAt]) -> list[str]:
        write_file(marks, write_crossings(marked).encode())
        true.extend(marked)
        return [*told(marked), saved]

    saved = f"The marks are in {marks}."
    if server:
        stop = stop_event()
        print(f"Open this page on this machine and mark each crossing; Enter ends it:\n\n  {server.url}\n", flush=True)
        if not server.serve(on_done, stop):
            raise AppError("Stopped before the marks were complete: nothing is saved.", INTERRUPTED)
    print("\n".join([*told(true), saved]), flush=True)


def source_of(clip: str, model: str | None, config: Path | None) -> tuple[str, Settings]:
    """(name of the source, settings) of a clip that is counted once. Raises AppError for one without lines."""
    changes = overrides([clip], model, [], None, False, False, None)
    (name,) = json.loads(changes[PREFIX + "SOURCES"])
    settings, _ = configure(config, changes)
    source = settings.sources[name]
    if not Path(source.url).is_file():
        raise AppError(f"{redacted(source.url)} is not a video file: record a clip of the camera first.", NO_INPUT)
    if not source.lines:
        others = [other for other, of in settings.sources.items() if of.lines]
        hint = f", or name the clip as the source with lines: {others[0]}={source.url}" if others else ""
        raise AppError(
            f"The source {name!r} has no line: add a [sources.{name}.lines.LINE] table to the file of --config{hint}."
        )
    return name, settings


def counted(settings: Settings, name: str, frames: int) -> list[CrossingAt]:
    """The crossings that a group counts at a source, a file of so many frames. Raises AppError when it does not end.

    The group has a run directory of its own. It counts nothing else, and sends, stores and alerts nothing.
    """
    with tempfile.TemporaryDirectory(prefix="pc-validate-", dir=Path(default_run_dir()).parent) as folder:
        events = Path(folder) / "events.jsonl"
        alone, environment = _alone(settings, name, Path(folder) / "group")
        summary, code = run_group(alone, environment, False, None, events=events, show_lines=False)
        if summary["problem"] or code:
            raise AppError(f"{summary['problem'] or 'The clip was not counted'}.", code or SOFTWARE)
        if summary["counted"] < frames:
            raise AppError(f"Stopped after {summary['counted']} of {frames} frames.", INTERRUPTED)
        return read_crossings(events)


def _known_marks(marks: Path, page: bool, lines: Iterable[str]) -> list[CrossingAt]:
    """The marks of the file, without a page; with one, none, but the file can be written. Raises AppError early."""
    if page and marks.exists():
        raise AppError(f"{marks} exists: compare its marks by --no-page, or choose another file by --marks.")
    if page:
        with Replacement(marks):  # nobody marks an hour for a folder that cannot be written
            return []
    true = read_crossings(marks)
    if unknown := sorted({mark.line for mark in true} - set(lines)):
        raise AppError(f"{marks} has marks at {unknown[0]!r}, which is not a line here: {', '.join(sorted(lines))}.")
    return true


def _alone(settings: Settings, name: str, run_dir: Path) -> tuple[Settings, dict[str, str]]:
    """The settings and the environment of a group that counts one source; also this process' own."""
    values = settings.model_dump(mode="json", include=DECISIVE)
    values["fusion"] |= NOT_SENT
    values["history"] = {"database": ""}
    values["sources"] = {name: settings.sources[name].model_dump(mode="json")}
    values["run_dir"] = str(run_dir)
    for variable in [variable for variable in os.environ if variable.startswith(PREFIX)]:
        del os.environ[variable]
    for key, value in values.items():
        os.environ[PREFIX + key.upper()] = value if isinstance(value, str) else json.dumps(value)
    return load_settings(), dict(os.environ)
