"""GPU memory shared between processes: one cudaMalloc, exported once, with a fence for each slot at its start.

A fence is a 32-bit word that holds the generation written last. The owner's stream sets it behind the work that writes
the slot; a reader's stream waits until it is reached; no host waits. Interprocess events would do the same, with two
differences. A reader that waits for an event of a dead owner waits for ever (seen on an H200), while a fence can be set
by the reader itself. And an event must be recorded before it can be waited for, so a slot could not be offered before
its picture is decoded.

A reader unmaps memory behind the work that still reads it. An owner frees memory after its readers have unmapped it
(RingProducer takes care of that).
"""

import contextlib
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from peoplecounter.common import cuda
from peoplecounter.common.cuda import HANDLE_BYTES, UUID_BYTES, CudaError, check, cudart, driver
from peoplecounter.common.errors import SOFTWARE, AppError, GpuLost
from peoplecounter.common.ipc.loop import ANY_MS, Loop
from peoplecounter.common.ipc.memory.interface import Block, MemoryKind, Result
from peoplecounter.common.ipc.messages import RingSpec

ALIGN_BYTES = 512  # slots start at multiples of this; the fences lie in front of the first slot
FENCE_BYTES = 4
ALLOCATION_BYTES = 2 << 20  # smaller allocations share a block, and a handle names the whole block
POLLED_NS = 30_000_000  # what has not finished after this time is looked at once a millisecond
GAUGE_NS = 5_000_000_000  # the GPU is asked for its memory at most this often


class CudaWorkQueue:
    """One stream of high priority. A thread waits for the GPU and wakes the loop when work has finished; or the loop
    polls, see poll().

    `device`: which of the visible GPUs. Only the dashboard has queues on several.
    """

    kind = "cuda"

    def __init__(self, loop: Loop, device: int = 0):
        cuda.start(device)
        self.device, self.uuid = device, cuda.uuid(device)
        self._several = check(cudart.cudaGetDeviceCount()) > 1
        _, highest = check(cudart.cudaDeviceGetStreamPriorityRange())
        self._stream = check(cudart.cudaStreamCreateWithPriority(cudart.cudaStreamNonBlocking, highest))
        self._side_stream = check(cudart.cudaStreamCreateWithFlags(cudart.cudaStreamNonBlocking))
        self.stream = int(self._stream)
        self.on_stuck: list[Callable[[], None]] = []  # called once when work takes half of cuda.STUCK_S
        self._called_stuck = False
        self._loop = loop
        self._pending: deque[tuple[object, Callable[[], None], int]] = deque()  # event, callback, ns when queued
        self._spare_events: list[object] = []
        self._gauges: dict[str, int] = {}
        self._gauges_due_ns = 0
        self._polls = False
        self._finished_ns = 0  # when work last did
        self._waits: queue.SimpleQueue = queue.SimpleQueue()
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        loop.watch(self._wake_fd, self._on_wake)
        loop.every_tick(self._collect)
        threading.Thread(target=self._wait_for_events, daemon=True, name="gpu").start()

    def poll(self) -> None:
        """From now on the loop polls for queued work, which costs a core as long as there is some."""
        self._polls = True
        self._loop.sleep_at_most(self._patience_ms)

    def call(self, work: Callable[[], Result], tick: Callable[[], None]) -> Result:
        """Calls at once: the work only queues what the GPU does."""
        return work()

    def enter(self) -> None:
        """Makes this queue's GPU current in this thread, for calls that do not name a stream of it."""
        if self._several:
            check(cudart.cudaSetDevice(self.device))

    def on_done(self, callback: Callable[[], None]) -> None:
        """Calls back, from the loop, when everything queued on the stream so far has finished."""
        self.enter()
        if self._spare_events:
            event = self._spare_events.pop()
        else:
            flags = cudart.cudaEventBlockingSync | cudart.cudaEventDisableTiming
            event = check(cudart.cudaEventCreateWithFlags(flags))
        check(cudart.cudaEventRecord(event, self._stream))
        self._pending.append((event, callback, self._loop.now_ns()))
        if not self._polls:
            self._waits.put(event)

    def set_fence(self, address: int, generation: int, ahead: bool = False) -> None:
        """Sets a fence behind the queued work, or `ahead` of it, which ends a wait for it."""
        self.enter()
        stream = int(self._side_stream) if ahead else self.stream
        check(driver.cuStreamWriteValue32(stream, address, generation, 0))

    def wait_fence(self, address: int, generation: int) -> None:
        """Work queued from now on starts when the fence has reached this generation."""
        self.enter()
        at_least = driver.CUstreamWaitValue_flags.CU_STREAM_WAIT_VALUE_GEQ
        check(driver.cuStreamWaitValue32(self.stream, address, generation, at_least))

    def gauges(self) -> dict[str, int]:
        """GPU memory in use by all processes, and the GPU's total, bytes."""
        now_ns = self._loop.now_ns()
        if now_ns >= self._gauges_due_ns:
            self._gauges_due_ns = now_ns + GAUGE_NS
            free, total = check(cudart.cudaMemGetInfo())
            self._gauges = {"gpu_used_bytes": total - free, "gpu_bytes": total}
        return self._gauges

    def finish(self) -> None:
        """Waits, on the host, for the queued work; calls on_stuck and raises GpuLost as the loop does."""
        began_s = time.monotonic()
        while (code := cudart.cudaStreamQuery(self._stream))[0] == cudart.cudaError_t.cudaErrorNotReady:
            self._check_stuck((time.monotonic() - began_s) * 1e9)
            time.sleep(0.0002)
        check(code)

    def close(self) -> None:
        """Waits for the queued work; the stream ends with the process."""
        self.finish()
        self._waits.put(None)

    def _wait_for_events(self) -> None:
        check(cudart.cudaSetDevice(self.device))
        for event in iter(self._waits.get, None):
            cudart.cudaEventSynchronize(event)  # an error is found and raised by _collect
            os.eventfd_write(self._wake_fd, 1)

    def _patience_ms(self, now_ns: int) -> int:
        if not self._pending:
            return ANY_MS
        _, _, queued_ns = self._pending[0]
        return 0 if now_ns - max(queued_ns, self._finished_ns) < POLLED_NS else 1

    def _on_wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._wake_fd)
        self._collect(self._loop.now_ns())

    def _collect(self, now_ns: int) -> None:
        while self._pending:
            event, callback, queued_ns = self._pending[0]
            code = cudart.cudaEventQuery(event)
            if code[0] == cudart.cudaError_t.cudaErrorNotReady:
                self._check_stuck(now_ns - max(queued_ns, self._loop.woke_ns))
                return
            check(code)
            self._called_stuck, self._finished_ns = False, now_ns
            self._pending.popleft()
            self._spare_events.append(event)
            callback()

    def _check_stuck(self, waiting_ns: float) -> None:
        """Half-way to STUCK_S, waits for frozen owners are aborted; a GPU that still does not go on is lost."""
        if waiting_ns > cuda.STUCK_S * 1e9:
            raise GpuLost(cuda.STUCK)
        if waiting_ns > cuda.STUCK_S * 0.5e9 and not self._called_stuck:
            self._called_stuck = True
            for callback in self.on_stuck:
                callback()


