"""What a slot is made of. Each kind of memory is a module with the same two classes:

`Owned(run_dir, name, slots, slot_bytes)` allocates; `Mapped(run_dir, spec)` maps what the owner's Welcome describes.
Both give `slot(index)`, the slot's bytes. `Owned.ready(index)` says that the slot's content may be read from now on;
`Mapped.wait(index)` makes the reader's later work wait for that; `Mapped.done(index)` returns when the reader's work
on the slot has finished. In shared memory all three are immediate, on a GPU they are events on a stream.
"""

from importlib import import_module
from types import ModuleType

from common.errors import Refused

KINDS = {"cpu": "shm"}  # backend -> kind of memory


def kind(name: str) -> ModuleType:
    """The module that implements one kind of memory; raises Refused for a kind this installation does not have."""
    if name not in KINDS.values():
        raise Refused(f"Memory of kind {name!r} is not supported here: both ends must run the same backend.")
    return import_module(f"common.memory.{name}")
