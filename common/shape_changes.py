"""The lines and zones of a source: those of the settings, and those that were added or removed while the group runs.

Each change is one file in a private directory, SOURCE.NAME.json: a line, a zone, or neither for one that was removed.
"""

from pathlib import Path

from peoplecounter.common.counting import LineSettings, Section, ZoneSettings, check_name
from peoplecounter.common.settings import Settings, SourceSettings
from peoplecounter.common.sources import read_change, write_in_group

FOLDER = "lines"  # in the run directory, or in data_dir

LineOrZone = LineSettings | ZoneSettings


class ShapeFile(Section):
    """The content of SOURCE.NAME.json."""

    line: LineSettings | None = None
    zone: ZoneSettings | None = None


def folder(settings: Settings) -> Path:
    """Where the changes are stored."""
    if settings.lines_dir:
        return Path(settings.lines_dir)
    return (Path(settings.data_dir) if settings.data_dir else settings.run_dir) / FOLDER


def known_shapes(settings: Settings, name: str, source: SourceSettings) -> dict[str, LineOrZone]:
    """The current lines and zones of a source by name. Raises AppError for a file that is not a change."""
    shapes: dict[str, LineOrZone] = {**source.lines, **source.zones}
    for path in sorted(folder(settings).glob(f"{name}.*.json")):
        change, shape_name = read_change(path, ShapeFile, "line or zone"), path.stem.partition(".")[2]
        shapes.pop(shape_name, None)
        if shape := change.line or change.zone:
            shapes[shape_name] = shape
    return shapes


def write_shape(settings: Settings, source: str, name: str, shape: LineOrZone | None) -> None:
    """Adds a line or zone to a source, or removes it with None. Raises AppError when it cannot."""
    check_name(name, "line or zone")
    content = ShapeFile(
        line=shape if isinstance(shape, LineSettings) else None, zone=shape if isinstance(shape, ZoneSettings) else None
    )
    write_in_group(folder(settings), f"{source}.{name}.json", content.model_dump_json().encode())
