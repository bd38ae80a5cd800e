"""Where the images of a batch lie in their frame: persons in an image become boxes in the frame. Pure."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from peoplecounter.common.ipc.messages import ROW_VALUES
from peoplecounter.common.views import View, to_frame


@dataclass(frozen=True)
class Placing:
    """Images of `size` (width, height) that show these views of a frame; `first`: where in their slot they begin.

    A box that ends within `edge_px` of an inner edge of its view counts as cut by it.
    """

    views: tuple[View, ...]
    first: int
    size: tuple[int, int]
    frame: tuple[int, int]
    edge_px: float

    def batches(self, largest: Callable[[int], int]) -> "Iterator[Placing]":
        """The same images in groups; `largest(n)`: how many of n come next, see Engine.batch."""
        done = 0
        while done < len(self.views):
            views = self.views[done : done + largest(len(self.views) - done)]
            yield replace(self, views=views, first=self.first + done)
            done += len(views)

    def rows(self, persons: np.ndarray) -> np.ndarray:
        """Persons in the images, float32 [k, 6] (see Head.persons), -> float32 [k, 8] (see messages.Detections)."""
        image = persons[:, 0].astype(np.intp)
        rows = np.empty((len(persons), ROW_VALUES), np.float32)
        rows[:, :4], rows[:, 5], rows[:, 7] = to_frame(
            self.views, image, persons[:, 1:5], self.size, self.frame, self.edge_px
        )
        rows[:, 4], rows[:, 6] = persons[:, 5], image + self.first
        return rows


def each_alone(size: tuple[int, int], count: int, first: int = 0) -> Placing:
    """`count` images that are frames themselves."""
    return Placing((View(*size, 0, 0),) * count, first, size, size, 0)
