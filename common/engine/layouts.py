"""The table of output layouts: how each is recognized, what its models want to see, and how it is decoded.

A finder tells a layout by the outputs' shapes and names. A decoder makes boxes x1, y1, x2, y2 in input pixels [B, n, 4]
and scores of persons [B, n] of the outputs; on a GPU dense.py does for dense ones, and select.py reads rows. Masks and
keypoints are not read.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from peoplecounter.common.engine.images import PIXELS
from peoplecounter.common.engine.metadata import NO_METADATA, Metadata
from peoplecounter.common.errors import ModelOutputError

MASKS = 32
ROWS_MAX = 1000  # a model that has removed duplicates gives no more boxes an image than this
STRIDES = (8, 16, 32)  # of the grids that dense models predict on
CONFIDENT = 0.5  # a score above which a row's class must be a whole number
COCO_CLASSES = 80
COCO_PERSON = 1  # in the numbering of COCO's files, which some models keep; others count from 0

Shape = Sequence[int | str | None]


@dataclass(frozen=True)
class Output:
    """One output of a model."""

    name: str
    shape: Shape


@dataclass(frozen=True)
class Found:
    """A layout that was recognized: which output is what, and how many classes it has."""

    outputs: tuple[str, ...]  # those that decode() gets, in its order
    classes: int = 0  # 0: unknown
    person: int = 0  # class of a person when the model names none


@dataclass(frozen=True)
class Kind:
    """One row of HEADS. It decodes (outputs, class of a person, (width, height) of the input)."""

    name: str
    layout: str  # for people
    models: str  # that have it, and their licences
    export: str  # how they are exported, in their own project
    find: Callable[[list[Output], "Context"], Found | None]
    decode: Callable[[list[np.ndarray], int, tuple[int, int]], tuple[np.ndarray, np.ndarray]]
    pixels: dict[str, Any]  # what Input has to say about them
    dense: bool = False  # before NMS: one box for every place in the image
    auto: bool = True  # False: only engine.head chooses it, because another layout looks the same


@dataclass(frozen=True)
class Context:
    """What else is known of a model whose outputs are to be recognized."""

    size: tuple[int, int]  # (width, height) of its input, px
    inputs: int = 1
    metadata: Metadata = NO_METADATA
    chosen: bool = False  # engine.head names the layout: what cannot be told apart need not be

    @property
    def cells(self) -> int:
        """How many cells the grids have in such an image."""
        return self._cells(STRIDES)

    @property
    def places(self) -> set[int]:
        """How many boxes a dense head has in such an image: one or three for each cell of its grids."""
        return {n * cells for n in (1, 3) for cells in (self.cells, self._cells((*STRIDES, 64)))}

    def _cells(self, strides: tuple[int, ...]) -> int:
        width, height = self.size
        return sum((width // stride) * (height // stride) for stride in strides)


# --- finders: outputs, what else is known -> Found, or None for another layout


def _find_rows(outputs: list[Output], context: Context) -> Found | None:
    first = _first(outputs)
    if first is None or first.shape[2] != (6 + MASKS if _masked(outputs) else 6):
        return None
    count = first.shape[1]
    if "detr" in context.metadata.description.lower() and not context.chosen:
        return None
    if isinstance(count, int) and (count > ROWS_MAX or count in context.places):
        return None
    return Found((first.name,), len(context.metadata.names))


def _find_yolo(outputs: list[Output], context: Context) -> Found | None:
    first = _first(outputs)
    if first is None:
        return None
    channels, places = first.shape[1:]
    if not isinstance(channels, int) or (isinstance(places, int) and places <= channels):
        return None
    room, names = channels - 4 - (MASKS if _masked(outputs) else 0), len(context.metadata.names)
    if context.metadata.task == "pose":  # keypoints follow the classes
        classes = max(1, names)
    else:
        classes = room if names in (0, room) else 0
    return Found((first.name,), classes) if 1 <= classes <= room else None


def _find_objectness(outputs: list[Output], context: Context) -> tuple[str, int, int] | None:
    """(name, boxes, classes) of an output [B, n, 5 + C]."""
    first = _first(outputs)
    if first is None or not all(isinstance(side, int) for side in first.shape[1:]):
        return None
    count, channels = int(first.shape[1] or 0), int(first.shape[2] or 0)
    classes = channels - 5
    if classes < 1 or count not in context.places or count <= channels:
        return None
    if context.metadata.names and len(context.metadata.names) != classes:
        return None
    return first.name, count, classes


def _find_yolov5(outputs: list[Output], context: Context) -> Found | None:
    found = _find_objectness(outputs, context)
    if found is None or found[1] == context.cells:
        return None
    return Found((found[0],), found[2])


def _find_yolox(outputs: list[Output], context: Context) -> Found | None:
    """Also YOLOv6 and a transposed YOLOv8 have such outputs: without names only COCO's 80 classes are sure."""
    found = _find_objectness(outputs, context)
    if found is None or found[1] != context.cells:
        return None
    sure = context.chosen or context.metadata.names or found[2] == COCO_CLASSES
    return Found((found[0],), found[2]) if sure else None


