"""What every engine can do, whatever runs it."""

from collections.abc import Callable
from typing import Protocol

from peoplecounter.common.engine.heads import Head
from peoplecounter.common.engine.placing import Placing
from peoplecounter.common.ipc.messages import Input, TensorLayout

Boxes = bytes  # float32 [k, 8], by image, see messages.Detections


class Engine(Protocol):
    """A loaded model that finds persons in images."""

    input: Input  # what it reads
    head: Head  # how its outputs are read
    about: str  # what runs it, for people

    def warm_up(self) -> None:
        """Runs once on zeros, so that the first real frame takes no longer than the others."""

    def batch(self, images: int) -> int:
        """How many of these images to give to one call of start()."""

    def start(self, slot, layout: TensorLayout, placing: Placing) -> Callable[[], tuple[Boxes, int]]:
        """Queues the inference of some images of a tensor slot, which is read in place.

        `placing` says which they are, as many as batch() allows, and what they show. Call the returned function when
        the queued work has finished: it returns the boxes of persons in the frame, and the time a GPU spent on them, ns
        (0 without a GPU). It raises ModelOutputError, see Head.persons.
        """

    def close(self) -> None:
        """Frees what the engine holds."""
