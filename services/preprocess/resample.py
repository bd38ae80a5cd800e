"""Resampling of one plane on the CPU with NumPy: the reference's taps as slices, which are several times as fast as
indices."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from peoplecounter.services.preprocess.reference import neighbours

PERIOD_MAX = 16  # outputs after which the taps of an axis repeat; with more there are too many slices
WHOLE_NUMBERS_MAX = 65_535  # of uint16


@dataclass(frozen=True)
class Comb:
    """Outputs of one axis that lie at equal distances, and so do their samples: slices instead of indices."""

    outputs: slice
    samples: tuple[slice, ...]  # one for each tap
    weights: tuple[np.float32, ...]


@dataclass(frozen=True)
class Axis:
    """How one axis is resampled: by few combs, or where the ratio is unusual by indices."""

    target: int
    combs: tuple[Comb, ...]
    taps: tuple[tuple[np.ndarray, np.ndarray], ...]  # (samples, weights), each int or float32 [target]

    @property
    def mean_of(self) -> int:
        """How many samples each output is the plain mean of; 0: it is no mean."""
        weights = {weight for comb in self.combs for weight in comb.weights}
        return len(self.combs[0].weights) if len(self.combs) == len(weights) == 1 else 0


def resample(plane: np.ndarray, down: Axis, across: Axis) -> np.ndarray:
    """uint8 [h, w] -> float32 [height, width]; rows first, because they are contiguous."""
    samples = down.mean_of * across.mean_of
    if 0 < samples <= WHOLE_NUMBERS_MAX // 255:  # sums of few pixels are exact, and faster, as whole numbers
        sums = _sum([plane[rows] for rows in down.combs[0].samples])
        return _sum([sums[:, columns] for columns in across.combs[0].samples]) * np.float32(1 / samples)
    return _along(_along(plane, down).T, across).T


def _sum(parts: list[np.ndarray]) -> np.ndarray:
    """uint8 or uint16 arrays -> their sum, uint16."""
    out = parts[0].astype(np.uint16)
    for part in parts[1:]:
        out += part
    return out


def _along(plane: np.ndarray, along: Axis) -> np.ndarray:
    """[n, m] -> float32 [target, m], whose rows are combined."""
    out = np.empty((along.target, plane.shape[1]), np.float32, order="C" if plane.flags.c_contiguous else "F")
    for comb in along.combs:
        np.multiply(plane[comb.samples[0]], comb.weights[0], out=out[comb.outputs])
        for samples, weight in zip(comb.samples[1:], comb.weights[1:]):
            out[comb.outputs] += plane[samples] * weight
    if not along.combs:
        out[...] = 0
        for indices, weights in along.taps:
            out += plane[indices] * weights[:, None]
    return out


@lru_cache(maxsize=64)
def axis(source: int, target: int, halved: bool) -> Axis:
    """The taps of an axis. Those of usual ratios (2, 3/2, 6/5) repeat after a few outputs, so that slices do."""
    first, weights = neighbours(source, target, halved)
    last = (source - 1) // (2 if halved else 1)
    taps = tuple((np.minimum(first + k, last), weight) for k, weight in enumerate(weights.T))
    for period in range(1, min(PERIOD_MAX, target) + 1):
        steps = np.unique(first[period:] - first[:-period])
        if len(steps) > 1 or (len(steps) and steps[0] == 0) or not np.allclose(weights[period:], weights[:-period]):
            continue
        step = int(steps[0]) if len(steps) else 1
        return Axis(target, tuple(_comb(first, weights[i], i, period, step) for i in range(period)), taps)
    return Axis(target, (), taps)


def _comb(first: np.ndarray, weights: np.ndarray, output: int, period: int, step: int) -> Comb:
    """Every `period`-th output from `output` on, whose samples lie `step` apart."""
    begin, end = int(first[output]), int(first[output::period][-1]) + 1
    used = [k for k, weight in enumerate(weights) if weight > 0]
    samples = tuple(slice(begin + k, end + k, step) for k in used)
    return Comb(slice(output, None, period), samples, tuple(weights[k] for k in used))
