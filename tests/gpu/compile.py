"""Compiles the kernels for a GPU that need not be there: `python -m tests.gpu.compile 90`. The interpreter of the other
tests accepts what the compiler does not."""

import sys

import torch
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

from peoplecounter.common.engine import dense
from peoplecounter.common.ipc.messages import Input, SurfaceLayout
from peoplecounter.common.views import table
from peoplecounter.deploy.dashboard import shrink_triton
from peoplecounter.services.preprocess import kernels_triton


def build(kernel, kinds: list[str], constants: dict, capability: int, warps: int) -> str:
    """PTX of a kernel whose first arguments are of these kinds, the others constants."""
    names = kernel.arg_names
    signature = {name: "constexpr" if name in constants else kinds[i] for i, name in enumerate(names)}
    aligned = {(i,): [["tt.divisibility", 16]] for i, kind in enumerate(kinds) if kind[0] == "*"}
    known = {(names.index(name),): value for name, value in constants.items()}
    source = ASTSource(kernel, signature, constexprs=known, attrs=aligned)
    return compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": warps}).asm["ptx"]


def main(capability: int) -> None:
    for size, sample_bytes, dtype in (((3840, 2160), 1, "float16"), ((1367, 769), 2, "float32")):
        layout = SurfaceLayout(*size, 2 * (size[0] + 1), "bt709", False, sample_bytes)
        read = Input(640, 640, dtype)
        _, tables, numbers, constants = kernels_triton._plan(layout, read, table(*size, read.size), torch.device("cpu"))
        kinds = ["*u8", "*fp16" if dtype == "float16" else "*fp32"]
        kinds += ["*fp32" if values.is_floating_point() else "*i32" for values in tables]
        kinds += ["fp32" if isinstance(number, float) else "i32" for number in numbers]
        shape = {
            "PAIRS": kernels_triton.PAIRS,
            "BLOCK_X": kernels_triton.BLOCK_X,
            "TAP_BLOCK": kernels_triton.TAP_BLOCK,
        }
        ptx = build(kernels_triton.nv12_to_images, kinds, constants | shape, capability, kernels_triton.WARPS)
        print("nv12_to_images", size, dtype, "st.global.v4.b32" in ptx)
    build(dense.nms_kernel, ["*fp32", "*fp32", "*i32", "fp32"], {"ANCHORS": 1024}, capability, 4)
    print("nms_kernel")
    for kind, shift in (("*u8", 0), ("*u16", 8)):
        shape = {"SHIFT": shift, "FACTOR": shrink_triton.FACTOR_MAX, "CHANNELS": 2}
        shape |= {"BLOCK_Y": shrink_triton.BLOCK_Y, "BLOCK_X": shrink_triton.BLOCK_X}
        build(shrink_triton.average_plane, [kind, "*u8", *["i32"] * 6], shape, capability, 4)
    print("average_plane")


if __name__ == "__main__":
    main(int(sys.argv[1]))