class _CudaSlots:
    _base: int  # address of the ring

    def __init__(self, work: CudaWorkQueue, slot_bytes: int):
        self._work, self._slot_bytes = work, slot_bytes
        self._step_bytes = -(-slot_bytes // ALIGN_BYTES) * ALIGN_BYTES

    def slot(self, index: int) -> Block:
        """The slot's block of GPU memory."""
        return Block(self._base + ALIGN_BYTES + index * self._step_bytes, self._slot_bytes)

    def fence(self, index: int) -> int:
        """The address of the slot's fence."""
        return self._base + index * FENCE_BYTES


class CudaOwnedMemory(_CudaSlots):
    """Allocates a ring on the GPU and exports it. Raises AppError when the GPU's memory is full."""

    def __init__(self, work: CudaWorkQueue, run_dir: Path, name: str, epoch: str, slots: int, slot_bytes: int):
        super().__init__(work, slot_bytes)
        total_bytes = -(-(ALIGN_BYTES + slots * self._step_bytes) // ALLOCATION_BYTES) * ALLOCATION_BYTES
        try:
            self._base = int(check(cudart.cudaMalloc(total_bytes)))
        except CudaError:
            raise AppError(f"No room for {total_bytes >> 20} MB on the GPU: use fewer slots.", SOFTWARE) from None
        check(cudart.cudaMemset(self._base, 0, ALIGN_BYTES))
        self.handle = work.uuid + cuda.bytes_of(check(cudart.cudaIpcGetMemHandle(self._base)))

    def ready(self, index: int, generation: int) -> None:
        """Sets the slot's fence behind the work queued so far."""
        self._work.set_fence(self.fence(index), generation)

    def close(self) -> None:
        """Frees the ring behind the queued work."""
        self._work.on_done(lambda: check(cudart.cudaFree(self._base)))


class CudaMappedMemory(_CudaSlots):
    """Maps another process' ring. Raises AppError for one on another GPU, of this very process, or of another kind."""

    def __init__(self, work: CudaWorkQueue, run_dir: Path, spec: RingSpec):
        if len(spec.handle) != UUID_BYTES + HANDLE_BYTES:
            raise AppError(f"The ring handle has {len(spec.handle)} bytes, which is not a CUDA IPC handle.")
        if spec.handle[:UUID_BYTES] != work.uuid:
            raise AppError("The ring is on another GPU: give all processes of a group the same CUDA_VISIBLE_DEVICES.")
        super().__init__(work, spec.slot_bytes)
        work.enter()
        try:
            handle = cuda.fill(cudart.cudaIpcMemHandle_t(), spec.handle[UUID_BYTES:])
            self._base = int(check(cudart.cudaIpcOpenMemHandle(handle, cudart.cudaIpcMemLazyEnablePeerAccess)))
        except CudaError as error:
            raise AppError(
                f"The ring cannot be mapped ({error.code.name}): its owner must be another process that is alive and "
                "shares this process' PID and IPC namespaces."
            ) from None

    def wait(self, index: int, generation: int) -> None:
        """Work queued from now on starts when the owner has written this generation of the slot."""
        self._work.wait_fence(self.fence(index), generation)

    def abort_wait(self, index: int, generation: int) -> None:
        """Sets the fence ourselves, ahead of the queued work: the wait ends, whatever the slot contains."""
        self._work.set_fence(self.fence(index), generation, ahead=True)

    def close(self, on_done: Callable[[], None] = lambda: None) -> None:
        """Unmaps the ring behind the work that still reads it, then calls `on_done`."""

        def unmap() -> None:
            self._work.enter()
            check(cudart.cudaIpcCloseMemHandle(self._base))
            on_done()

        self._work.on_done(unmap)


CUDA_IPC = MemoryKind(CudaWorkQueue, CudaOwnedMemory, CudaMappedMemory)
