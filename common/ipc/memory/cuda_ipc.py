"""GPU memory shared between processes: one cudaMalloc, exported once, with a fence for each slot at its beginning.

A fence is a word that holds the generation written last. The owner's stream sets it behind the work that writes the
slot; a reader's stream waits until it is there; no host waits. Interprocess events would do that too, with two
differences: a reader that waits for an event of a dead owner waits for ever (seen on an H200), a fence it sets itself;
and an event must be recorded before it is waited for, so a slot could not be offered before its picture is decoded.

A reader frees nothing before its own stream is through: a mapping that has ended is closed in order, behind the work
that still reads it. As long as it lives, an owner frees after its readers (Downstream sees to that).
"""

import contextlib
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from peoplecounter.common import cuda
from peoplecounter.common.cuda import HANDLE_BYTES, UUID_BYTES, CudaError, check, cudart, driver
from peoplecounter.common.errors import SOFTWARE, GpuLost, Refused
from peoplecounter.common.ipc.loop import Loop
from peoplecounter.common.ipc.messages import RingSpec

ALIGN = 512  # bytes: where slots begin; the fences are in front of the first
FENCE_BYTES = 4
BLOCK = 2 << 20  # bytes: smaller allocations share a block, and a handle names the whole of it
GAUGE_NS = 5_000_000_000  # how often the GPU is asked for its memory, at most


@dataclass(frozen=True)
class Block:
    """A slot in GPU memory: an address for TensorRT and CUDA, an array interface for torch and Triton; no copies."""

    address: int
    nbytes: int

    @property
    def __cuda_array_interface__(self) -> dict:
        return {"shape": (self.nbytes,), "typestr": "|u1", "data": (self.address, False), "version": 3, "strides": None}


class Work:
    """One stream of high priority. A thread waits for the GPU, so that the loop wakes when work has finished."""

    kind = "cuda"

    def __init__(self, loop: Loop):
        cuda.start()
        _, highest = check(cudart.cudaDeviceGetStreamPriorityRange())
        self._stream = check(cudart.cudaStreamCreateWithPriority(cudart.cudaStreamNonBlocking, highest))
        self._side = check(cudart.cudaStreamCreateWithFlags(cudart.cudaStreamNonBlocking))
        self.stream = int(self._stream)
        self.on_stuck: list[Callable[[], None]] = []  # called once for work that takes half of cuda.STUCK_S
        self._told_stuck = False
        self._loop = loop
        self._pending: deque[tuple[object, Callable[[], None], int]] = deque()  # event, callback, queued when
        self._spare: list[object] = []
        self._gauges: dict[str, int] = {}
        self._gauged_ns = 0
        self._waits: queue.SimpleQueue = queue.SimpleQueue()
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        loop.watch(self._wake_fd, self._woken)
        loop.every_tick(self._collect)
        threading.Thread(target=self._wait, daemon=True, name="gpu").start()

    def then(self, callback: Callable[[], None]) -> None:
        """Calls back from the loop when everything queued on the stream so far has finished."""
        flags = cudart.cudaEventBlockingSync | cudart.cudaEventDisableTiming
        event = self._spare.pop() if self._spare else check(cudart.cudaEventCreateWithFlags(flags))
        check(cudart.cudaEventRecord(event, self._stream))
        self._pending.append((event, callback, self._loop.now_ns()))
        self._waits.put(event)

    def set_fence(self, address: int, generation: int, ahead: bool = False) -> None:
        """Sets a fence behind what is queued, or `ahead` of it, so that waiting for it ends."""
        stream = int(self._side) if ahead else self.stream
        check(driver.cuStreamWriteValue32(stream, address, generation, 0))

    def wait_fence(self, address: int, generation: int) -> None:
        """What is queued from now on begins when the fence has reached this generation."""
        at_least = driver.CUstreamWaitValue_flags.CU_STREAM_WAIT_VALUE_GEQ
        check(driver.cuStreamWaitValue32(self.stream, address, generation, at_least))

    def gauges(self) -> dict[str, int]:
        """Memory of the GPU in use by everybody, and all there is, bytes."""
        now = self._loop.now_ns()
        if now >= self._gauged_ns:
            self._gauged_ns = now + GAUGE_NS
            free, total = check(cudart.cudaMemGetInfo())
            self._gauges = {"gpu_used_bytes": total - free, "gpu_bytes": total}
        return self._gauges

    def finish(self) -> None:
        """Waits, with the host, for what is queued; gives frozen owners up like the loop does."""
        began_s = time.monotonic()
        while (code := cudart.cudaStreamQuery(self._stream))[0] == cudart.cudaError_t.cudaErrorNotReady:
            self._judge((time.monotonic() - began_s) * 1e9)
            time.sleep(0.0002)
        check(code)

    def close(self) -> None:
        """Waits for what is queued; the stream goes with the process."""
        self.finish()
        self._waits.put(None)

    def _wait(self) -> None:
        check(cudart.cudaSetDevice(0))
        for event in iter(self._waits.get, None):
            cudart.cudaEventSynchronize(event)  # an error is found, and told, by _collect
            os.eventfd_write(self._wake_fd, 1)

    def _woken(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._wake_fd)
        self._collect(self._loop.now_ns())

    def _collect(self, now_ns: int) -> None:
        while self._pending:
            event, callback, queued_ns = self._pending[0]
            code = cudart.cudaEventQuery(event)
            if code[0] == cudart.cudaError_t.cudaErrorNotReady:
                return self._judge(now_ns - max(queued_ns, self._loop.woke_ns))
            check(code)
            self._told_stuck = False
            self._pending.popleft()
            self._spare.append(event)
            callback()

    def _judge(self, waiting_ns: int) -> None:
        """A frozen owner's fence is lifted; a GPU that then still does not go on is lost."""
        if waiting_ns > cuda.STUCK_S * 1e9:
            raise GpuLost(cuda.STUCK)
        if waiting_ns > cuda.STUCK_S * 0.5e9 and not self._told_stuck:
            self._told_stuck = True
            for callback in self.on_stuck:
                callback()


