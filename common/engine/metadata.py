"""What an ONNX file says about itself: its classes, task and size, as exporters write it; and the class of a person."""

import ast
from collections.abc import Mapping
from dataclasses import dataclass, field

from peoplecounter.common.errors import AppError

PERSONS = {"person", "persons", "people", "pedestrian", "human"}
SHOWN = 10  # class names in an error


@dataclass(frozen=True)
class Metadata:
    """The custom metadata of an ONNX file; empty where it has none."""

    names: dict[int, str] = field(default_factory=dict)
    task: str = ""
    description: str = ""
    size: tuple[int, int] | None = None  # (width, height) that it was exported for, px


NO_METADATA = Metadata()


def read_metadata(values: Mapping[str, str]) -> Metadata:
    """The metadata among an ONNX file's own; what cannot be read is as if it were not there."""
    names, size = _literal(values.get("names", "")), _literal(values.get("imgsz", ""))
    if isinstance(names, (list, tuple)):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or not all(isinstance(key, int) for key in names):
        names = {}
    names = {key: str(name) for key, name in names.items()}
    if isinstance(size, int):
        size = [size, size]
    sides = tuple(size) if isinstance(size, (list, tuple)) and all(isinstance(side, int) for side in size) else ()
    return Metadata(
        names, values.get("task", ""), values.get("description", ""), (sides[1], sides[0]) if len(sides) == 2 else None
    )


def person_class(metadata: Metadata, classes: int, default: int, wanted: int | None, model: str) -> int:
    """The index of the class that is counted: the one whose name is a person's, or `wanted`, which must not contradict.

    `classes`: how many the output has room for, 0 if unknown. `default`: without names. Raises AppError.
    """
    named = {index: name for index, name in metadata.names.items() if name.strip() not in (str(index), f"class{index}")}
    persons = [index for index, name in named.items() if name.strip().lower() in PERSONS]
    if wanted is None:
        if named and len(persons) != 1:
            shown = ", ".join(f"{index} {name}" for index, name in list(named.items())[:SHOWN])
            which = "several classes of persons" if persons else "no class called 'person'"
            raise AppError(f"The model {model} has {which} ({shown}): set engine.person_class to the one to count.")
        wanted = persons[0] if persons else default
    elif persons and wanted not in persons:
        raise AppError(
            f"engine.person_class is {wanted}, which the model {model} calls {named.get(wanted, 'nothing')!r}; "
            f"{named[persons[0]]!r} is class {persons[0]}: leave the setting out."
        )
    if classes and wanted >= classes:
        raise AppError(f"The model {model} has {classes} classes, counted from 0: it has no class {wanted}.")
    return wanted


def _literal(text: str) -> object:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
