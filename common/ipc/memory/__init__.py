"""The memory that rings are made of: shared memory for the CPU backend, CUDA IPC for the GPU. See interface.py."""

from peoplecounter.common.errors import AppError
from peoplecounter.common.ipc.memory.interface import Block, MappedMemory, MemoryKind, OwnedMemory, Slot, WorkQueue

__all__ = ["KINDS", "Block", "MappedMemory", "MemoryKind", "OwnedMemory", "Slot", "WorkQueue", "memory_kind"]

KINDS = {"cpu": "shm", "cuda": "cuda"}  # backend -> kind of memory


def memory_kind(name: str) -> MemoryKind:
    """The kind of memory with this name. Raises AppError for a name that this version does not know."""
    if name == "shm":
        from peoplecounter.common.ipc.memory.shm import SHM

        return SHM
    if name == "cuda":
        from peoplecounter.common.ipc.memory.cuda_ipc import CUDA_IPC  # needs cuda-python

        return CUDA_IPC
    raise AppError(f"The memory kind {name!r} is unknown: run the same version of peoplecounter in all services.")
