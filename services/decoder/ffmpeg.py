"""FFmpeg's decoders, on the CPU: frames of any format -> upright NV12 with square pixels in a slot of shared memory."""

import av
import av.filter
import numpy as np
from av.video.reformatter import ColorRange, Colorspace

from peoplecounter.common.ipc.messages import SurfaceLayout
from peoplecounter.common.settings import SourceSettings
from peoplecounter.services.decoder.damage import decoding_problem, listen
from peoplecounter.services.decoder.upright import AS_STORED, Upright, exif_orientation, upright

PITCH_PX = 64  # rows of a surface start at multiples of this, as on a GPU
HD_ROWS = 720  # an unspecified colour matrix is BT.709 from this height on, BT.601 below
MATRICES = {1: "bt709", 5: "bt601", 6: "bt601", 9: "bt2020", 10: "bt2020"}  # AVColorSpace
FULL_RANGE = 2  # AVColorRange
IMAGES = ("mjpeg", "png", "webp", "tiff")  # codecs whose pictures may have an EXIF orientation each
PLANAR = {
    "yuv420p": False,
    "yuvj420p": True,
    "nv12": False,
}  # formats that are copied without conversion -> full range by their name


class FfmpegDecoder:
    """FFmpeg's own decoders, on the CPU."""

    early = False
    reports_damage = True

    def __init__(self, stream: av.VideoStream, source: SourceSettings, live: bool):
        self._stream, self._source, self._context = stream, source, stream.codec_context
        self._context.thread_count = 1  # frame threads delay frames, slice threads hide damage
        self._context.copy_opaque = True
        self._deinterlacer: Deinterlacer | None = None  # None: no interlaced frame has come yet
        self._packet = av.Packet()  # that was decoded last
        self._marks: tuple[int, bytes] | None = None  # of the last frame: rotation, EXIF orientation
        self._upright = AS_STORED

    def decode(self, packet: av.Packet) -> tuple[list[av.VideoFrame], str]:
        frames, said = listen(lambda: self._context.decode(packet if packet.size else None))
        frames = [frame for frame in frames if isinstance(frame, av.VideoFrame)]
        for frame in frames:
            frame.time_base = self._stream.time_base  # which the last ones of a stream lack
        self._packet = packet
        if self._deinterlacer is None and any(frame.interlaced_frame for frame in frames):
            self._deinterlacer = Deinterlacer()
        if self._deinterlacer:
            frames = self._deinterlacer.filter(frames, ended=not packet.size)
        return frames, decoding_problem(said)

    def surface(self, frame: av.VideoFrame) -> "AvSurface":
        marks = frame.rotation, exif_orientation(bytes(self._packet)) if self._context.name in IMAGES else b""
        if marks != self._marks:  # in PyAV a frame that is asked for its side data is garbage in a circle, for long
            self._marks = marks
            self._upright = upright(self._source, self._stream, frame, lambda: bytes(self._packet))
        return AvSurface(frame, self._upright)

    def restart(self) -> None:
        self._context.flush_buffers()
        self._deinterlacer = None


class Deinterlacer:
    """FFmpeg's bwdif: one whole picture for each interlaced frame, given with the next one. Others stay as they are."""

    def __init__(self) -> None:
        self._graph: av.filter.Graph | None = None
        self._of: tuple = ()  # format and size that the graph is for

    def filter(self, frames: list[av.VideoFrame], ended: bool) -> list[av.VideoFrame]:
        out = []
        for frame in frames:
            of = (frame.format.name, frame.width, frame.height, frame.time_base)
            if of != self._of:
                out += self._end()
                self._graph, self._of = _bwdif(*of), of
            assert self._graph is not None
            self._graph.push(frame)
            out += self._pull()
        return out + (self._end() if ended else [])

    def _end(self) -> list[av.VideoFrame]:
        if self._graph is None:
            return []
        self._graph.push(None)
        last = self._pull()
        self._graph, self._of = None, ()
        return last

    def _pull(self) -> list[av.VideoFrame]:
        out: list[av.VideoFrame] = []
        while True:
            try:
                assert self._graph is not None
                frame = self._graph.pull()
            except (BlockingIOError, EOFError):
                return out
            assert isinstance(frame, av.VideoFrame)
            time_base = self._of[3]
            if frame.pts is not None and frame.time_base:  # bwdif counts in halves, for two fields a frame
                frame.pts = round(frame.pts * frame.time_base / time_base)
            frame.time_base = time_base
            out.append(frame)


