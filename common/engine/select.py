"""Persons picked on the GPU and placed in the frame: only their boxes go to the host, which has next to nothing to do.

select_triton.py has the kernel.
"""

from collections import OrderedDict
from typing import TYPE_CHECKING

import numpy as np

from peoplecounter.common.cubins import KINDS, Argument, Launch, Pointer, TritonFunction
from peoplecounter.common.engine.heads import FAR, NAN, SCORE_MAX, SHARES_PX, Head, Oddities
from peoplecounter.common.engine.layouts import CONFIDENT, check_classes
from peoplecounter.common.engine.placing import Placing
from peoplecounter.common.errors import ModelOutputError
from peoplecounter.common.ipc.messages import ROW_BYTES, ROW_VALUES
from peoplecounter.common.views import placements

if TYPE_CHECKING:
    from peoplecounter.common.engine.tensorrt_io import OutputBuffer
    from peoplecounter.common.ipc.memory import WorkQueue

SELECT = TritonFunction("peoplecounter.common.engine.select_triton", "select")
WARPS = 4
DTYPES = ("float16", "float32")  # of rows that the kernel reads
ABOUT = 8  # numbers of an image: those of Oddities, then how many values of rows are no numbers, how many rows of any
# class are confident, and how many of these have a class that is no whole number
TABLES_MAX = 512  # placings that lie on the GPU at once


def select_arguments(
    rows: Pointer, shape: tuple[int, ...], head: Head, score: float, classes: bool
) -> tuple[list[Argument], dict[str, int]]:
    """(the kernel's arguments, its constants) for rows of `shape` [B, n, columns]. `classes`: a row's class stands
    behind its score. The addresses of the other arrays come with each launch."""
    _, count, columns = shape
    elsewhere = [Pointer(0, "fp32"), Pointer(0, "fp32"), Pointer(0, "i32")]
    numbers = [score, float(head.person_class), CONFIDENT, SCORE_MAX, float(SHARES_PX), float(FAR * max(head.size))]
    constants = {"ROWS": count, "COLUMNS": columns, "CLASSES": classes, "BLOCK": 1 << max(0, count - 1).bit_length()}
    return [rows, *elsewhere, *numbers], constants


def table(placing: Placing) -> np.ndarray:
    """What the kernel has to know of each image, float32 [n, 16]."""
    placed = placements(placing.views, placing.size, placing.frame, placing.edge_px)
    numbers = placing.first + np.arange(len(placed), dtype=np.float32)
    return np.column_stack([placed, np.full((len(placed), 2), placing.frame, np.float32), numbers])


def boxes_of(head: Head, boxes: np.ndarray, about: np.ndarray) -> bytes:
    """What the kernel gave, float32 [B, n, 8] and int32 [B, ABOUT] -> the boxes, see messages.Detections.

    Raises ModelOutputError, as Head.persons does.
    """
    of_images = about.tolist()
    *counts, odd, confident, strange = map(sum, zip(*of_images))
    if odd:
        raise ModelOutputError(NAN)
    check_classes(strange, confident)
    head.judge(Oddities(*counts))
    data, step = boxes.data.cast("B"), boxes.shape[1] * ROW_BYTES
    return b"".join([data[i * step : i * step + n * ROW_BYTES] for i, (n, *_) in enumerate(of_images)])


class GpuSelect:
    """The kernel on an output buffer of TensorRT. It writes to page-locked arrays of `shapes` and `dtypes`.

    Raises AppError where it is neither compiled nor can be.
    """

    dtypes = ("float32", "int32")

    def __init__(self, rows: "OutputBuffer", head: Head, score: float, work: "WorkQueue", classes: bool):
        images, count, _ = rows.shape
        self.shapes = ((images, count, ROW_VALUES), (images, ABOUT))
        self._head, self._work = head, work
        self._rows = rows.address
        pointer = Pointer(rows.address, KINDS[rows.dtype])
        self._arguments, self._constants = select_arguments(pointer, rows.shape, head, score, classes)
        self._launches: dict[int, Launch] = {}  # by number of images
        self._tables: OrderedDict[Placing, int] = OrderedDict()  # oldest first
        self._launch(1)  # compiled now, not with the first frame

    def run(self, placing: Placing, boxes: np.ndarray, about: np.ndarray) -> None:
        """Queues the work on the first images; boxes_of() reads what it gives."""
        launch = self._launch(len(placing.views))
        launch(self._work.stream, self._rows, self._table(placing), boxes.ctypes.data, about.ctypes.data)

    def boxes(self, boxes: np.ndarray, about: np.ndarray) -> bytes:
        """What run() gave for as many images, once the work has finished, see boxes_of()."""
        return boxes_of(self._head, boxes, about)

    def close(self) -> None:
        """Frees its tables. What is queued must have finished."""
        while self._tables:
            self._forget_oldest()

    def _launch(self, count: int) -> Launch:
        if count not in self._launches:
            self._launches[count] = Launch(SELECT, (count,), self._arguments, self._constants, WARPS)
        return self._launches[count]

    def _table(self, placing: Placing) -> int:
        from peoplecounter.common.cuda import upload

        address = self._tables.get(placing)
        if address is None:
            if len(self._tables) >= TABLES_MAX:
                self._work.finish()  # it may still be read
                self._forget_oldest()
            address = self._tables[placing] = upload(table(placing))
        return address

    def _forget_oldest(self) -> None:
        from peoplecounter.common.cuda import check, cudart

        check(cudart.cudaFree(self._tables.popitem(last=False)[1]))
