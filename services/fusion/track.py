"""People followed from frame to frame: detections -> tracks. Pure: the time is passed in, seconds of capture time.

1. Each track's box is moved on at constant velocity. Detections are matched with these boxes by overlap, the best pair
   first, in two stages as in ByteTrack: the sure ones, then the weak ones, which begin no track but may continue one.
   What is left is matched once more with widened boxes, as in C-BIoU: small and quick people hardly overlap themselves.
2. A match moves the track, and turns its velocity, by a share of the difference (an alpha-beta filter). A person's size
   changes slowly: when the feet are hidden for a while, they stay where they must be, below the head.
3. A track is tentative until CONFIRMED_HITS frames have shown it. It ends when frames do not show it for LOST_S.

Only complete frames are given to a tracker: a frame that was dropped or counted incompletely ages no track. All tracks
end when nothing was seen for GAP_S.
"""

import numpy as np

from peoplecounter.common.boxes import iou_matrix

# columns of the state
NUMBER, HITS, LOST_AGE_S, SEEN_S = 0, 1, 2, 3
TOP, SIZE, VELOCITY = slice(4, 6), slice(6, 8), slice(8, 10)  # middle of the upper edge, width and height, px; px/s
PLACE = slice(4, 8)
COLUMNS = 10
CONFIRMED_HITS = 3
LOST_S, TENTATIVE_LOST_S, GAP_S = 1.5, 0.35, 2.5
PLAIN_IOU, WIDENED_IOU = 0.3, 0.2  # the least overlap
WIDENED = 0.3  # how far a side moves out, as a share of its length
STEP_MIN_S = 0.01  # between two frames: a shorter one would make a jump of a pixel a speed
ALPHA, SIZE_ALPHA, BETA = 0.5, 0.2, 0.15


class Tracker:
    """The tracks of one source. All it knows is `state` float64 [k, COLUMNS], `time_s` and `last_number`."""

    def __init__(self) -> None:
        self.state = np.zeros((0, COLUMNS))
        self.time_s = -np.inf
        self.last_number = 0

    @property
    def numbers(self) -> np.ndarray:
        """int64 [k]: the number of each track, never used again."""
        return self.state[:, NUMBER].astype(np.int64)

    @property
    def confirmed(self) -> np.ndarray:
        """bool [k]"""
        return self.state[:, HITS] >= CONFIRMED_HITS

    @property
    def seen(self) -> np.ndarray:
        """bool [k]: which tracks the last frame showed."""
        return self.state[:, SEEN_S] == self.time_s

    def at(self, time_s: float) -> np.ndarray:
        """float64 [k, 4]: where each person is at a moment near the last frame, moved on at constant velocity."""
        place = self.state[:, PLACE].copy()
        place[:, :2] += self.state[:, VELOCITY] * (time_s - self.time_s)
        return _boxes(place)

    @property
    def boxes(self) -> np.ndarray:
        """float64 [k, 4]: x1, y1, x2, y2, where each person was in the last frame, px."""
        return _boxes(self.state[:, PLACE])

    def update(self, boxes: np.ndarray, sure: np.ndarray, time_s: float, share: float = 1.0) -> np.ndarray:
        """The detections [n, 4 or more] of a complete frame; returns int64 [n]: each one's track, 0 for a weak one
        without a track.

        `sure` bool [n]: which may begin a track. `share`: of the time since the last frame, what its age grows by: a
        fifth where four frames between them were not counted completely. Ended tracks stay in `state` until `drop()`.
        """
        elapsed_s = min(max(time_s - self.time_s, 0.0), GAP_S)
        state, self.time_s = self.state, time_s
        state[:, TOP] += state[:, VELOCITY] * elapsed_s
        found, track = _match(boxes, sure, self.boxes)
        state[:, LOST_AGE_S] += elapsed_s * share
        self._follow(track, boxes[found, :4], elapsed_s)
        numbers = np.zeros(len(boxes), np.int64)
        numbers[found] = state[track, NUMBER]
        new = sure & (numbers == 0)
        if new.any():
            numbers[new] = self._begin(boxes[new, :4])
        return numbers

    def ended(self) -> np.ndarray:
        """bool [k]: the tracks that are lost."""
        age_s, silent_s = self.state[:, LOST_AGE_S], self.time_s - self.state[:, SEEN_S]
        return (age_s > np.where(self.confirmed, LOST_S, TENTATIVE_LOST_S)) | (silent_s >= GAP_S)

    def drop(self, which: np.ndarray) -> None:
        """Forgets tracks, bool [k]."""
        self.state = self.state[~which]

    def scale(self, x: float, y: float) -> None:
        """The frame has another size from now on."""
        self.state[:, TOP] *= (x, y)
        self.state[:, SIZE] *= (x, y)
        self.state[:, VELOCITY] *= (x, y)

    def _follow(self, track: np.ndarray, boxes: np.ndarray, elapsed_s: float) -> None:
        """Tracks (indices) are seen at these boxes [n, 4]."""
        rows = self.state[track]
        surprise, hits = _placed(boxes) - rows[:, PLACE], rows[:, HITS, None]
        rows[:, TOP] += ALPHA * surprise[:, :2]
        # the first few positions and sizes are all that is known
        rows[:, SIZE] += np.maximum(SIZE_ALPHA, 1 / (hits + 1)) * surprise[:, 2:]
        if elapsed_s > 0:
            rows[:, VELOCITY] += np.maximum(BETA, 0.7 / hits) / max(elapsed_s, STEP_MIN_S) * surprise[:, :2]
        rows[:, HITS] += 1
        rows[:, LOST_AGE_S], rows[:, SEEN_S] = 0, self.time_s
        self.state[track] = rows

    def _begin(self, boxes: np.ndarray) -> np.ndarray:
        new = np.zeros((len(boxes), COLUMNS))
        new[:, NUMBER] = self.last_number + 1 + np.arange(len(boxes))
        new[:, HITS], new[:, SEEN_S] = 1, self.time_s
        new[:, PLACE] = _placed(boxes)
        self.state, self.last_number = np.vstack([self.state, new]), self.last_number + len(boxes)
        return new[:, NUMBER].astype(np.int64)


