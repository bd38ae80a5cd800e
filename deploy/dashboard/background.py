"""A picture of a place without its people: the median of two minutes, of what was seen where nobody was found. Pure."""

import av
import numpy as np
from av.video.plane import VideoPlane

SAMPLES, EVERY_S = 15, 8.0
ENOUGH = 11  # samples of a pixel without a box: who is not found must stand still for most of a minute to be seen
WIDTH_PX = 640
MARGIN = 0.15  # of a box's size, on each side: a person is a little more than the box
UNKNOWN = 128  # of luma and chroma: grey
COVERED = 255  # a sample under a box; it sorts behind the others
ROWS_AT_ONCE = 64


class Background:
    """Learns the background of one source from its small pictures. Until it has, there is none."""

    def __init__(self) -> None:
        self._samples: list[np.ndarray] = []  # of Y, U and V: uint8 [SAMPLES, height, width]
        self._free: list[np.ndarray] = []  # the same, bool: not under a box
        self._shown: list[np.ndarray] = []  # uint8 [height, width]
        self._next = 0
        self._learnt_s = -EVERY_S
        self.picture: av.VideoFrame | None = None

    def is_due(self, now_s: float) -> bool:
        return now_s - self._learnt_s >= EVERY_S

    def learn(self, frame: av.VideoFrame, boxes: np.ndarray, now_s: float) -> None:
        """A frame in yuvj420p, and its people's boxes [n, 4] in shares of it."""
        self._learnt_s = now_s
        planes = [_plane(plane, *size) for plane, size in zip(frame.planes, _sizes(frame))]
        if [plane.shape for plane in planes] != [shown.shape for shown in self._shown]:
            self._samples = [np.full((SAMPLES, *plane.shape), COVERED, np.uint8) for plane in planes]
            self._free = [np.zeros(samples.shape, bool) for samples in self._samples]
            self._shown = [np.full(plane.shape, UNKNOWN, np.uint8) for plane in planes]
            self._next, self.picture = 0, None
        for samples, free, plane in zip(self._samples, self._free, planes):
            free[self._next] = ~covered(boxes, plane.shape)
            samples[self._next] = np.where(free[self._next], plane, COVERED)
        self._next = (self._next + 1) % SAMPLES
        if self._free[0].sum(0).max() >= ENOUGH:
            self._update()
            self.picture = self._drawn(frame)

    def _update(self) -> None:
        """Where enough samples are free, the median of these; elsewhere what was shown before stays."""
        for samples, free, shown in zip(self._samples, self._free, self._shown):
            for top in range(0, len(shown), ROWS_AT_ONCE):
                part = slice(top, top + ROWS_AT_ONCE)
                known = free[:, part].sum(0)
                middle = np.take_along_axis(
                    np.sort(samples[:, part], axis=0), np.minimum(known // 2, SAMPLES - 1)[None], axis=0
                )[0]
                shown[part] = np.where(known >= ENOUGH, middle, shown[part])

    def _drawn(self, like: av.VideoFrame) -> av.VideoFrame:
        picture = av.VideoFrame(like.width, like.height, "yuvj420p")
        for target, shown in zip(picture.planes, self._shown):
            rows = np.full((len(shown), target.line_size), UNKNOWN, np.uint8)
            rows[:, : shown.shape[1]] = shown
            target.update(rows.tobytes())
        return picture


def covered(boxes: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """bool [height, width]: where a box of [n, 4] shares, with its margin, covers a plane."""
    height, width = shape
    mask = np.zeros((height, width), bool)
    margin = MARGIN * (boxes[:, 2:] - boxes[:, :2])
    lower = np.floor((boxes[:, :2] - margin) * [width, height]).astype(int).clip(0)
    upper = np.ceil((boxes[:, 2:] + margin) * [width, height]).astype(int)
    for (x1, y1), (x2, y2) in zip(lower, upper):
        mask[y1:y2, x1:x2] = True
    return mask


def _sizes(frame: av.VideoFrame) -> list[tuple[int, int]]:
    chroma = (frame.height + 1) // 2, (frame.width + 1) // 2
    return [(frame.height, frame.width), chroma, chroma]


def _plane(plane: VideoPlane, height: int, width: int) -> np.ndarray:
    return np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)[:height, :width]
