"""Squares that walk across and back, a cell at a time, and models whose boxes are large enough to be followed."""

from pathlib import Path

import av
import numpy as np

from tests.support import squares
from tests.support.squares import CELL, make_model

SIDE, FPS = 240, 10  # of the small clip, whose frame is its model's image; frames/s
CELLS, ROW = SIDE // CELL, 7
FRAMES = 2 * CELLS - 1  # there and back
LINE = {"points": [[0.5, 0.1], [0.5, 0.9]], "inside": [0.9, 0.5]}  # to the right is in
IN_S, OUT_S = CELLS // 2 / FPS, (FRAMES - 1 - CELLS // 2) / FPS  # when the square's middle is on the line


def column(step: int, columns: int) -> int:
    """In which column a square is after this many steps."""
    step %= 2 * columns - 2
    return min(step, 2 * columns - 2 - step)


def make_walkers(
    path: Path, frames: int, size: tuple[int, int], rows: tuple[int, ...], fps: int = squares.FPS, wait: int = 1
) -> Path:
    """An H.264 clip of one square in each of these rows, which takes a step every `wait` frames."""
    width, height = size
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options=squares.ENCODERS["libx264"])
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for frame in range(frames):
            rgb = np.zeros((height, width, 3), np.uint8)
            for number, row in enumerate(rows):
                left, top = CELL * column(frame // wait + 5 * number, width // CELL), CELL * row
                rgb[top : top + CELL, left : left + CELL] = 255
            container.mux(stream.encode(av.VideoFrame.from_ndarray(rgb, "rgb24")))
        container.mux(stream.encode())
    return path


def make_walk(path: Path) -> Path:
    """One square, FRAMES frames."""
    return make_walkers(path, FRAMES, (SIDE, SIDE), (ROW,), FPS)


def walking_model(path: Path, width: int = SIDE, height: int = SIDE) -> Path:
    """See squares.make_model(): its boxes are three cells wide."""
    return make_model(path, size=height, width=width, inset=-CELL)


def true_rows() -> list[str]:
    """The rows of a truth of make_walk(): frame, person, and the box that the model gives."""
    rows = []
    for number in range(FRAMES):
        left, top = (column(number, CELLS) - 1) * CELL, (ROW - 1) * CELL
        rows.append(f"{number},1,{max(0, left)},{top},{min(SIDE, left + 3 * CELL)},{top + 3 * CELL}")
    return rows


WALKERS, CROSSINGS, LONG = 3, 30, 480  # of make_three(): in LONG frames each of them goes there and back five times


def make_three(folder: Path) -> tuple[Path, Path]:
    """A longer clip of three squares, and its model: CROSSINGS of a line in the middle."""
    size = squares.WIDTH, squares.HEIGHT
    clip = make_walkers(folder / "walk.mp4", LONG, size, (4, 7, 10), wait=3)
    return clip, walking_model(folder / "walk.onnx", *size)
