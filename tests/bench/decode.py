"""Frames/s that NVDEC gives one process alone: `python -m tests.bench.decode CLIP SECONDS`, see gpu.py's decoders."""

import sys
import time
from functools import partial

from peoplecounter.common.ipc.loop import Loop
from peoplecounter.common.ipc.memory.cuda_ipc import Work
from peoplecounter.common.settings import Decoder, Source
from peoplecounter.services.decoder.nvdec import OnGpu
from peoplecounter.services.decoder.playback import Picture, play

WARM_UP_FRAMES = 30


def frames_per_s(clip: str, seconds: float) -> float:
    codec = partial(OnGpu, cuda_stream=Work(Loop()).stream)
    events = play(Source(url=clip, loop=True), Decoder(), None, lambda seconds: False, codec)
    pictures = (event for event in events if isinstance(event, Picture))
    for _ in range(WARM_UP_FRAMES):
        next(pictures)
    began = time.perf_counter()
    for number, _ in enumerate(pictures, 1):
        if time.perf_counter() - began > seconds:
            return number / (time.perf_counter() - began)
    raise RuntimeError(f"{clip} ended.")


if __name__ == "__main__":
    print(round(frames_per_s(sys.argv[1], float(sys.argv[2])), 1))
