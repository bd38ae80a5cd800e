"""Pictures of frames: with boxes drawn into them as PNG, or plain and small as JPEG."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter

from peoplecounter.common.errors import NO_INPUT, AppError
from peoplecounter.common.ipc.messages import SurfaceLayout

LINE_PX = 3
JPEG_QUALITY = 3  # FFmpeg's, from 2 (best) to 31
MATRICES = {"bt601": Colorspace.ITU601, "bt709": Colorspace.ITU709, "bt2020": Colorspace.BT2020}
Colour = tuple[int, int, int]


def rgb_of(layout: SurfaceLayout, surface: np.ndarray) -> np.ndarray:
    """uint8 [height, width, 3] of an NV12 surface."""
    return _nv12(layout, surface).to_ndarray(format="rgb24")[: layout.height, : layout.width].copy()


def outline(rgb: np.ndarray, boxes: np.ndarray, colour: Colour) -> None:
    """Draws the outlines of boxes [n, 4 or more], px, into a picture."""
    height, width = rgb.shape[:2]
    for x1, y1, x2, y2 in boxes[:, :4].round().astype(int).clip(0, [width, height, width, height]):
        for line in (
            rgb[y1 : y1 + LINE_PX, x1:x2],
            rgb[max(0, y2 - LINE_PX) : y2, x1:x2],
            rgb[y1:y2, x1 : x1 + LINE_PX],
            rgb[y1:y2, max(0, x2 - LINE_PX) : x2],
        ):
            line[...] = colour


def shrunk(rgb: np.ndarray, width: int) -> np.ndarray:
    """The picture, not wider than `width` px."""
    if rgb.shape[1] <= width:
        return rgb
    height = max(1, round(rgb.shape[0] * width / rgb.shape[1]))
    frame = av.VideoFrame.from_ndarray(rgb, "rgb24")
    return frame.reformat(width, height, interpolation="AREA").to_ndarray(format="rgb24")


def save(rgb: np.ndarray, out: Path) -> None:
    """Writes a PNG. Raises AppError when it cannot be written."""
    try:
        av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), "rgb24").save(out)
    except (OSError, av.error.FFmpegError) as error:
        raise AppError(f"{out} cannot be written: {error}.", NO_INPUT) from None


def jpeg_of(layout: SurfaceLayout, surface: np.ndarray, width_max: int) -> bytes:
    """An NV12 surface as JPEG, not wider than `width_max` px."""
    return jpeg(small(layout, surface, width_max))


def small(layout: SurfaceLayout, surface: np.ndarray, width_max: int) -> av.VideoFrame:
    """An NV12 surface as a frame of its own, not wider than `width_max` px, in JPEG's colours (yuvj420p, BT.601)."""
    width = min(layout.width, width_max)
    return _nv12(layout, surface).reformat(
        width, max(1, round(layout.height * width / layout.width)), "yuvj420p", interpolation="AREA",
        src_colorspace=MATRICES[layout.matrix], dst_colorspace=Colorspace.ITU601,
        src_color_range=ColorRange.JPEG if layout.full_range else ColorRange.MPEG, dst_color_range=ColorRange.JPEG,
    )  # fmt: skip


def jpeg(frame: av.VideoFrame, width_max: int = 0, quality: int = JPEG_QUALITY) -> bytes:
    """A frame of small() as JPEG, not wider than `width_max` px if that is not 0. May be called from any thread."""
    if 0 < width_max < frame.width:
        height = max(1, round(frame.height * width_max / frame.width))
        own = VideoReformatter()  # that of the frame is one for all threads
        frame = own.reformat(frame, width_max, height, "yuvj420p", interpolation="AREA")
    encoder = av.CodecContext.create("mjpeg", "w")
    encoder.width, encoder.height, encoder.pix_fmt = frame.width, frame.height, "yuvj420p"
    encoder.framerate, encoder.thread_count = Fraction(1), 1
    encoder.qmin = encoder.qmax = quality
    return b"".join(bytes(packet) for packet in [*encoder.encode(frame), *encoder.encode()])


def _nv12(layout: SurfaceLayout, surface: np.ndarray) -> av.VideoFrame:
    """The frame of an NV12 surface, with even sides."""
    if layout.sample_bytes == 2:
        surface = surface[1::2]  # the upper 8 bits
    rows = surface.reshape(-1, layout.pitch // layout.sample_bytes)[:, : layout.width + layout.width % 2]
    nv12 = av.VideoFrame.from_ndarray(_even(rows, layout), "nv12")
    nv12.color_range = 2 if layout.full_range else 1
    return nv12


def _even(rows: np.ndarray, layout: SurfaceLayout) -> np.ndarray:
    """NV12 rows with an even number of luma rows, as PyAV wants them."""
    luma, chroma = rows[: layout.height], rows[layout.height :]
    return np.ascontiguousarray(np.vstack([luma, luma[-1:], chroma] if layout.height % 2 else [luma, chroma]))
