"""Calibration images: the user's own footage as the engine sees it, in views."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from peoplecounter.common.ipc.messages import Input, SurfaceLayout
from peoplecounter.common.settings import DecoderSettings, SourceSettings, ViewSettings
from peoplecounter.common.views import View
from peoplecounter.services.decoder.playback import START, Picture, Position, play
from peoplecounter.services.preprocess.kernels import fused


def frames(clip: Path, every: int = 1) -> Iterator[tuple[SurfaceLayout, np.ndarray]]:
    """(layout, uint8 surface) of every n-th frame of a file. Raises SourceError for a file that is not a video."""
    return surfaces(SourceSettings(url=str(clip)), every)


def surfaces(source: SourceSettings, every: int = 1) -> Iterator[tuple[SurfaceLayout, np.ndarray]]:
    """The same of any source; a camera's end when it fails. Raises SourceError."""
    for number, picture in enumerate(pictures(source)):
        if number % every == 0:
            layout = picture.surface.layout
            surface = np.empty(layout.nbytes, np.uint8)
            picture.surface.write(surface)
            yield layout, surface


def pictures(source: SourceSettings, resume: Position = START) -> Iterator[Picture]:
    """The pictures of a source, of a file those behind a position; a camera's end when it fails. Raises SourceError."""
    events = play(source, DecoderSettings(), resume, lambda seconds: seconds > 0)  # not opened again
    return (event for event in events if isinstance(event, Picture))


def length(source: SourceSettings) -> int:
    """Frames of a file."""
    return sum(1 for _ in pictures(source))


def tensor(surface: np.ndarray, layout: SurfaceLayout, read: Input, views: tuple[View, ...]) -> np.ndarray:
    """The images that preprocess makes of these views of a frame."""
    return fused(surface, layout, read, views, np.empty((len(views), *read.image_shape), read.dtype))


def images(clip: Path, count: int, read: Input, wanted: ViewSettings) -> np.ndarray:
    """At most `count` images for an engine's input, spread over the footage and over the views of a frame."""
    total = length(SourceSettings(url=str(clip)))
    every = max(1, total // min(total, max(4, count // 8)))
    picked = [
        tensor(surface, layout, read, wanted.table(layout.width, layout.height, read.size, read.corner))
        for layout, surface in frames(clip, every)
    ]
    per_frame = max(2, count // len(picked))
    step = [np.unique(np.linspace(0, len(images) - 1, per_frame).astype(int)) for images in picked]
    return np.concatenate([images[kept] for images, kept in zip(picked, step)])[:count]