def _find_rtdetr(outputs: list[Output], context: Context) -> Found | None:
    first = _first(outputs)
    if first is None or len(outputs) != 1:
        return None
    count, channels = first.shape[1:]
    if not isinstance(count, int) or not isinstance(channels, int) or count > ROWS_MAX or count in context.places:
        return None
    classes = channels - 4
    named = len(context.metadata.names)
    if classes < 1 or (named and named != classes) or channels >= count:
        return None
    if channels == 6 and not context.chosen and "detr" not in context.metadata.description.lower():
        return None  # rows after NMS look the same
    return Found((first.name,), classes)


def _pair(outputs: list[Output]) -> tuple[Output, Output] | None:
    """(boxes [B, n, 4], scores [B, n, C]) among two outputs, in whichever order they come."""
    if len(outputs) != 2 or any(len(o.shape) != 3 for o in outputs) or outputs[0].shape[1] != outputs[1].shape[1]:
        return None
    boxes = [o for o in outputs if o.shape[2] == 4]
    if len(boxes) == 2:
        boxes = [o for o in outputs if "box" in o.name.lower() or "det" in o.name.lower()]
    if len(boxes) != 1:
        return None
    (scores,) = [o for o in outputs if o is not boxes[0]]
    return (boxes[0], scores) if isinstance(scores.shape[2], int) else None


def _find_yolonas(outputs: list[Output], context: Context) -> Found | None:
    pair = _pair(outputs)
    if pair is None or pair[0].shape[1] not in context.places:
        return None
    return Found((pair[0].name, pair[1].name), int(pair[1].shape[2] or 0))


def _find_rfdetr(outputs: list[Output], context: Context) -> Found | None:
    found = _find_logits(outputs, context)
    return found if found and found.outputs[1] == "labels" else None


def _find_detr(outputs: list[Output], context: Context) -> Found | None:
    found = _find_logits(outputs, context)
    return found if found and found.outputs[1] != "labels" else None


def _find_logits(outputs: list[Output], context: Context) -> Found | None:
    pair = _pair(outputs)
    if pair is None or pair[0].shape[1] in context.places:
        return None
    classes = int(pair[1].shape[2] or 0)
    return Found((pair[0].name, pair[1].name), classes, COCO_PERSON if classes in (90, 91) else 0)


def _find_sized(outputs: list[Output], context: Context) -> Found | None:
    if context.inputs != 2 or len(outputs) != 3:
        return None
    by_name = {o.name: o for o in outputs}
    if set(by_name) != {"labels", "boxes", "scores"}:
        return None
    return Found(("labels", "boxes", "scores"))


def _find_nms(outputs: list[Output], context: Context) -> Found | None:
    if len(outputs) != 4:
        return None
    boxes = [o for o in outputs if len(o.shape) == 3 and o.shape[2] == 4]
    words = {"num": "num", "score": "score", "class": "class", "label": "class"}
    named = {kind: o.name for word, kind in words.items() for o in outputs if word in o.name.lower() and o not in boxes}
    if len(boxes) != 1 or set(named) != {"num", "score", "class"}:
        return None
    return Found((named["num"], boxes[0].name, named["score"], named["class"]))


def _first(outputs: list[Output]) -> Output | None:
    """The first output; None unless it is [B, n, m]."""
    return outputs[0] if outputs and len(outputs[0].shape) == 3 else None


def _masked(outputs: list[Output]) -> bool:
    return len(outputs) > 1 and len(outputs[1].shape) == 4 and outputs[1].shape[1] == MASKS


# --- decoders: outputs, class of a person, (width, height) of the input -> boxes [B, n, 4] in px, scores [B, n]


def _corners(x: np.ndarray, y: np.ndarray, w: np.ndarray, h: np.ndarray) -> np.ndarray:
    """Centres and sizes [B, n] -> x1, y1, x2, y2 [B, n, 4]."""
    sides = [x - w / 2, y - h / 2, x + w / 2, y + h / 2]
    return np.stack(sides, -1)


