"""Output heads: which layout a model's outputs have, told by their shapes, and how they become persons.

    rows   [B, n, 6]  or [B, n, 38]         x1, y1, x2, y2, score, class (, 32 mask coefficients): after NMS
    dense  [B, 4 + C, anchors] (or + 32)    centre x, centre y, width, height, C class scores (, 32 masks): before NMS

n and B may be free. Masks are not computed: counting does not need them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from peoplecounter.common.boxes import nms
from peoplecounter.common.errors import AppError, ModelOutputError

MASKS = 32
DENSE_ANCHORS_MAX = 1024  # the best anchors of an image, which go through NMS: no picture shows as many persons
DENSE_IOU = 0.7  # of two boxes of one image, above which NMS removes the weaker one: the usual value for dense heads


@dataclass(frozen=True)
class Head:
    """How to read a model's first output. `dense_classes` is 0 for rows."""

    dense_classes: int
    person_class: int

    def persons(self, output: np.ndarray, score: float) -> np.ndarray:
        """First output [B, …] -> float32 [k, 6]: image, x1, y1, x2, y2 (input px), score; by image, best first.

        Raises ModelOutputError for NaN in boxes or scores.
        """
        if self.dense_classes:
            _check_numbers(output[:, : 4 + self.dense_classes])
            output = _padded([self._dense_rows(image, score) for image in output])
        return self.of_rows(output, score)

    def of_rows(self, output: np.ndarray, score: float) -> np.ndarray:
        """Rows [B, n, 6 or more], after NMS -> the same as persons()."""
        _check_numbers(output[..., :6])
        keep = (output[..., 4] >= score) & (np.rint(output[..., 5]) == self.person_class)
        image = np.nonzero(keep)[0].astype(np.float32)[:, None]
        persons = np.hstack([image, output[keep][:, :5].astype(np.float32)])
        return persons[np.lexsort((-persons[:, 5], persons[:, 0]))]

    def _dense_rows(self, output: np.ndarray, score: float) -> np.ndarray:
        """One image's dense output [4 + C (+ 32), anchors] -> rows [k, 6], after NMS."""
        scores = output[4 + self.person_class]
        keep = scores >= score
        x, y, w, h = output[:4, keep].astype(np.float32)
        boxes = np.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2, scores[keep].astype(np.float32)], axis=1)
        boxes = nms(boxes[np.argsort(-boxes[:, 4], kind="stable")[:DENSE_ANCHORS_MAX]], DENSE_IOU)
        return np.hstack([boxes, np.full((len(boxes), 1), self.person_class, np.float32)])


def head(shapes: Sequence[Sequence[int | str | None]], person_class: int) -> Head:
    """The head of a model with these output shapes. Raises AppError for any other layout or for a missing class."""
    first = list(shapes[0]) if shapes else []
    masked = len(shapes) > 1 and len(shapes[1]) == 4 and shapes[1][1] == MASKS
    if len(first) == 3 and first[2] == (6 + MASKS if masked else 6):
        return Head(0, person_class)
    if len(first) == 3 and isinstance(first[1], int) and not (isinstance(first[2], int) and first[2] <= first[1]):
        classes = first[1] - 4 - (MASKS if masked else 0)
        if 0 <= person_class < classes:
            return Head(classes, person_class)
    outputs = ", ".join(str(list(shape)) for shape in shapes) or "none"
    raise AppError(
        f"The model's outputs are not supported ({outputs}): expected [B, n, 6] rows or [B, 4 + classes, anchors] "
        f"(with masks: + {MASKS}) that contain class {person_class}."
    )


def _check_numbers(values: np.ndarray) -> None:
    """A comparison with NaN is false: without this check, NaN would become a count of 0."""
    if values.size and np.isnan(values.min()):
        raise ModelOutputError("the model's output is not a number (NaN)")


def _padded(rows: list[np.ndarray]) -> np.ndarray:
    """The rows [k, 6] of several images -> [B, largest k, 6]; added rows have the score 0."""
    out = np.zeros((len(rows), max(len(r) for r in rows), 6), np.float32)
    for image, image_rows in zip(out, rows):
        image[: len(image_rows)] = image_rows
    return out
