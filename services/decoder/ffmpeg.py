"""FFmpeg's decoders, on the CPU: frames of any format -> NV12 in a slot of shared memory."""

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace

from peoplecounter.common.ipc.messages import SurfaceLayout

PITCH_PX = 64  # rows of a surface start at multiples of this, as on a GPU
HD_ROWS = 720  # an unspecified colour matrix is BT.709 from this height on, BT.601 below
MATRICES = {1: "bt709", 5: "bt601", 6: "bt601", 9: "bt2020", 10: "bt2020"}  # AVColorSpace
FULL_RANGE = 2  # AVColorRange
PLANAR = {
    "yuv420p": False,
    "yuvj420p": True,
    "nv12": False,
}  # formats that are copied without conversion -> full range by their name


class FfmpegDecoder:
    """FFmpeg's own decoders, on the CPU."""

    early = False

    def __init__(self, stream: av.VideoStream, live: bool):
        if live:  # frame threads delay frames, slice threads hide damage
            stream.codec_context.thread_count = 1
        else:
            stream.thread_type = "AUTO"
        self._context = stream.codec_context

    def decode(self, packet: av.Packet) -> list[av.VideoFrame]:
        return packet.decode()

    def surface(self, frame: av.VideoFrame) -> "AvSurface":
        return AvSurface(frame)

    def restart(self) -> None:
        self._context.flush_buffers()


class AvSurface:
    """A frame of FFmpeg, see playback.Surface."""

    def __init__(self, frame: av.VideoFrame):
        self.frame, self.layout = frame, layout_of(frame)

    def write(self, slot: np.ndarray) -> None:
        copy_nv12(self.frame, self.layout, slot)


def layout_of(frame: av.VideoFrame) -> SurfaceLayout:
    """The surface that a frame becomes. An unspecified matrix is BT.709 from 720 rows on, BT.601 below."""
    pitch = pitch_of(frame.width)
    if _is_rgb(frame):  # copy_nv12 converts it to BT.601, full range: no level is lost
        return SurfaceLayout(frame.width, frame.height, pitch, "bt601", True)
    colour = colour_of(frame.colorspace, frame.color_range, frame.format.name, frame.height)
    return SurfaceLayout(frame.width, frame.height, pitch, *colour)


def pitch_of(width: int) -> int:
    """Samples from one row of a slot to the next."""
    return -(-width // PITCH_PX) * PITCH_PX


def colour_of(colorspace: int, color_range: int, pixel_format: str | None, height: int) -> tuple[str, bool]:
    """(matrix, full range?) from FFmpeg's description of a stream or frame."""
    matrix = MATRICES.get(colorspace, "bt709" if height >= HD_ROWS else "bt601")
    return matrix, color_range == FULL_RANGE or PLANAR.get(pixel_format or "", False)


def copy_nv12(frame: av.VideoFrame, layout: SurfaceLayout, slot: np.ndarray) -> None:
    """Writes a frame into a uint8 slot as NV12. 8-bit 4:2:0 is copied exactly, swscale converts other formats."""
    rows = slot[: layout.nbytes].reshape(-1, layout.pitch)
    luma, chroma = rows[: layout.height], rows[layout.height :]
    if _is_rgb(frame):
        frame = frame.reformat(format="nv12", dst_color_range=ColorRange.JPEG, dst_colorspace=Colorspace.ITU601)
    elif frame.format.name not in PLANAR:
        frame = frame.reformat(format="nv12")
    luma[:, : layout.width] = _plane(frame, 0, layout.width)
    half = (layout.width + 1) // 2
    if frame.format.name == "nv12":
        chroma[:, : 2 * half] = _plane(frame, 1, 2 * half)
    else:
        chroma[:, 0 : 2 * half : 2] = _plane(frame, 1, half)
        chroma[:, 1 : 2 * half : 2] = _plane(frame, 2, half)


def _is_rgb(frame: av.VideoFrame) -> bool:
    return frame.format.is_rgb or frame.format.has_palette


def _plane(frame: av.VideoFrame, index: int, row_bytes: int) -> np.ndarray:
    plane = frame.planes[index]
    return np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)[: plane.height, :row_bytes]
