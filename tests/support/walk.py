"""One square that walks across and back, in steps of a cell, and a model whose boxes are large enough to be tracked."""

from pathlib import Path

import av
import numpy as np

from tests.support.squares import CELL, make_model

SIDE, FPS = 240, 10  # of the frame, which is the model's image; frames/s
CELLS, ROW = SIDE // CELL, 7
FRAMES = 2 * CELLS
LINE = {"points": [[0.5, 0.1], [0.5, 0.9]], "inside": [0.9, 0.5]}  # to the right is in
IN_S, OUT_S = CELLS // 2 / FPS, (FRAMES - 1 - CELLS // 2) / FPS  # when the square's middle is on the line


def walking_model(path: Path) -> Path:
    """See squares.make_model(): its boxes are three cells wide."""
    return make_model(path, size=SIDE, inset=-CELL)


def cell_of(frame: int) -> int:
    """In which column the square is."""
    return min(frame, FRAMES - 1 - frame)


def make_walk(path: Path) -> Path:
    """An H.264 clip of FRAMES frames."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"crf": "12", "preset": "ultrafast", "g": "10"})
        stream.width, stream.height, stream.pix_fmt = SIDE, SIDE, "yuv420p"
        for number in range(FRAMES):
            rgb, left = np.zeros((SIDE, SIDE, 3), np.uint8), cell_of(number) * CELL
            rgb[ROW * CELL : (ROW + 1) * CELL, left : left + CELL] = 255
            container.mux(stream.encode(av.VideoFrame.from_ndarray(rgb, "rgb24")))
        container.mux(stream.encode())
    return path


def true_rows() -> list[str]:
    """The rows of a truth: frame, person, and the box that the model gives."""
    rows = []
    for number in range(FRAMES):
        left, top = (cell_of(number) - 1) * CELL, (ROW - 1) * CELL
        rows.append(f"{number},1,{max(0, left)},{top},{min(SIDE, left + 3 * CELL)},{top + 3 * CELL}")
    return rows
