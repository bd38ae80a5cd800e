"""Frames/s that NVDEC gives one process alone: `python -m tests.bench.decode CLIP SECONDS`, see gpu.py's decoders."""

import sys
import time
from functools import partial

from peoplecounter.common.ipc.loop import Loop
from peoplecounter.common.ipc.memory import memory_kind
from peoplecounter.common.settings import DecoderSettings, SourceSettings
from peoplecounter.services.decoder.nvdec import NvdecDecoder
from peoplecounter.services.decoder.playback import START, Picture, play

WARM_UP_FRAMES = 30


def frames_per_s(clip: str, seconds: float) -> float:
    codec = partial(NvdecDecoder, cuda_stream=memory_kind("cuda").work_queue(Loop()).stream)
    events = play(SourceSettings(url=clip, loop=True), DecoderSettings(), START, lambda seconds: False, codec)
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
