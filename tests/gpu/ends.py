"""The two ends of a ring on a GPU: its owner in a process of its own, this process as the consumer."""

import os
import subprocess
import sys
import time

from peoplecounter.common.ipc.consumer import RingConsumer
from peoplecounter.common.ipc.link import Timing
from peoplecounter.common.ipc.loop import Loop
from peoplecounter.common.ipc.messages import SCHEMA, Hello


class Owner:
    """tests.gpu.owner in a process of its own."""

    def __init__(self, run_dir, *arguments):
        command = [sys.executable, "-m", "tests.gpu.owner", str(run_dir), *arguments]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout.readline() == "up\n"

    def tell(self, *words):
        self.process.stdin.write(" ".join(map(str, words)) + "\n")
        self.process.stdin.flush()

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


class Reader:
    """This process as the consumer."""

    def __init__(self, run_dir):
        from peoplecounter.common.ipc.memory.cuda_ipc import CudaWorkQueue

        self.loop = Loop()
        self.work = CudaWorkQueue(self.loop)
        hello = Hello(SCHEMA, "preprocess.0", os.getpid(), "frame", 3)
        self.upstream = RingConsumer(self.loop, run_dir, "surfaces", hello, Timing(), self.work)

    def until(self, condition, what, timeout_s=10):
        end = time.monotonic() + timeout_s
        while not (found := condition()):
            assert time.monotonic() < end, f"not within {timeout_s} s: {what}"
            self.loop.tick(5)
        return found

    def take(self):
        return self.until(self.upstream.take, "an offer")

    def copy(self, lease):
        """Queues a copy of the slot to the host; (array, list that is non-empty when it has arrived)."""
        from peoplecounter.common.cuda import check, cudart, pinned

        host, done = pinned((lease.slot.nbytes,), "uint8"), []
        host[:] = 255
        kind = cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost
        check(cudart.cudaMemcpyAsync(host.ctypes.data, lease.slot.address, host.nbytes, kind, self.work.stream))
        self.work.on_done(lambda: done.append(lease.release()))
        return host, done

    def close(self):
        self.upstream.close()
        self.work.close()
        self.loop.close()
