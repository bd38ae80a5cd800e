"""Changes what a running group counts: its lines and zones, and how many people are in an area."""

from peoplecounter.common import shape_changes
from peoplecounter.common.counting import LineSettings, check_name
from peoplecounter.common.errors import NO_INPUT, SOFTWARE, AppError
from peoplecounter.common.ipc.messages import NOTE_MAX, Correct, Corrected
from peoplecounter.common.shape_changes import LineOrZone
from peoplecounter.common.sources import known_sources
from peoplecounter.deploy.group import client
from peoplecounter.deploy.group.client import RunningGroup

SHAPES_MAX = 64  # of a source


def kind_of(shape: LineOrZone) -> str:
    """line or zone."""
    return "line" if isinstance(shape, LineSettings) else "zone"


def shapes_of(group: RunningGroup, source: str) -> dict[str, LineOrZone]:
    """The lines and zones of a source by name. Raises AppError when there is no such source."""
    known = known_sources(group.settings)
    if source not in known:
        raise AppError(f"The source {source!r} does not exist: see 'peoplecounter source list'.", NO_INPUT)
    found = known[source].source
    assert found is not None
    return shape_changes.known_shapes(group.settings, source, found)


def change_shape(group: RunningGroup, source: str, name: str, shape: LineOrZone | None) -> str:
    """Adds a line or zone, changes it, or removes it with None; returns "added", "changed" or "removed".

    Raises AppError when there is none to remove, or another kind of that name.
    """
    check_name(name, "line or zone")
    shapes = shapes_of(group, source)
    before = shapes.get(name)
    if shape is None and before is None:
        raise AppError(f"{source} has no line or zone {name!r}: see 'peoplecounter line list'.", NO_INPUT)
    if shape and before and type(shape) is not type(before):
        raise AppError(f"{source}.{name} is a {kind_of(before)} already: remove it first, or choose another name.")
    if before is None and len(shapes) >= SHAPES_MAX:
        raise AppError(f"{source} has {SHAPES_MAX} lines and zones already: remove one first.")
    shape_changes.write_shape(group.settings, source, name, shape)
    return "removed" if shape is None else "changed" if before else "added"


def correct(group: RunningGroup, area: str, people: int, note: str) -> tuple[int, int]:
    """Says how many people are in an area; returns how many were counted before and are now. Raises AppError."""
    check_name(area, "area")
    if len(note) > NOTE_MAX:
        raise AppError(f"The note has {len(note)} characters: at most {NOTE_MAX} are stored.")
    client.processes(group.run_dir)
    answer = client.ask(group, ["fusion.0"], Correct(area, people, note)).get("fusion.0")
    if not isinstance(answer, Corrected):
        raise AppError("fusion does not answer: see 'peoplecounter ps'.", SOFTWARE)
    if answer.refusal:
        raise AppError(answer.refusal)
    return answer.before, answer.after
