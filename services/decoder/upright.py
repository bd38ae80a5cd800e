"""How stored pictures become upright pictures with square pixels: what the source says, or its settings. Pure."""

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import av
import numpy as np
from av.sidedata.sidedata import Type

from peoplecounter.common.settings import SourceSettings

ASPECT_MAX = 4  # a pixel that is said to be longer than this is a mistake in the stream
ASPECT_MIN = Fraction(101, 100)  # not worth resampling
# signs of a display matrix' (a, b, c, d), where x' = ax + cy and y' = bx + dy -> (quarter turns, mirrored)
OF_MATRIX = {
    (1, 0, 0, 1): (0, False), (0, 1, -1, 0): (1, False), (-1, 0, 0, -1): (2, False), (0, -1, 1, 0): (3, False),
    (-1, 0, 0, 1): (0, True), (0, 1, 1, 0): (1, True), (1, 0, 0, -1): (2, True), (0, -1, -1, 0): (3, True),
}  # fmt: skip
OF_EXIF = {
    1: (0, False), 2: (0, True), 3: (2, False), 4: (2, True), 5: (1, True), 6: (1, False), 7: (3, True), 8: (3, False),
}  # fmt: skip
EXIF_BYTES = 1 << 16  # at the start of an image
EXIF_ORIENTATION = re.compile(  # tag 0x0112, one SHORT, in either byte order
    rb"(?:II\x2a\0.*?\x12\x01\x03\0\x01\0\0\0([\x01-\x08])\0|"
    rb"MM\0\x2a.*?\x01\x12\0\x03\0\0\0\x01\0([\x01-\x08]))",
    re.DOTALL,
)


@dataclass(frozen=True)
class Upright:
    """Turn by quarters clockwise, then mirror left to right, then resample pixels of this aspect to square ones."""

    quarter_turns: int = 0
    mirrored: bool = False
    aspect: Fraction = Fraction(1)  # width of a pixel over its height, after the turn

    def __bool__(self) -> bool:
        return self != AS_STORED

    def turned(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) after the turn of pictures that were stored in this size, or the other way round."""
        return (height, width) if self.quarter_turns % 2 else (width, height)

    def size(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) of the surface. No pixel is lost: the shorter side of a pixel is stretched."""
        width, height = self.turned(width, height)
        return round(width * max(self.aspect, Fraction(1))), round(height / min(self.aspect, Fraction(1)))

    def turn(self, plane: np.ndarray) -> np.ndarray:
        """A view of [h, w, …] that is turned and mirrored."""
        plane = np.rot90(plane, -self.quarter_turns)
        return plane[:, ::-1] if self.mirrored else plane


AS_STORED = Upright()


def upright(
    source: SourceSettings, stream: av.VideoStream, frame: av.VideoFrame | None, data: Callable[[], bytes]
) -> Upright:
    """How the pictures of a stream become upright, by one of its frames and the `data` of that frame's packet."""
    turns, mirrored = _orientation(frame, data) if frame else (0, False)
    if source.rotate != "auto":
        turns, mirrored = int(source.rotate) // 90, False
    aspect = _aspect(source, stream)
    return Upright(turns, mirrored != source.mirror, 1 / aspect if turns % 2 else aspect)


def _orientation(frame: av.VideoFrame, data: Callable[[], bytes]) -> tuple[int, bool]:
    try:
        matrix = frame.side_data.get(Type.DISPLAYMATRIX)  # type: ignore[call-overload]
    except ValueError:  # PyAV has no name for some kinds of side data, EXIF among them
        found = exif_orientation(data())
        return OF_EXIF[found[0]] if found else (round(-frame.rotation / 90) % 4, False)
    if matrix is None:
        return 0, False
    a, b, _, c, d = struct.unpack("=5i", bytes(matrix)[:20])
    largest = max(map(abs, (a, b, c, d))) or 1
    return OF_MATRIX.get(tuple(round(value / largest) for value in (a, b, c, d)), (0, False))


def exif_orientation(data: bytes) -> bytes:
    """The byte of an image's EXIF orientation, see OF_EXIF; empty where there is none."""
    found = EXIF_ORIENTATION.search(data[:EXIF_BYTES])
    return (found[1] or found[2]) if found else b""


def _aspect(source: SourceSettings, stream: av.VideoStream) -> Fraction:
    """Width of a stored pixel over its height."""
    if source.pixel_aspect != "auto":
        width, height = source.pixel_aspect.split(":")
        return Fraction(int(width), int(height))
    aspects = (stream.sample_aspect_ratio, stream.codec_context.sample_aspect_ratio)
    aspect = next((Fraction(a) for a in aspects if a and a != 1), Fraction(1))
    longer = max(aspect, 1 / aspect)
    return aspect if ASPECT_MIN <= longer <= ASPECT_MAX else Fraction(1)