def _of_rows(outputs: list[np.ndarray], person: int, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    rows = outputs[0]
    classes = rows[..., 5]
    confident = rows[..., 4] > CONFIDENT
    strange = confident & (abs(classes - classes.round()) > 0.01)
    check_classes(strange.sum(), confident.sum())
    return rows[..., :4], _where(classes.round() == person, rows[..., 4])


def check_classes(strange: int, confident: int) -> None:
    """How many of the confident rows have a class that is no whole number: too many belong to another layout."""
    if 2 * strange > confident:
        raise ModelOutputError(
            "classes are no whole numbers: the model is no 'rows', perhaps an RT-DETR of two classes; set engine.head"
        )


def _where(condition: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The values where the condition holds, or where they are not a number; else 0."""
    return np.where(condition | (values != values), values, 0)


def _of_yolo(outputs: list[np.ndarray], person: int, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    output = outputs[0]
    return _corners(*(output[:, i] for i in range(4))), output[:, 4 + person]


def _of_yolov5(outputs: list[np.ndarray], person: int, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    output = outputs[0]
    return _corners(*(output[..., i] for i in range(4))), output[..., 4] * output[..., 5 + person]


def _of_yolox(outputs: list[np.ndarray], person: int, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    output = outputs[0]
    grids, strides = _grid(size)
    x, y = (output[..., i] * strides + grids[:, i] * strides for i in (0, 1))
    w, h = (np.exp(output[..., i]) * strides for i in (2, 3))
    return _corners(x, y, w, h), output[..., 4] * output[..., 5 + person]


def _grid(size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Of every place on the grids: (float32 [n, 2] its column and row, float32 [n] its stride in px)."""
    cells, strides = [], []
    for stride in STRIDES:
        rows, columns = np.mgrid[: size[1] // stride, : size[0] // stride]
        cells.append(np.stack([columns.ravel(), rows.ravel()], 1))
        strides.append(np.full(rows.size, stride))
    return np.concatenate(cells).astype(np.float32), np.concatenate(strides).astype(np.float32)


def _of_shares(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Centres and sizes as shares of the input's sides [B, n, 4] -> corners in px."""
    (width, height), (x, y, w, h) = size, (boxes[..., i] for i in range(4))
    return _corners(x * width, y * height, w * width, h * height)


def _of_rtdetr(outputs: list[np.ndarray], person: int, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    return _of_shares(outputs[0], size), outputs[0][..., 4 + person]


def _of_yolonas(outputs: list[np.ndarray], person: int, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    boxes, scores = outputs
    return boxes, scores[..., person]


def _of_logits(outputs: list[np.ndarray], person: int, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    boxes, logits = outputs
    return _of_shares(boxes, size), 1 / (1 + np.exp(-logits[..., person]))


def _of_sized(outputs: list[np.ndarray], person: int, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    labels, boxes, scores = outputs
    return boxes, _where(labels == person, scores)


def _of_nms(outputs: list[np.ndarray], person: int, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    count, boxes, scores, classes = outputs
    place = np.arange(scores.shape[1])
    return boxes, _where((place < count.reshape(-1, 1)) & (classes.round() == person), scores)


HEADS = (
    Kind(
        "rows", "[B, n, 6]: x1, y1, x2, y2, score, class", "YOLO26, YOLOv10 (AGPL-3.0)",
        "peoplecounter models export yolo26n", _find_rows, _of_rows, {},
    ),
    Kind(
        "yolo", "[B, 4 + classes, places]: cx, cy, w, h, scores", "YOLOv8 to YOLO12 (AGPL-3.0)",
        "yolo export format=onnx", _find_yolo, _of_yolo, {}, dense=True,
    ),
    Kind(
        "yolov5", "[B, places, 5 + classes]: cx, cy, w, h, objectness, scores", "YOLOv5 (AGPL-3.0), YOLOv7 (GPL-3.0)",
        "its export.py --include onnx", _find_yolov5, _of_yolov5, {}, dense=True,
    ),
    Kind(
        "yolox", "[B, places, 5 + classes], relative to a grid", "YOLOX (Apache-2.0)",
        "its export_onnx.py", _find_yolox, _of_yolox, {**PIXELS["bgr255"], "corner": True}, dense=True,
    ),
    Kind(
        "yolov6", "[B, places, 5 + classes], in pixels", "YOLOv6 (GPL-3.0); only with engine.head = 'yolov6'",
        "its export_onnx.py", _find_yolox, _of_yolov5, {}, dense=True, auto=False,
    ),
    Kind(
        "yolonas", "[B, places, 4] corners and [B, places, classes]", "YOLO-NAS (its weights: not for business)",
        "torch.onnx.export", _find_yolonas, _of_yolonas, PIXELS["rgb255"], dense=True,
    ),
    Kind(
        "rtdetr", "[B, n, 4 + classes]: cx, cy, w, h as shares, scores", "RT-DETR of Ultralytics (AGPL-3.0)",
        "yolo export format=onnx", _find_rtdetr, _of_rtdetr, {},
    ),
    Kind(
        "rfdetr", "dets [B, n, 4] as shares, labels [B, n, classes] as logits", "RF-DETR (Apache-2.0)",
        "RFDETRNano().export()", _find_rfdetr, _of_logits, PIXELS["imagenet"],
    ),
    Kind(
        "detr", "boxes [B, n, 4] as shares, logits [B, n, classes]", "RT-DETR, D-FINE of transformers (Apache-2.0)",
        "optimum-cli export onnx", _find_detr, _of_logits, {},
    ),
    Kind(
        "dfine", "labels, boxes, scores; a second input takes the size", "D-FINE, DEIM, RT-DETR (Apache-2.0)",
        "its export_onnx.py", _find_sized, _of_sized, {},
    ),
    Kind(
        "nms", "number, boxes [B, n, 4], scores, classes", "any with EfficientNMS in its graph",
        "the export of its project", _find_nms, _of_nms, {},
    ),
)  # fmt: skip
NAMES = [kind.name for kind in HEADS]
