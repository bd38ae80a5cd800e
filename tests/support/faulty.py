"""Runs a service with a fault in its work: `python -m tests.support.faulty SERVICE --raise-at N -- INSTANCE`.

The fault sits in the one function that does the service's work on a frame; everything around it is the real thing.
"""

import argparse
import importlib
import os
import runpy
import sys
import time

from peoplecounter.common.errors import GpuLost

WORK = {
    "decoder": ("peoplecounter.services.decoder.ffmpeg", "copy_nv12"),
    "preprocess": ("peoplecounter.services.preprocess.kernels", "fused"),
    "infer_global": ("peoplecounter.common.engine.onnxruntime", "OnnxEngine.run"),
    "infer_tiles": ("peoplecounter.common.engine.onnxruntime", "OnnxEngine.run"),
    "fusion": ("peoplecounter.services.fusion.service", "merge"),
}
LEAST_S = 0.002  # taken as the duration of work that is faster: ten times nothing is nothing


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("service")
    parser.add_argument("--raise-at", type=int, default=0)
    parser.add_argument("--lose-gpu-at", type=int, default=0)
    parser.add_argument("--slow", type=float, default=1)
    parser.add_argument("--slow-exit", type=float, default=0, help="seconds in which the driver holds it")
    parser.add_argument("instance")
    args = parser.parse_args()
    module, name = WORK[args.service]
    owner = importlib.import_module(module)
    if args.slow_exit:
        end = os._exit
        os._exit = lambda code: (time.sleep(args.slow_exit), end(code))
    *path, function = name.split(".")
    for step in path:
        owner = getattr(owner, step)
    work, calls = getattr(owner, function), 0

    def faulty(*values, **named):
        nonlocal calls
        calls += 1
        if calls == args.raise_at:
            raise RuntimeError("injected fault")
        if calls == args.lose_gpu_at:
            raise GpuLost("injected: the GPU is gone.")
        begin = time.monotonic()
        result = work(*values, **named)
        if args.slow > 1:
            time.sleep((args.slow - 1) * max(LEAST_S, time.monotonic() - begin))
        return result

    setattr(owner, function, faulty)
    sys.argv = [args.service, args.instance]
    runpy.run_module(f"peoplecounter.services.{args.service}", run_name="__main__")


if __name__ == "__main__":
    main()
