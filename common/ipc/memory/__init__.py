"""What a slot is made of. Each kind of memory is a module with the same three classes:

`Work(loop)` is the queue of this process' work on slots; `then(callback)` calls back, from the loop, when all that was
queued so far has finished, and `gauges()` is what metrics say of it. `Owned(work, run_dir, name, epoch, slots,
slot_bytes)` allocates a ring; `ready` says that a generation of a slot may be read once the work queued so far has
finished. `Mapped(work, run_dir, spec)` maps what an owner's Welcome describes; `wait` makes the work queued from now on
wait for a generation, `lift` ends that wait when it would be in vain. Both give `slot(index)`, the slot itself.

In shared memory work is finished when its code is. On a GPU it is queued on a stream, and nobody waits for it but the
GPU itself: a slot is offered while it is still being written, and released when the reader's last kernel has ended.
"""

from importlib import import_module
from types import ModuleType

from peoplecounter.common.errors import Refused

KINDS = {"cpu": "shm", "cuda": "cuda"}  # backend -> kind of memory


def kind(name: str) -> ModuleType:
    """The module that implements one kind of memory; raises Refused for a kind this installation does not have."""
    if name not in KINDS.values():
        raise Refused(f"Memory of kind {name!r} is not known here: run the same version of peoplecounter everywhere.")
    return import_module(f"peoplecounter.common.ipc.memory.{name}")
