"""CUDA IPC between two processes: the wait is real, every death and re-attachment has a known outcome."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from peoplecounter.common.errors import SOFTWARE, AppError
from peoplecounter.common.ipc.messages import RingSpec
from tests.gpu.ends import Owner, Reader

pytestmark = pytest.mark.gpu


@pytest.fixture
def owner(run_dir):
    one = Owner(run_dir)
    yield one
    one.kill()


def used_mb():
    from peoplecounter.common.cuda import check, cudart

    free, total = check(cudart.cudaMemGetInfo())
    return (total - free) >> 20


def test_the_readers_stream_really_waits_for_the_owners(owner, reader):
    """A latch holds the owner's writing back on the GPU: offered long before, it is read only when it is there."""
    owner.tell("latched", 42)
    lease = reader.upstream.lease(*reader.take())
    host, done = reader.copy(lease)
    for _ in range(40):
        reader.loop.tick(5)
    assert not done and (host == 255).all()
    owner.tell("open")
    reader.until(lambda: done, "the copy")
    assert (host == 42).all()


def test_events_are_recorded_anew_for_every_generation(owner, reader):
    for value in range(100):
        owner.tell("show", value)
        host, done = reader.copy(reader.upstream.lease(*reader.take()))
        reader.until(lambda d=done: d, "the copy")
        assert (host == value).all()


def test_a_loop_that_polls_learns_the_same(owner, reader):
    """Also of work that takes long, behind which it sleeps a little; its thread has nothing to wait for."""
    reader.work.poll()
    for value in range(20):
        owner.tell("show", value)
        host, done = reader.copy(reader.upstream.lease(*reader.take()))
        reader.until(lambda d=done: d, "the copy")
        assert (host == value).all()
    owner.tell("latched", 42)
    host, done = reader.copy(reader.upstream.lease(*reader.take()))
    waits = [reader.work._patience_ms(reader.loop.now_ns())]
    time.sleep(0.1)
    waits.append(reader.work._patience_ms(reader.loop.now_ns()))
    owner.tell("open")
    reader.until(lambda: done, "the copy")
    assert (host == 42).all() and waits == [0, 1] and reader.work._patience_ms(0) > 50
    assert reader.work._waits.empty()


def test_a_new_epoch_frees_the_old_memory_when_its_readers_have_let_go(owner, reader):
    levels = []
    for epoch in range(20):
        owner.tell("show", epoch)
        host, done = reader.copy(reader.upstream.lease(*reader.take()))
        reader.until(lambda d=done: d, "the copy")
        assert (host == epoch).all()
        link = next(iter(reader.upstream._connections.values()))
        before = link.epoch
        owner.tell("epoch")
        reader.until(lambda e=before, a=link: a.epoch not in ("", e), "the new epoch")
        for _ in range(10):
            reader.loop.tick(5)
        levels.append(used_mb())
    assert levels[-1] <= levels[1] + 2, levels


def test_an_owner_that_ends_is_unmapped_and_its_successor_attached(run_dir, reader):
    levels = []
    for value, gently in enumerate((True, False) * 4):
        one = Owner(run_dir)
        one.tell("show", value)
        host, done = reader.copy(reader.upstream.lease(*reader.take()))
        reader.until(lambda d=done: d, "the copy")
        assert (host == value).all()
        if gently:
            one.tell("end")
            one.process.wait(10)
        else:
            one.kill()
        reader.until(lambda: not reader.upstream.attached, "its end to be noticed")
        for _ in range(10):
            reader.loop.tick(5)
        levels.append(used_mb())
    assert levels[-1] <= levels[1] + 2, levels


ORPHAN = """
import sys; sys.path.insert(0, ".")
from pathlib import Path
from peoplecounter.common.errors import GpuLost
from tests.gpu.ends import Reader
reader = Reader(Path(sys.argv[1]))
host, done = reader.copy(reader.upstream.lease(*reader.take()))
print("queued", flush=True)
try:
    reader.until(lambda: done, "the copy", 8)
    print("finished", flush=True)
except GpuLost as lost:
    print("lost", lost.code, flush=True)
import os; os._exit(0)
"""


def test_an_owner_that_dies_before_it_has_written_blocks_no_reader_for_ever(run_dir, owner):
    """Its event is never recorded as done. Either the driver lets the reader go on, or the reader ends with a code."""
    owner.tell("latched", 1)
    child = subprocess.Popen([sys.executable, "-c", ORPHAN, str(run_dir)], stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "queued\n"
    owner.process.send_signal(signal.SIGKILL)
    begin = time.monotonic()
    message = child.stdout.readline().strip()
    print(f"reader of a dead owner's event: {message} after {time.monotonic() - begin:.2f} s")
    child.wait(10)
    assert message in ("finished", f"lost {SOFTWARE}")


def test_a_dead_reader_gives_its_slots_back(run_dir, owner):
    """It is killed while it holds all three slots, one of them frozen in the middle of its work."""
    code = ORPHAN.replace('print("queued"', 'import time; print("queued"').replace("try:", "time.sleep(60)\ntry:")
    child = subprocess.Popen([sys.executable, "-c", code, str(run_dir)], stdout=subprocess.PIPE, text=True)
    for value in (1, 2, 3):
        owner.tell("show", value)
    assert child.stdout.readline() == "queued\n"
    child.send_signal(signal.SIGSTOP)
    time.sleep(0.2)
    child.send_signal(signal.SIGKILL)
    child.wait()
    reader = Reader(run_dir)
    for value in (4, 5, 6, 7):
        owner.tell("show", value)
        host, done = reader.copy(reader.upstream.lease(*reader.take()))
        reader.until(lambda d=done: d, "the copy")
        assert (host == value).all()
    reader.close()


def test_a_ring_of_this_very_process_is_refused_in_words(run_dir, reader):
    from peoplecounter.common.ipc.memory.cuda_ipc import CudaMappedMemory, CudaOwnedMemory
    from tests.gpu.owner import PIXELS

    owned = CudaOwnedMemory(reader.work, run_dir, "surfaces.cam", "00", 3, PIXELS.nbytes)
    with pytest.raises(AppError, match="another process"):
        CudaMappedMemory(reader.work, run_dir, RingSpec("cuda", owned.handle, 3, PIXELS.nbytes, PIXELS))
    other = bytes(16) + owned.handle[16:]
    with pytest.raises(AppError, match="another GPU"):
        CudaMappedMemory(reader.work, run_dir, RingSpec("cuda", other, 3, PIXELS.nbytes, PIXELS))
    with pytest.raises(AppError, match="not a CUDA IPC handle"):
        CudaMappedMemory(reader.work, run_dir, RingSpec("cuda", owned.handle[:-1], 3, PIXELS.nbytes, PIXELS))
    junk = owned.handle[:16] + bytes(np.random.default_rng(0).integers(0, 256, len(owned.handle) - 16, np.uint8))
    with pytest.raises(AppError, match="cannot be mapped"):
        CudaMappedMemory(reader.work, run_dir, RingSpec("cuda", junk, 3, PIXELS.nbytes, PIXELS))
    owned.close()


def test_what_does_not_fit_on_the_gpu_is_refused_in_words(reader):
    from peoplecounter.common.ipc.memory.cuda_ipc import CudaOwnedMemory

    with pytest.raises(AppError, match="No room for"):
        CudaOwnedMemory(reader.work, Path(), "surfaces.cam", "00", 3, 1 << 40)
