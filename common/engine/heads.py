"""Output heads: a model's outputs become persons, whatever their layout; layouts.py is the table of those."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from peoplecounter.common.boxes import nms_keep
from peoplecounter.common.engine.layouts import HEADS, NAMES, Context, Kind, Output
from peoplecounter.common.engine.metadata import person_class
from peoplecounter.common.errors import AppError, ModelOutputError

DENSE_ANCHORS_MAX = 1024  # the best boxes of an image, which go through NMS: no picture shows as many persons
DENSE_IOU = 0.7  # of two boxes of one image, above which NMS removes the weaker one: the usual value for dense heads
STRANGE_SHARE, STRANGE_MIN = 0.5, 3  # of the boxes of a call, from which on a model is taken for misread
NAN = "the model's output is not a number (NaN or infinite)"
SCORE_MAX = 1.001
FAR = 8  # times an image's longer side: no box of a person lies so far outside
SHARES_PX = 2  # boxes given as shares of a side lie within so few pixels


class Oddities(NamedTuple):
    """How many boxes of persons there are, and how many of them are odd, each in a way of its own."""

    boxes: int
    near: int  # within SHARES_PX
    above: int  # with a score above 1
    backward: int  # that end before they begin
    far: int  # FAR times the image's side away


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

        Raises ModelOutputError for NaN in boxes or scores, for infinite values of persons, and for values that this
        layout does not have.
        """
        boxes, scores = self.decode(outputs)
        if _has_nan(boxes) or _has_nan(scores):
            raise ModelOutputError(NAN)
        keep = scores >= score
        found = np.empty((np.count_nonzero(keep), 6), np.float32)
        found[:, 0], found[:, 1:5], found[:, 5] = np.nonzero(keep)[0], boxes[keep], scores[keep]
        if not np.isfinite(found).all():
            raise ModelOutputError(NAN)
        self.judge(oddities(found[:, 1:5], found[:, 5], max(self.size)))
        found = found[np.lexsort((-found[:, 5], found[:, 0]))]
        if not self.dense:
            return found
        per_image = [found[found[:, 0] == i][:DENSE_ANCHORS_MAX] for i in range(len(scores))]
        return np.vstack([rows[nms_keep(rows[:, 1:], DENSE_IOU)] for rows in per_image])

    def judge(self, found: Oddities) -> None:
        """A model that is read as what it is not gives values that make no sense. Raises ModelOutputError."""
        if found.boxes and found.near == found.boxes:
            raise ModelOutputError(f"all boxes lie within {SHARES_PX} px, as shares of a side do: {self._doubt}")
        strange = {
            "scores are above 1": found.above,
            "boxes end before they begin": found.backward,
            "boxes lie far outside of the image": found.far,
        }
        for what, number in strange.items():
            if number >= max(STRANGE_MIN, STRANGE_SHARE * found.boxes):
                raise ModelOutputError(f"{what}: {self._doubt}")

    @property
    def _doubt(self) -> str:
        return f"the model is no {self.kind.name!r} ({self.kind.layout}); set engine.head to what it is"


def oddities(boxes: np.ndarray, scores: np.ndarray, side: int) -> Oddities:
    """Of boxes [k, 4] and scores [k] in images whose longer side has so many px."""
    furthest = np.abs(boxes).max(axis=1)
    which = (
        furthest <= SHARES_PX, scores > SCORE_MAX, (boxes[:, 2] < boxes[:, 0]) | (boxes[:, 3] < boxes[:, 1]),
        furthest > FAR * side,
    )  # fmt: skip
    return Oddities(len(boxes), *(int(mask.sum()) for mask in which))


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


def _has_nan(values: np.ndarray) -> bool:
    """A comparison with NaN is false: without this check, NaN would become a count of 0."""
    return bool(values.size and np.isnan(values.min()))
