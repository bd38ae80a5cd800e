"""The one table of services: what each reads and owns, and how many processes of it there are.

`deploy/` starts what is written here; tests check every unit and compose file against it.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Service:
    """One row: `python -m peoplecounter.services.<name> <instance>`."""

    name: str
    reads: str | None  # ring it consumes
    part: str | None  # which parts of it
    owns: str | None  # ring it writes
    each: Literal["source", "worker", "group"]  # one process a source; as many as settings.workers says; one
    does: str


SERVICES = (
    Service("decoder", None, None, "surfaces", "source", "source -> NV12 surface in a slot"),
    Service("preprocess", "surfaces", "frame", "tensors", "worker", "surface -> letterboxed frame and tiles"),
    Service("infer_global", "tensors", "global", None, "worker", "letterboxed frame -> detections"),
    Service("infer_tiles", "tensors", "tiles", None, "worker", "one group of tiles -> detections"),
    Service("fusion", None, None, None, "group", "join, merge, count, publish"),
)
