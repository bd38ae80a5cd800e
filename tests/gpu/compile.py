"""Compiles the kernels for a GPU that need not be there: `python -m tests.gpu.compile 90`. The interpreter of the other
tests accepts what the compiler does not. Torch cannot be imported meanwhile."""

import sys

sys.modules["torch"] = None  # type: ignore[assignment]
from peoplecounter.common.cubins import Pointer, TritonFunction, triton_kernel, variant  # noqa: E402
from peoplecounter.common.engine.dense import WARPS as DENSE_WARPS  # noqa: E402
from peoplecounter.common.engine.dense import dense_layout, kernel_calls  # noqa: E402
from peoplecounter.common.engine.heads import Head  # noqa: E402
from peoplecounter.common.engine.layouts import HEADS  # noqa: E402
from peoplecounter.common.engine.select import SELECT, select_arguments  # noqa: E402
from peoplecounter.common.engine.select import WARPS as SELECT_WARPS  # noqa: E402
from peoplecounter.common.ipc.messages import Input, SurfaceLayout  # noqa: E402
from peoplecounter.common.views import table  # noqa: E402
from peoplecounter.deploy.dashboard.shrink import AVERAGE_PLANE, average_launches  # noqa: E402
from peoplecounter.services.decoder.turn import TURN_PLANE, plane, turn_launch  # noqa: E402
from peoplecounter.services.decoder.upright import Upright  # noqa: E402
from peoplecounter.services.preprocess.launches import NV12_TO_IMAGES, WARPS, images_launch  # noqa: E402


def build(kernel: TritonFunction, arguments: list, constants: dict, capability: int, warps: int = 4) -> str:
    """PTX."""
    return triton_kernel(variant(kernel, arguments, constants, warps, capability)).asm["ptx"]


def main(capability: int) -> None:
    for size, sample_bytes, dtype in (((3840, 2160), 1, "float16"), ((1367, 769), 2, "float32")):
        layout = SurfaceLayout(*size, 2 * (size[0] + 1), "bt709", False, sample_bytes)
        read = Input(640, 640, dtype)
        needed = images_launch(layout, read, table(*size, read.size))
        ptx = build(NV12_TO_IMAGES, needed.arguments([0] * len(needed.tables)), needed.constants, capability, WARPS)
        print("nv12_to_images", size, dtype, "st.global.v4.b32" in ptx)
    planes = [plane(0, 1920, 1080, 2, 4096, 1), plane(0, 1080, 1920, 2, 4096, 1)]
    _, arguments, constants = turn_launch(planes[0], Upright(1), planes[1])
    build(TURN_PLANE, arguments, constants, capability)
    print("turn_plane")
    for sample_bytes in (1, 2):
        _, launches = average_launches(SurfaceLayout(3840, 2160, 8192, "bt709", False, sample_bytes), 4)
        for _, _, _, numbers, constants in launches:
            pointers = [Pointer(0, ("u8", "u16")[sample_bytes - 1]), Pointer(0, "u8")]
            build(AVERAGE_PLANE, [*pointers, *numbers], constants, capability)
    print("average_plane")
    kinds = {"kept_places": "i32", "counts": "i32", "boxes": "fp16", "score": "fp16", "objectness": "fp16"}
    for name, shapes in (
        ("yolo", [(8, 84, 8400)]),
        ("yolox", [(8, 8400, 85)]),
        ("yolonas", [(8, 8400, 4), (8, 8400, 80)]),
    ):
        dense = next(kind for kind in HEADS if kind.name == name)
        layout_of_head = dense_layout(Head(dense, (), 0, (640, 640)), shapes)
        for call in kernel_calls(layout_of_head, 8, (640, 640), 0.2):
            pointers = [Pointer(0, kinds.get(array, "fp32")) for array in call.arrays]
            build(call.kernel, [*pointers, *call.numbers], call.constants, capability, DENSE_WARPS[call.kernel])
        print(name)
    of_rows = next(kind for kind in HEADS if kind.name == "rows")
    for dtype in ("fp32", "fp16"):
        arguments, constants = select_arguments(
            Pointer(0, dtype), (8, 300, 6), Head(of_rows, (), 0, (640, 640)), 0.2, True
        )
        build(SELECT, arguments, constants, capability, SELECT_WARPS)
    print("select")


if __name__ == "__main__":
    main(int(sys.argv[1]))