def _bwdif(pixel_format: str, width: int, height: int, time_base) -> av.filter.Graph:
    graph = av.filter.Graph()
    form = av.VideoFormat(pixel_format, width, height)
    source = graph.add_buffer(width=width, height=height, format=form, time_base=time_base)
    filtered, sink = graph.add("bwdif", "mode=send_frame:deint=interlaced"), graph.add("buffersink")
    source.link_to(filtered)
    filtered.link_to(sink)
    graph.configure()
    return graph


class AvSurface:
    """A frame of FFmpeg, see playback.Surface."""

    def __init__(self, frame: av.VideoFrame, upright: Upright = AS_STORED):
        self.frame, self.upright, self.layout = frame, upright, layout_of(frame, upright)
        self.aspect = float(upright.aspect)

    def write(self, slot: np.ndarray) -> None:
        copy_nv12(self.frame, self.layout, slot, self.upright)


def layout_of(frame: av.VideoFrame, upright: Upright = AS_STORED) -> SurfaceLayout:
    """The surface that a frame becomes. An unspecified matrix is BT.709 from 720 rows on, BT.601 below."""
    width, height = upright.size(frame.width, frame.height)
    if _is_rgb(frame):  # copy_nv12 converts it to BT.601, full range: no level is lost
        return SurfaceLayout(width, height, pitch_of(width), "bt601", True)
    colour = colour_of(frame.colorspace, frame.color_range, frame.format.name, frame.height)
    return SurfaceLayout(width, height, pitch_of(width), *colour)


def pitch_of(width: int) -> int:
    """Samples from one row of a slot to the next."""
    return -(-width // PITCH_PX) * PITCH_PX


def colour_of(colorspace: int, color_range: int, pixel_format: str | None, height: int) -> tuple[str, bool]:
    """(matrix, full range?) from FFmpeg's description of a stream or frame."""
    matrix = MATRICES.get(colorspace, "bt709" if height >= HD_ROWS else "bt601")
    return matrix, color_range == FULL_RANGE or PLANAR.get(pixel_format or "", False)


def copy_nv12(frame: av.VideoFrame, layout: SurfaceLayout, slot: np.ndarray, upright: Upright = AS_STORED) -> None:
    """Writes a frame into a uint8 slot as NV12. 8-bit 4:2:0 is copied exactly, swscale converts and scales the rest."""
    rows = slot[: layout.nbytes].reshape(-1, layout.pitch)
    luma, chroma = rows[: layout.height, : layout.width], rows[layout.height :, : 2 * ((layout.width + 1) // 2)]
    chroma = chroma.reshape(len(chroma), -1, 2)
    width, height = upright.turned(layout.width, layout.height)
    if _is_rgb(frame):
        frame = frame.reformat(width, height, "nv12", dst_color_range=ColorRange.JPEG, dst_colorspace=Colorspace.ITU601)
    elif frame.format.name not in PLANAR or (frame.width, frame.height) != (width, height):
        frame = frame.reformat(width, height, "nv12")
    half = (width + 1) // 2
    luma[...] = upright.turn(_plane(frame, 0, width))
    if frame.format.name == "nv12":
        chroma[...] = upright.turn(_plane(frame, 1, 2 * half).reshape(-1, half, 2))
    else:
        chroma[..., 0] = upright.turn(_plane(frame, 1, half))
        chroma[..., 1] = upright.turn(_plane(frame, 2, half))


def _is_rgb(frame: av.VideoFrame) -> bool:
    return frame.format.is_rgb or frame.format.has_palette


def _plane(frame: av.VideoFrame, index: int, row_bytes: int) -> np.ndarray:
    plane = frame.planes[index]
    return np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)[: plane.height, :row_bytes]
