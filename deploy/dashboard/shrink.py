"""Scales a surface in a slot to a small picture in this process' memory, and says when the slot was read."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, cast

import av
import numpy as np

from peoplecounter.common.cubins import Launch, Pointer, TritonFunction
from peoplecounter.common.ipc.memory import Slot, WorkQueue
from peoplecounter.common.ipc.messages import SurfaceLayout
from peoplecounter.deploy.report.pictures import small

if TYPE_CHECKING:
    from peoplecounter.common.ipc.memory.cuda_ipc import CudaWorkQueue

OnShrunk = Callable[[av.VideoFrame], None]
AVERAGE_PLANE = TritonFunction("peoplecounter.deploy.dashboard.shrink_triton", "average_plane")
BLOCK_Y, BLOCK_X = 4, 64
FACTOR_MAX = 8  # the kernel's loops are unrolled; the host does the rest


class Shrinker(Protocol):
    def is_ready(self, layout: SurfaceLayout, width: int) -> bool:
        """True when surfaces of this layout can be scaled to this width; what that needs begins with the question."""
        ...

    def shrink(self, slot: Slot, layout: SurfaceLayout, width: int, on_shrunk: OnShrunk) -> None:
        """Calls `on_shrunk`, from the loop, with a picture of at most this width: the slot is not needed any more."""


class CpuShrinker:
    """For shared memory."""

    def is_ready(self, layout: SurfaceLayout, width: int) -> bool:
        return True

    def shrink(self, slot: np.ndarray, layout: SurfaceLayout, width: int, on_shrunk: OnShrunk) -> None:
        on_shrunk(small(layout, slot, width))


@dataclass
class _Prepared:
    """What surfaces of one layout need: kernels, room for the small picture on the GPU, and copies of it."""

    small: SurfaceLayout
    planes: list[tuple[Launch, int, int]]  # a kernel, and where its plane begins in the surface and in the picture
    room: int  # its address
    copies: list[np.ndarray] = field(default_factory=list)  # page-locked, not in use


class GpuShrinker:
    """For GPU memory. Kernels are compiled in a thread: the loop goes on beating."""

    def __init__(self, work: "CudaWorkQueue"):
        self._work = work
        self._thread = ThreadPoolExecutor(1, "shrink")
        self._prepared: dict[tuple[SurfaceLayout, int], Future[_Prepared]] = {}

    def is_ready(self, layout: SurfaceLayout, width: int) -> bool:
        key = layout, width
        if key not in self._prepared:
            self._prepared[key] = self._thread.submit(self._prepare, layout, width)
        if not self._prepared[key].done():
            return False
        self._prepared[key].result()
        return True

    def shrink(self, block: Slot, layout: SurfaceLayout, width: int, on_shrunk: OnShrunk) -> None:
        from peoplecounter.common.cuda import check, cudart, pinned

        prepared, stream = self._prepared[layout, width].result(), self._work.stream
        self._work.enter()
        for launch, begins, into in prepared.planes:
            launch(stream, block.address + begins, prepared.room + into)
        nbytes = prepared.small.nbytes
        copy = prepared.copies.pop() if prepared.copies else pinned((nbytes,), "uint8")
        to_host = cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost
        check(cudart.cudaMemcpyAsync(copy.ctypes.data, prepared.room, nbytes, to_host, stream))

        def copied() -> None:
            on_shrunk(small(prepared.small, copy, width))
            prepared.copies.append(copy)

        self._work.on_done(copied)

    def _prepare(self, layout: SurfaceLayout, width: int) -> _Prepared:
        from peoplecounter.common import cuda

        cuda.start(self._work.device)  # this is a thread of its own
        shrunk, planes = average_launches(layout, factor_of(layout, width))
        room = int(cuda.check(cuda.cudart.cudaMalloc(shrunk.nbytes)))
        kind = "u16" if layout.sample_bytes == 2 else "u8"
        launches = []
        for grid, begins, into, numbers, constants in planes:
            pointers = [Pointer(begins, kind), Pointer(into, "u8")]  # as far as alignment goes
            launches.append((Launch(AVERAGE_PLANE, grid, [*pointers, *numbers], constants), begins, into))
        return _Prepared(shrunk, launches, room)


def factor_of(layout: SurfaceLayout, width: int) -> int:
    """By how much the sides are divided for pictures of this width."""
    return min(FACTOR_MAX, max(1, layout.width // width))


def average_launches(
    layout: SurfaceLayout, factor: int
) -> tuple[SurfaceLayout, list[tuple[tuple[int, int], int, int, list[int], dict[str, int]]]]:
    """How a surface with each side divided by `factor` is made.

    (its layout, for luma and chroma: grid, bytes before the plane in both, numbers, constants of AVERAGE_PLANE).
    """
    width, height = max(2, layout.width // factor), max(2, layout.height // factor)
    pitch = width + width % 2
    shrunk = SurfaceLayout(width, height, pitch, layout.matrix, layout.full_range)
    planes = []
    for channels, first, out_first, size, out_size in (
        (1, 0, 0, (layout.width, layout.height), (width, height)),
        (2, layout.height, height, _halves(layout.width, layout.height), _halves(width, height)),
    ):
        grid = (-(-out_size[1] // BLOCK_Y), -(-out_size[0] // BLOCK_X))
        numbers = [layout.pitch // layout.sample_bytes, *size, pitch, *out_size]
        constants = {
            "SHIFT": 8 * (layout.sample_bytes - 1), "FACTOR": factor, "CHANNELS": channels,
            "BLOCK_Y": BLOCK_Y, "BLOCK_X": BLOCK_X,
        }  # fmt: skip
        planes.append((grid, first * layout.pitch, out_first * pitch, numbers, constants))
    return shrunk, planes


def _halves(width: int, height: int) -> tuple[int, int]:
    return (width + 1) // 2, (height + 1) // 2


def load_shrinker(work: WorkQueue) -> Shrinker:
    """The one for this kind of memory."""
    return CpuShrinker() if work.kind == "shm" else GpuShrinker(cast("CudaWorkQueue", work))