def _placed(boxes: np.ndarray) -> np.ndarray:
    """Boxes [n, 4] as float64 [n, 4]: middle of the upper edge, width, height."""
    x1, y1, x2, y2 = boxes.T
    place = np.empty((len(boxes), 4))
    place[:, 0], place[:, 1], place[:, 2], place[:, 3] = (x1 + x2) / 2, y1, x2 - x1, y2 - y1
    return place


def _boxes(place: np.ndarray) -> np.ndarray:
    """The inverse of _placed()."""
    x, y, width, height = place.T
    boxes = np.empty((len(place), 4))
    boxes[:, 0], boxes[:, 1], boxes[:, 2], boxes[:, 3] = x - width / 2, y, x + width / 2, y + height
    return boxes


def _match(boxes: np.ndarray, sure: np.ndarray, expected: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Detections [n, 4 or more] and the tracks that are expected there [k, 4]: the indices of both, int64 [pairs]."""
    if not len(boxes) or not len(expected):
        return np.zeros(0, int), np.zeros(0, int)
    boxes, expected = boxes[:, :4].astype(np.float32), expected.astype(np.float32)
    track, free = np.full(len(boxes), -1), np.ones(len(expected), bool)
    pairs = _pairs(boxes, expected, PLAIN_IOU)
    for wanted in (sure, ~sure):
        _take(pairs, wanted, track, free)
        found, left = (wanted & (track < 0)).nonzero()[0], free.nonzero()[0]
        if len(found) and len(left):
            first, second = _pairs(_wider(boxes[found], WIDENED), _wider(expected[left], WIDENED), WIDENED_IOU)
            _take((found[first], left[second]), wanted, track, free)
    detections = (track >= 0).nonzero()[0]
    return detections, track[detections]


def _pairs(boxes: np.ndarray, expected: np.ndarray, iou_min: float) -> tuple[np.ndarray, np.ndarray]:
    """The indices of boxes [n, 4] and [k, 4] that overlap by more than that, the best pair first, int64 [pairs]."""
    iou = iou_matrix(boxes, expected)
    first, second = (iou > iou_min).nonzero()
    best = (-iou[first, second]).argsort(kind="stable")
    return first[best], second[best]


def _take(pairs: tuple[np.ndarray, np.ndarray], wanted: np.ndarray, track: np.ndarray, free: np.ndarray) -> None:
    """Gives the wanted detections, bool [n], that have no track yet (`track` [n] is -1) one that is free, bool [k]."""
    possible = (wanted & (track < 0))[pairs[0]] & free[pairs[1]]
    given: dict[int, int] = {}
    taken = set()
    for i, j in zip(pairs[0][possible].tolist(), pairs[1][possible].tolist()):
        if i not in given and j not in taken:
            given[i] = j
            taken.add(j)
    track[list(given)] = list(given.values())
    free[list(taken)] = False


def _wider(boxes: np.ndarray, share: float) -> np.ndarray:
    margin = (boxes[:, 2:] - boxes[:, :2]) * share
    return np.concatenate([boxes[:, :2] - margin, boxes[:, 2:] + margin], axis=1)
