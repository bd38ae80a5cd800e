"""What a ring's memory can do, whatever it is made of.

In shared memory work is finished when its code has run. On a GPU work is queued on a stream, and the GPU itself waits
for it, never the host: a slot is offered while it is still being written, and released when the reader's last kernel
has ended.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from peoplecounter.common.ipc.messages import RingSpec


@dataclass(frozen=True)
class Block:
    """A slot in GPU memory: an address for TensorRT and CUDA, an array interface for torch and Triton. No copies."""

    address: int
    nbytes: int

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {"shape": (self.nbytes,), "typestr": "|u1", "data": (self.address, False), "version": 3, "strides": None}


Result = TypeVar("Result")
Slot = Any  # shared memory: np.ndarray uint8 [slot_bytes]; GPU memory: Block


class WorkQueue(Protocol):
    """The queue of a process' work on slots."""

    kind: str  # "shm" | "cuda"
    stream: int  # the CUDA stream that work is queued on; 0 without a GPU
    on_stuck: list[Callable[[], None]]  # called when queued work takes suspiciously long

    def call(self, work: Callable[[], Result], tick: Callable[[], None]) -> Result:
        """Does work that may take long on a CPU, and ticks meanwhile; returns its result or raises its exception.

        On a GPU the work is only queued, so it is called at once.
        """
        ...

    def on_done(self, callback: Callable[[], None]) -> None:
        """Calls back, from the loop, when everything queued so far has finished."""

    def poll(self) -> None:
        """From now on the loop does not sleep while work is queued on a GPU."""

    def finish(self) -> None:
        """Waits until everything queued so far has finished. Raises GpuLost when it does not."""

    def gauges(self) -> dict[str, int]:
        """Values for metrics."""
        ...

    def close(self) -> None:
        """Waits for what is queued."""


class OwnedMemory(Protocol):
    """A ring's memory in its owner's process."""

    handle: bytes  # travels in RingSpec

    def slot(self, index: int) -> Slot:
        """The slot, writable."""

    def ready(self, index: int, generation: int) -> None:
        """This generation of the slot may be read once the work queued so far has finished."""

    def close(self) -> None:
        """Frees the memory. Readers must have closed their mappings or ended."""


class MappedMemory(Protocol):
    """A ring's memory as another process maps it."""

    def slot(self, index: int) -> Slot:
        """The slot. Read only."""

    def wait(self, index: int, generation: int) -> None:
        """Work queued from now on starts when the owner has written this generation of the slot."""

    def abort_wait(self, index: int, generation: int) -> None:
        """Ends that wait, whatever the slot contains."""

    def close(self, on_done: Callable[[], None] = lambda: None) -> None:
        """Unmaps the memory behind the work that still reads it, then calls `on_done`."""


@dataclass(frozen=True)
class MemoryKind:
    """One kind of memory: how its work is queued, how a ring is allocated, and how another process maps it."""

    work_queue: Callable[..., WorkQueue]  # loop, which of the visible GPUs (0)
    allocate: Callable[[Any, Path, str, str, int, int], OwnedMemory]  # work, run_dir, name, epoch, slots, slot_bytes
    map: Callable[[Any, Path, RingSpec], MappedMemory]  # work, run_dir, spec
