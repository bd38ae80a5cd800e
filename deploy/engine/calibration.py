"""Calibration images: the user's own footage as the engine sees it, letterboxed and in tiles."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from peoplecounter.common.geometry import TileGrid
from peoplecounter.common.ipc.messages import Input, SurfaceLayout, TensorLayout
from peoplecounter.common.settings import DecoderSettings, SourceSettings
from peoplecounter.services.decoder.playback import START, Picture, play
from peoplecounter.services.preprocess.kernels import fused


def frames(clip: Path, every: int = 1) -> Iterator[tuple[SurfaceLayout, np.ndarray]]:
    """(layout, uint8 surface) of every n-th frame of a file. Raises SourceError for a file that is not a video."""
    for number, picture in enumerate(_pictures(clip)):
        if number % every == 0:
            layout = picture.surface.layout
            surface = np.empty(layout.nbytes, np.uint8)
            picture.surface.write(surface)
            yield layout, surface


def tensor(surface: np.ndarray, layout: SurfaceLayout, read: Input, overlap: float) -> np.ndarray:
    """The tensors that preprocess makes from a frame, letterboxed and in tiles."""
    wanted = TensorLayout(1 + len(TileGrid(layout.width, layout.height, read.size, overlap)), read, overlap)
    out = np.empty(wanted.shape, wanted.dtype)
    fused(surface, layout, wanted, out)
    return out


def images(clip: Path, count: int, read: Input, overlap: float) -> np.ndarray:
    """At most `count` images for an engine's input, spread over the footage: letterboxed frames and tiles."""
    total = sum(1 for _ in _pictures(clip))
    every = max(1, total // min(total, max(4, count // 8)))
    picked = [tensor(surface, layout, read, overlap) for layout, surface in frames(clip, every)]
    per_frame = max(2, count // len(picked))
    step = [np.unique(np.linspace(0, len(images) - 1, per_frame).astype(int)) for images in picked]
    return np.concatenate([images[kept] for images, kept in zip(picked, step)])[:count]


def _pictures(clip: Path) -> Iterator[Picture]:
    events = play(SourceSettings(url=str(clip)), DecoderSettings(), START, lambda seconds: False)
    return (event for event in events if isinstance(event, Picture))
