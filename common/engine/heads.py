"""Output heads: a model's outputs become persons, whatever their layout; layouts.py is the table of those."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from peoplecounter.common.boxes import nms_keep
from peoplecounter.common.engine.layouts import HEADS, NAMES, Context, Kind, Output
from peoplecounter.common.engine.metadata import person_class
from peoplecounter.common.errors import AppError, ModelOutputError

DENSE_ANCHORS_MAX = 1024  # the best boxes of an image, which go through NMS: no picture shows as many persons
DENSE_IOU = 0.7  # of two boxes of one image, above which NMS removes the weaker one: the usual value for dense heads
STRANGE_SHARE, STRANGE_MIN = 0.5, 3  # of the boxes of a call, from which on a model is taken for misread
SHARES_PX = 2  # boxes given as shares of a side lie within so few pixels


@dataclass(frozen=True)
class Head:
    """How to read a model's outputs."""

    kind: Kind
    outputs: tuple[str, ...]
    person_class: int
    size: tuple[int, int]

    @property
    def dense(self) -> bool:
        return self.kind.dense

    def decode(self, outputs: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """The outputs named by `outputs` -> boxes [B, n, 4] in input px, scores [B, n]."""
        return self.kind.decode(outputs, self.person_class, self.size)

    def persons(self, outputs: list[np.ndarray], score: float) -> np.ndarray:
        """The outputs -> float32 [k, 6], by image, best first: image, x1, y1, x2, y2 (input px), score.

        Raises ModelOutputError for NaN in boxes or scores, and for values that this layout does not have.
        """
        boxes, scores = self.decode(outputs)
        return self.of_boxes(boxes, scores, score)

    def of_boxes(self, boxes: np.ndarray, scores: np.ndarray, score: float, suppressed: bool = False) -> np.ndarray:
        """What decode() gives -> the same as persons(). `suppressed`: NMS was done already."""
        _check_numbers(boxes)
        _check_numbers(scores)
        keep = scores >= score
        self._check_plausible(boxes[keep], scores[keep])
        image = np.nonzero(keep)[0].astype(np.float32)[:, None]
        found = np.hstack([image, boxes[keep].astype(np.float32), scores[keep].astype(np.float32)[:, None]])
        found = found[np.lexsort((-found[:, 5], found[:, 0]))]
        if not self.dense or suppressed:
            return found
        per_image = [found[found[:, 0] == i][:DENSE_ANCHORS_MAX] for i in range(len(scores))]
        return np.vstack([rows[nms_keep(rows[:, 1:], DENSE_IOU)] for rows in per_image])

    def _check_plausible(self, boxes: np.ndarray, scores: np.ndarray) -> None:
        """A model that is read as what it is not gives values that make no sense."""
        if not len(boxes):
            return
        largest = max(self.size)
        if np.abs(boxes).max() <= SHARES_PX:
            raise ModelOutputError(f"all boxes lie within {SHARES_PX} px, as shares of a side do: {self._doubt}")
        strange = {
            "scores are above 1": scores > 1.001,
            "boxes end before they begin": (boxes[:, 2] < boxes[:, 0]) | (boxes[:, 3] < boxes[:, 1]),
            "boxes lie far outside of the image": (np.abs(boxes) > 8 * largest).any(axis=1),
        }
        for what, which in strange.items():
            if which.sum() >= max(STRANGE_MIN, STRANGE_SHARE * len(boxes)):
                raise ModelOutputError(f"{what}: {self._doubt}")

    @property
    def _doubt(self) -> str:
        return f"the model is no {self.kind.name!r} ({self.kind.layout}); set engine.head to what it is"


def head(
    outputs: Sequence[Output], context: Context, wanted: str = "auto", person: int | None = None, model: str = ""
) -> Head:
    """The head of a model with these outputs. Raises AppError for an unknown or ambiguous layout or class."""
    task = context.metadata.task
    if task not in ("", "detect", "segment", "pose"):
        raise AppError(f"The model {model} is made for {task!r}: a detector is needed, which gives upright boxes.")
    kinds = [kind for kind in HEADS if wanted == kind.name or (wanted == "auto" and kind.auto)]
    context = replace(context, chosen=wanted != "auto")
    if not kinds:
        raise AppError(f"The head {wanted!r} does not exist: engine.head is auto or one of {', '.join(NAMES)}.")
    found = [(kind, match) for kind in kinds if (match := kind.find(list(outputs), context))]
    shapes = ", ".join(f"{o.name} {list(o.shape)}" for o in outputs) or "none"
    if not found:
        raise AppError(
            f"The outputs of the model {model} are not supported ({shapes}): 'peoplecounter models' lists what is."
        )
    if len(found) > 1:
        names = ", ".join(kind.name for kind, _ in found)
        raise AppError(f"The outputs of the model {model} ({shapes}) may be {names}: set engine.head to the right one.")
    ((kind, match),) = found
    index = person_class(context.metadata, match.classes, match.person, person, model)
    return Head(kind, match.outputs, index, context.size)


def _check_numbers(values: np.ndarray) -> None:
    """A comparison with NaN is false: without this check, NaN would become a count of 0."""
    if values.size and np.isnan(values.min()):
        raise ModelOutputError("the model's output is not a number (NaN)")