class _Slots:
    _base: int  # address of the ring

    def __init__(self, work: Work, slot_bytes: int):
        self._work, self._nbytes, self._step = work, slot_bytes, -(-slot_bytes // ALIGN) * ALIGN

    def slot(self, index: int) -> Block:
        """The slot's block of GPU memory."""
        return Block(self._base + ALIGN + index * self._step, self._nbytes)

    def fence(self, index: int) -> int:
        """The address of the slot's fence."""
        return self._base + index * FENCE_BYTES


class Owned(_Slots):
    """Allocates a ring on the GPU and exports it. Raises Refused when there is no room for it."""

    def __init__(self, work: Work, run_dir: Path, name: str, epoch: str, slots: int, slot_bytes: int):
        super().__init__(work, slot_bytes)
        total = -(-(ALIGN + slots * self._step) // BLOCK) * BLOCK
        try:
            self._base = int(check(cudart.cudaMalloc(total)))
        except CudaError:
            raise Refused(f"No room for {total >> 20} MB on the GPU: take fewer slots.", SOFTWARE) from None
        check(cudart.cudaMemset(self._base, 0, ALIGN))
        self.handle = cuda.uuid() + cuda.bytes_of(check(cudart.cudaIpcGetMemHandle(self._base)))

    def ready(self, index: int, generation: int) -> None:
        """The slot's content is there when the work queued so far has finished."""
        self._work.set_fence(self.fence(index), generation)

    def close(self) -> None:
        """Frees the ring behind what is queued; readers must have closed their mappings, or be gone."""
        self._work.then(lambda: check(cudart.cudaFree(self._base)))


class Mapped(_Slots):
    """Maps another process' ring. Raises Refused for one on another GPU, of this very process, or of another kind."""

    def __init__(self, work: Work, run_dir: Path, spec: RingSpec):
        if len(spec.handle) != UUID_BYTES + HANDLE_BYTES:
            raise Refused(f"The ring handle has {len(spec.handle)} bytes, which is no CUDA ring.")
        if spec.handle[:UUID_BYTES] != cuda.uuid():
            raise Refused("The ring is on another GPU: give all processes of a group the same CUDA_VISIBLE_DEVICES.")
        super().__init__(work, spec.slot_bytes)
        try:
            handle = cuda.fill(cudart.cudaIpcMemHandle_t(), spec.handle[UUID_BYTES:])
            self._base = int(check(cudart.cudaIpcOpenMemHandle(handle, cudart.cudaIpcMemLazyEnablePeerAccess)))
        except CudaError as error:
            raise Refused(
                f"The ring cannot be mapped ({error.code.name}): its owner must be another process, which is alive and "
                "shares this one's PID and IPC namespaces."
            ) from None

    def wait(self, index: int, generation: int) -> None:
        """What is queued from now on begins when the owner has written this generation of the slot."""
        self._work.wait_fence(self.fence(index), generation)

    def lift(self, index: int, generation: int) -> None:
        """Ends that wait, whatever is in the slot."""
        self._work.set_fence(self.fence(index), generation, ahead=True)

    def close(self, then: Callable[[], None] = lambda: None) -> None:
        """Unmaps the ring behind the work that still reads it, then calls `then`."""

        def unmap() -> None:
            check(cudart.cudaIpcCloseMemHandle(self._base))
            then()

        self._work.then(unmap)
