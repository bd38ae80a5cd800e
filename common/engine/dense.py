"""Dense heads on the GPU: their outputs -> rows [B, DENSE_ANCHORS_MAX, 5] of the persons that the CPU's NMS would keep.

Nothing here waits for the GPU, and only rows leave it. dense_triton.py has the kernels.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from peoplecounter.common.cubins import KINDS, Launch, Pointer, TritonFunction
from peoplecounter.common.engine.heads import DENSE_ANCHORS_MAX, DENSE_IOU, Head
from peoplecounter.common.errors import AppError

if TYPE_CHECKING:
    from peoplecounter.common.engine.tensorrt_io import OutputBuffer

PICK, RANK, SUPPRESS = (
    TritonFunction("peoplecounter.common.engine.dense_triton", name) for name in ("pick", "rank", "suppress")
)
PICK_BLOCK, RANK_BLOCK = 1024, 64
WARPS = {PICK: 4, RANK: 4, SUPPRESS: 8}
SCRATCH = ("kept_scores", "kept_places", "counts", "rows")


class Place(NamedTuple):
    """Where the values of one kind lie in an output: in elements, from the first to that of the next image, place."""

    output: int
    first: int
    image_step: int
    place_step: int


@dataclass(frozen=True)
class DenseLayout:
    """What the kernels have to know of a dense head."""

    places: int  # of an image
    boxes: Place
    channel_step: int  # from one value of a box to the next
    score: Place
    objectness: Place | None = None
    corners: bool = False
    grid: bool = False


class KernelCall(NamedTuple):
    """A kernel, its grid, and its arguments: names of arrays, then numbers."""

    kernel: TritonFunction
    grid: tuple[int, ...]
    arrays: tuple[str, ...]
    numbers: tuple[int | float, ...]
    constants: dict[str, int]


def dense_layout(head: Head, shapes: list[tuple[int, ...]]) -> DenseLayout:
    """Of a dense head whose outputs have these shapes, see HEADS."""
    _, rows, columns = shapes[0]
    if head.kind.name == "yolo":
        image, places = rows * columns, columns
        boxes = Place(0, 0, image, 1)
        return DenseLayout(places, boxes, places, boxes._replace(first=(4 + head.person_class) * places))
    image = rows * columns
    boxes = Place(0, 0, image, columns)
    if head.kind.name == "yolonas":
        classes = shapes[1][2]
        return DenseLayout(rows, boxes, 1, Place(1, head.person_class, rows * classes, classes), corners=True)
    score, objectness = boxes._replace(first=5 + head.person_class), boxes._replace(first=4)
    return DenseLayout(rows, boxes, 1, score, objectness, grid=head.kind.name == "yolox")


def kernel_calls(
    layout: DenseLayout, images: int, size: tuple[int, int], score: float, rows: int = DENSE_ANCHORS_MAX
) -> list[KernelCall]:
    """What turns the outputs of `images` images into their rows. `size`: (width, height) of an image, px."""
    blocks = -(-layout.places // RANK_BLOCK)
    return [
        KernelCall(
            PICK, (images,), ("score", "objectness", "kept_scores", "kept_places", "counts"),
            (score, layout.score.image_step, layout.score.place_step),
            {"PLACES": layout.places, "OBJECTNESS": layout.objectness is not None, "BLOCK": PICK_BLOCK},
        ),
        KernelCall(
            RANK, (images, blocks), ("boxes", "kept_scores", "kept_places", "counts", "rows"),
            (layout.boxes.image_step, layout.boxes.place_step, layout.channel_step, *size),
            {
                "PLACES": layout.places, "CORNERS": layout.corners, "GRID": layout.grid,
                "ROWS": rows, "BLOCK": RANK_BLOCK,
            },
        ),
        KernelCall(SUPPRESS, (images,), ("counts", "rows"), (DENSE_IOU,), {"ROWS": rows}),
    ]  # fmt: skip


def scratch(layout: DenseLayout, images: int, rows: int = DENSE_ANCHORS_MAX) -> dict[str, np.ndarray]:
    """The arrays between the kernels and that of their result, by name, all 0."""
    kept = images, layout.places
    arrays = np.zeros(kept, "float32"), np.zeros(kept, "int32"), np.zeros(images, "int32")
    return dict(zip(SCRATCH, [*arrays, np.zeros((images, rows, 5), "float32")]))


class GpuDenseHead:
    """The kernels on output buffers of TensorRT, on its stream; the result, float32 of `shape`, lies at `address`."""

    def __init__(self, buffers: "list[OutputBuffer]", head: Head, score: float, stream: int):
        from peoplecounter.common.cuda import upload

        self._layout = dense_layout(head, [buffer.shape for buffer in buffers])
        self._size, self._score, self._stream = head.size, score, stream
        self._arrays: dict[str, Pointer] = {}
        for name in ("boxes", "score", "objectness"):
            place = getattr(self._layout, name) or self._layout.score
            buffer = buffers[place.output]
            address = buffer.address + place.first * np.dtype(buffer.dtype).itemsize
            self._arrays[name] = Pointer(address, KINDS[buffer.dtype])
        images = buffers[0].shape[0]
        for name, array in scratch(self._layout, images).items():
            self._arrays[name] = Pointer(upload(array), KINDS[array.dtype.name])
        self.address, self.shape = self._arrays["rows"].address, (images, DENSE_ANCHORS_MAX, 5)
        self._launches: dict[int, list[Launch]] = {}  # by number of images
        try:
            self.launches(1)  # compiled now, not with the first frame
        except AppError:
            self.close()
            raise

    def run(self, count: int) -> None:
        """Queues the work on the first `count` images."""
        for launch in self.launches(count):
            launch(self._stream)

    def close(self) -> None:
        """Frees its arrays. What is queued must have finished."""
        from peoplecounter.common.cuda import check, cudart

        for name in SCRATCH:
            check(cudart.cudaFree(self._arrays[name].address))

    def launches(self, count: int) -> list[Launch]:
        if count not in self._launches:
            self._launches[count] = [
                Launch(call.kernel, call.grid, [*(self._arrays[name] for name in call.arrays), *call.numbers],
                       call.constants, WARPS[call.kernel])
                for call in kernel_calls(self._layout, count, self._size, self._score)
            ]  # fmt: skip
        return self._launches[count]
