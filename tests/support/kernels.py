"""Runs Triton's kernels on tensors of torch: on a GPU as services launch them, elsewhere in Triton's interpreter."""

import importlib

import torch

from peoplecounter.common.cubins import KINDS, Launch, Pointer, TritonFunction
from peoplecounter.services.preprocess import launches
from peoplecounter.services.preprocess.launches import NV12_TO_IMAGES, images_launch

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"


def run(kernel: TritonFunction, grid, arguments: list, constants: dict, warps: int = 4) -> None:
    """Queues it on torch's current stream. `arguments`: tensors in the place of pointers."""
    if GPU:
        prepared(kernel, grid, arguments, constants, warps)(torch.cuda.current_stream().cuda_stream)
    else:
        function = getattr(importlib.import_module(kernel.module), kernel.function)
        function[grid](*arguments, **constants, num_warps=warps)


def prepared(kernel: TritonFunction, grid, arguments: list, constants: dict, warps: int) -> Launch:
    pointers = [Pointer(a.data_ptr(), KINDS_OF[a.dtype]) if isinstance(a, torch.Tensor) else a for a in arguments]
    return Launch(kernel, grid, pointers, constants, warps)


KINDS_OF = {getattr(torch, name): kind for name, kind in KINDS.items()}


def images_call(surface, layout, read, views, out):
    """A function that queues the fused kernel on the current stream, for a benchmark that repeats it."""
    needed = images_launch(layout, read, views)
    tables = [torch.from_numpy(table).to(DEVICE) for table in needed.tables]
    arguments = [surface, out, *tables, *needed.numbers]
    if not GPU:
        return lambda: run(NV12_TO_IMAGES, needed.grid, arguments, needed.constants, launches.WARPS)
    launch = prepared(NV12_TO_IMAGES, needed.grid, arguments, needed.constants, launches.WARPS)

    def call(_tables=tables) -> None:  # which must live as long
        launch(torch.cuda.current_stream().cuda_stream)

    return call


def images(surface, layout, read, views, out) -> None:
    """The fused kernel: surface uint8 [nbytes] -> the first images of out."""
    images_call(surface, layout, read, views, out)()
