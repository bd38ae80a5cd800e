"""What every engine can do, whatever runs it."""

from collections.abc import Callable
from typing import Protocol

import numpy as np

from peoplecounter.common.engine.heads import Head
from peoplecounter.common.ipc.messages import Input, TensorLayout

# float32 [k, 6], by image, best first: image, x1, y1, x2, y2 (input px), score
Persons = np.ndarray


class Engine(Protocol):
    """A loaded model that finds persons in images."""

    input: Input  # what it reads
    head: Head  # how its outputs are read
    about: str  # what runs it, for people

    def warm_up(self) -> None:
        """Runs once on zeros, so that the first real frame takes no longer than the others."""

    def batch(self, images: int) -> int:
        """How many of these images to give to one call of start()."""

    def start(self, slot, layout: TensorLayout, first: int, count: int) -> Callable[[], tuple[Persons, int]]:
        """Queues the inference of images `first` to `first + count` of a tensor slot, which is read in place.

        `count` comes from batch(). Call the returned function when the queued work has finished: it returns the persons
        (their image counts from 0) and the time a GPU spent on them, ns (0 without a GPU).
        """

    def close(self) -> None:
        """Frees what the engine holds."""
