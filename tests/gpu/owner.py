"""The other process of the memory tests: it owns a CUDA ring and does what standard input says, a line at a time.

show VALUE      writes VALUE into every byte of a slot and offers it
latched VALUE   the same, but the writing waits on the GPU until `open`
open            lets it go on
epoch           opens a new ring of the same layout
images SEED     fills a slot with random images of that seed and offers it in two parts, like preprocess
end             closes everything in order
"""

import os
import select
import sys
from pathlib import Path

import numpy as np
from cuda.bindings import driver

from peoplecounter.common.cuda import check, cudart
from peoplecounter.common.ipc.link import Timing
from peoplecounter.common.ipc.loop import Loop
from peoplecounter.common.ipc.memory.cuda_ipc import CudaWorkQueue
from peoplecounter.common.ipc.messages import FrameHeader, Input, Part, SurfaceLayout, TensorLayout
from peoplecounter.common.ipc.producer import RingProducer
from peoplecounter.common.views import table

TO_DEVICE = cudart.cudaMemcpyKind.cudaMemcpyHostToDevice
PIXELS = SurfaceLayout(640, 360, 640, "bt709", False)
PARTS = (0, 1), (1, 17), (17, 33)  # first and last image of each
IMAGES = TensorLayout(33, Input(640, 640))


def random_images(seed: int, images: int) -> np.ndarray:
    """float32 [images, 3, 640, 640]"""
    return np.random.default_rng(seed).random((images, 3, 640, 640), np.float32)


class Owner:
    def __init__(self, run_dir: Path, layout: SurfaceLayout | TensorLayout):
        self.loop = Loop()
        self.work = CudaWorkQueue(self.loop)
        self.ring = RingProducer(
            self.loop, run_dir, "surfaces", "cam", 3, Timing(), on_lost=lambda *_: None, work=self.work
        )
        self.ring.open(layout)
        self.gate = int(check(cudart.cudaMalloc(4)))
        self.other = check(cudart.cudaStreamCreateWithFlags(cudart.cudaStreamNonBlocking))
        self.seq = 0

    def show(self, value: int, latched: bool = False) -> None:
        index = self.acquire()
        if latched:
            check(cudart.cudaMemset(self.gate, 0, 4))
            at_least = driver.CUstreamWaitValue_flags.CU_STREAM_WAIT_VALUE_GEQ
            (code,) = driver.cuStreamWaitValue32(self.work.stream, self.gate, 1, at_least)
            assert code == driver.CUresult.CUDA_SUCCESS, code
        slot = self.ring.slot(index)
        check(cudart.cudaMemsetAsync(slot.address, value, slot.nbytes, self.work.stream))
        self.offer(index, [Part("frame")])

    def images(self, seed: int) -> None:
        index, data = self.acquire(), random_images(seed, IMAGES.images)
        slot = self.ring.slot(index)
        check(cudart.cudaMemcpy(slot.address, data.ctypes.data, data.nbytes, TO_DEVICE))
        views = table(3840, 2160, (640, 640), levels=(1.0,))
        self.offer(index, [Part("frame", i, 3, first, views[first:end]) for i, (first, end) in enumerate(PARTS)])

    def acquire(self) -> int:
        while (index := self.ring.acquire()) is None:
            self.loop.tick(5)
        return index

    def offer(self, index: int, parts: list[Part]) -> None:
        header = FrameHeader(source="cam", seq=self.seq, pts_s=0, captured_ns=0, deadline_ns=0, width=640, height=360)
        self.ring.offer(index, header, parts)
        self.seq += 1

    def open_gate(self) -> None:
        check(cudart.cudaMemsetAsync(self.gate, 1, 4, self.other))


def main() -> None:
    owner = Owner(Path(sys.argv[1]), IMAGES if sys.argv[2:] == ["images"] else PIXELS)
    print("up", flush=True)
    commands: list[str] = []
    while True:
        owner.loop.tick(2)
        if not commands and select.select([0], [], [], 0)[0]:
            commands = os.read(0, 4096).decode().splitlines() or ["end"]
        if not commands:
            continue
        command, *values = commands.pop(0).split()
        if command in ("show", "latched"):
            owner.show(int(values[0]), command == "latched")
        elif command == "open":
            owner.open_gate()
        elif command == "epoch":
            owner.ring.open(owner.ring.layout)
        elif command == "images":
            owner.images(int(values[0]))
        else:
            break
    owner.ring.close()
    owner.loop.close()


if __name__ == "__main__":
    main()
