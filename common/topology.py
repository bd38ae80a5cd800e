"""The one table of services, rings and parts. The runtime opens what is written here; no service names a ring itself.

`deploy/` starts the services of this table, and tests check every unit, compose file and pod against it.
"""

from dataclasses import dataclass
from typing import Literal

SURFACES, TENSORS = "surfaces", "tensors"  # rings: NV12 pixels of a source; the network's input images
FRAME, PICTURE = "frame", "picture"  # parts of a surface: for inference; for viewers, who are never waited for
GLOBAL, TILES = "global", "tiles"  # parts of a tensor slot
RESULTS = "results.fusion."  # followed by a fusion's number: the link on which every process sends it results


@dataclass(frozen=True)
class ServiceRow:
    """One service: `python -m MODULE [INSTANCE]`."""

    name: str
    reads: str | None  # the ring it consumes
    part: str | None  # which parts of that ring
    owns: str | None  # the ring it writes
    each: Literal["source", "worker", "group"]  # one process per source; settings.workers of them; one per group
    does: str
    optional: bool = False  # a group may be without it
    elsewhere: str = ""  # its module, if that is not in services
    fixed: bool = False  # its number stays while the group runs: each of its processes has sources of its own

    @property
    def module(self) -> str:
        """What `python -m` runs."""
        return self.elsewhere or f"peoplecounter.services.{self.name}"

    @property
    def on_gpu(self) -> bool:
        """True for a service of which every GPU of a group has processes of its own."""
        return self.each != "group" and bool(self.reads or self.owns)


DASHBOARD = "peoplecounter.deploy.dashboard"  # uses what commands use, so it is not in services

SERVICES = (
    ServiceRow("decoder", None, None, SURFACES, "source", "source -> NV12 surface in a slot"),
    ServiceRow("preprocess", SURFACES, FRAME, TENSORS, "worker", "surface -> the images of its views"),
    ServiceRow("infer_global", TENSORS, GLOBAL, None, "worker", "the whole frame -> detections"),
    ServiceRow("infer_tiles", TENSORS, TILES, None, "worker", "one group of its tiles, at every level -> detections"),
    ServiceRow("fusion", None, None, None, "worker", "join, merge, count, track, publish", fixed=True),
    ServiceRow("history", None, None, None, "group", "event logs -> database", True),
    ServiceRow("dashboard", SURFACES, PICTURE, None, "group", "pictures, pages, API", True, DASHBOARD),
)
LENT = {row.reads: row.part for row in SERVICES if row.reads and row.optional}  # ring -> its part for viewers
BY_NAME = {row.name: row for row in SERVICES}
