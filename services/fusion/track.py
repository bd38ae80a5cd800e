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
COLUMNS = 10
CONFIRMED_HITS = 3
LOST_S, TENTATIVE_LOST_S, GAP_S = 1.5, 0.35, 2.5
STAGES = ((0.0, 0.3), (0.3, 0.2))  # how far a side moves out, as a share of its length, and the least overlap (IoU)
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
        return _boxes(_moved(self.state, time_s - self.time_s), self.state[:, SIZE])

    @property
    def boxes(self) -> np.ndarray:
        """float64 [k, 4]: x1, y1, x2, y2, where each person was in the last frame, px."""
        return _boxes(self.state[:, TOP], self.state[:, SIZE])

    def update(self, boxes: np.ndarray, sure: np.ndarray, time_s: float, share: float = 1.0) -> np.ndarray:
        """The detections [n, 4 or more] of a complete frame; returns int64 [n]: each one's track, 0 for a weak one
        without a track.

        `sure` bool [n]: which may begin a track. `share`: of the time since the last frame, what its age grows by: a
        fifth where four frames between them were not counted completely. Ended tracks stay in `state` until `drop()`.
        """
        elapsed_s = min(max(time_s - self.time_s, 0.0), GAP_S)
        state, numbers = self.state, np.zeros(len(boxes), np.int64)
        state[:, TOP] = _moved(state, elapsed_s)
        expected = self.boxes
        self.time_s, free = time_s, np.ones(len(state), bool)
        for wanted in (sure, ~sure):
            for widened, overlap_min in STAGES:
                found, track = np.flatnonzero(wanted & (numbers == 0)), np.flatnonzero(free)
                if not len(found) or not len(track):
                    break
                i, j = _best_pairs(boxes[found, :4], expected[track], widened, overlap_min)
                self._follow(track[j], boxes[found[i], :4], elapsed_s)
                numbers[found[i]], free[track[j]] = state[track[j], NUMBER], False
        state[free, LOST_AGE_S] += elapsed_s * share
        numbers[sure & (numbers == 0)] = self._begin(boxes[sure & (numbers == 0), :4])
        return numbers

    def ended(self) -> np.ndarray:
        """bool [k]: the tracks that are lost."""
        age_s, silent_s = self.state[:, LOST_AGE_S], self.time_s - self.state[:, SEEN_S]
        return (age_s > np.where(self.confirmed, LOST_S, TENTATIVE_LOST_S)) | (silent_s >= GAP_S)

    def drop(self, which: np.ndarray) -> None:
        """Forgets tracks, bool [k]."""
        self.state = self.state[~which]

    def _follow(self, track: np.ndarray, boxes: np.ndarray, elapsed_s: float) -> None:
        """Tracks (indices) are seen at these boxes [n, 4]."""
        state, (top, size) = self.state, _top_and_size(boxes)
        surprise, hits = top - state[track, TOP], state[track, HITS, None]
        state[track, TOP] += ALPHA * surprise
        # the first few positions and sizes are all that is known
        state[track, SIZE] += np.maximum(SIZE_ALPHA, 1 / (hits + 1)) * (size - state[track, SIZE])
        if elapsed_s > 0:
            state[track, VELOCITY] += np.maximum(BETA, 0.7 / hits) * surprise / elapsed_s
        state[track, HITS] += 1
        state[track, LOST_AGE_S], state[track, SEEN_S] = 0, self.time_s

    def _begin(self, boxes: np.ndarray) -> np.ndarray:
        new = np.zeros((len(boxes), COLUMNS))
        new[:, NUMBER] = self.last_number + 1 + np.arange(len(boxes))
        new[:, HITS], new[:, SEEN_S] = 1, self.time_s
        new[:, TOP], new[:, SIZE] = _top_and_size(boxes)
        self.state, self.last_number = np.vstack([self.state, new]), self.last_number + len(boxes)
        return new[:, NUMBER].astype(np.int64)


def _moved(state: np.ndarray, seconds: float) -> np.ndarray:
    """float64 [k, 2]: where the tops of the tracks are after this time."""
    return state[:, TOP] + state[:, VELOCITY] * seconds


def _top_and_size(boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    x1, y1, x2, y2 = boxes.T.astype(float)
    return np.stack([(x1 + x2) / 2, y1], axis=1), np.stack([x2 - x1, y2 - y1], axis=1)


def _boxes(top: np.ndarray, size: np.ndarray) -> np.ndarray:
    half = size[:, :1] / 2
    return np.hstack([top[:, :1] - half, top[:, 1:], top[:, :1] + half, top[:, 1:] + size[:, 1:]])


def _best_pairs(a: np.ndarray, b: np.ndarray, widened: float, overlap_min: float) -> tuple[list[int], list[int]]:
    """Pairs of indices of boxes [n, 4] and [m, 4], the best overlap first, each box once."""
    iou = iou_matrix(_wider(a, widened), _wider(b, widened))
    first, second = np.nonzero(iou > overlap_min)
    order = np.argsort(-iou[first, second], kind="stable")
    left: dict[int, int] = {}
    right: set[int] = set()
    for i, j in zip(first[order].tolist(), second[order].tolist()):
        if i not in left and j not in right:
            left[i] = j
            right.add(j)
    return list(left), list(left.values())


def _wider(boxes: np.ndarray, share: float) -> np.ndarray:
    if not share:
        return boxes
    margin = (boxes[:, 2:] - boxes[:, :2]) * share
    return np.hstack([boxes[:, :2] - margin, boxes[:, 2:] + margin])
