"""Where pictures come from: any file or URL that FFmpeg opens, read by a thread so that a hanging camera hangs nothing.

`play` is the plain sequence of what happens to a source; `Reader` runs it in a thread and wakes the service's loop.
"""

import os
import queue
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import av
import numpy as np

from common.errors import BAD_DATA, NO_INPUT, SourceError
from common.messages import SurfaceLayout
from common.settings import Decoder, Source

PITCH_PX = 64  # rows of a surface start at multiples of this, as they do on a GPU
HD_ROWS = 720  # from here on an unspecified colour matrix is taken as BT.709, below as BT.601
MATRICES = {1: "bt709", 5: "bt601", 6: "bt601", 9: "bt2020", 10: "bt2020"}  # AVColorSpace
FULL_RANGE = 2  # AVColorRange
JUMP_S = 1.0  # a real-time file that is this late, or jumps, starts its clock anew
PLANAR = {"yuv420p": False, "yuvj420p": True, "nv12": False}  # formats copied as they are -> full range by name


@dataclass(frozen=True)
class Picture:
    """One decoded frame. `captured_ns`: when its packet arrived; `decode_ns`, `decoded_ns`: begin and end of the call
    that gave it (CLOCK_MONOTONIC)."""

    surface: "Surface"
    pts: int | None
    pts_s: float
    captured_ns: int
    decode_ns: int
    decoded_ns: int


class Surface(Protocol):
    """Decoded pixels that still belong to the decoder."""

    layout: SurfaceLayout  # of the slot they fit into

    def write(self, slot) -> None:
        """Copies them into a slot of the surfaces ring, or queues that."""


class Codec(Protocol):
    """What decodes one opening of a source: the FFmpeg of this file, or NVDEC (nvdec.py)."""

    early: bool  # a picture's slot may be offered when its packet has arrived

    def decode(self, packet: av.Packet) -> list:
        """The frames that a packet (or the end, an empty one) gives; each has pts, time and is_corrupt."""

    def surface(self, frame) -> Surface:
        """A frame's pixels."""

    def restart(self) -> None:
        """The next packet is the beginning of the file again."""


@dataclass(frozen=True)
class Damaged:
    """A packet or frame that could not be decoded, skipped."""

    detail: str


@dataclass(frozen=True)
class Changed:
    """The source is now "online", "reconnecting" or (nothing follows) "ended"."""

    state: str
    detail: str = ""


@dataclass(frozen=True)
class Arrived:
    """A packet of a live source is about to be decoded, by a codec whose slots may be offered before that."""

    pts: int
    pts_s: float
    captured_ns: int


Event = Arrived | Picture | Damaged | Changed


def redacted(url: str) -> str:
    """The URL without user name and password, for people to read."""
    return re.sub(r"//[^/@]*@", "//", url)


def play(
    source: Source,
    settings: Decoder,
    after_pts: int | None,
    wait: Callable[[float], bool],
    codec: Callable[[av.VideoStream, bool], Codec] | None = None,
) -> Iterator[Event]:
    """Everything that happens to a source, in order, until it has ended or `wait(seconds)` says to stop.

    A file ends (or starts again, with `loop`); a network stream is opened again for ever. `after_pts`: resume a file
    behind that presentation time. `codec(stream, live)` decodes; the default is FFmpeg. Raises SourceError for a file
    that is missing, is not a video or has no frame.
    """
    codec = codec or OnCpu
    if is_network(source.url):
        yield from _network(source, settings, wait, codec)
        return
    while True:
        seen = False
        yield Changed("online")
        for event in _once(source, settings, after_pts, wait, codec):
            seen = seen or isinstance(event, Picture)
            yield event
        if not seen and after_pts is None:
            raise SourceError(f"The source {source.url} has no frame that can be decoded.", BAD_DATA)
        if not source.loop or wait(0):
            yield Changed("ended")
            return
        after_pts = None


def is_network(url: str) -> bool:
    """True for streams that are opened again when they break; http(s) is played like a file."""
    return Source(url=url).live


def _network(source: Source, settings: Decoder, wait: Callable, codec: Callable) -> Iterator[Event]:
    failures = 0
    while True:
        detail, online = "the stream ended", False
        try:
            for event in _once(source, settings, None, wait, codec):
                if isinstance(event, Picture) and not online:
                    yield Changed("online")
                    online, failures = True, 0
                yield event
        except SourceError as error:
            detail = str(error)
        yield Changed("reconnecting", detail)
        if wait(min(settings.backoff_min_s * 2**failures, settings.backoff_max_s)):
            return
        failures = min(failures + 1, 30)


def _once(
    source: Source, settings: Decoder, after_pts: int | None, wait: Callable[[float], bool], codec: Callable
) -> Iterator[Event]:
    """One opening of a source, to its end; a file in a loop is rewound, where it can be, without a new decoder."""
    with _open(source.url, settings) as container:
        stream = _video(container, source.url)
        decoder = codec(stream, source.live)
        if after_pts is not None:
            container.seek(after_pts, stream=stream, backward=True)
        pace = _Pace(source.fps) if source.realtime and not is_network(source.url) else None
        seen = True
        while seen:
            seen = False
            for event in _pass(container, stream, decoder, source, after_pts, pace, wait):
                seen = seen or isinstance(event, Picture)
                yield event
            if wait(0) or not source.loop or is_network(source.url) or not _rewound(container, stream, decoder):
                return
            after_pts = None
            if pace:
                pace.rewound()


def _pass(container, stream, decoder: Codec, source: Source, after_pts: int | None, pace, wait) -> Iterator[Event]:
    """From where the container stands to its end."""
    captured: dict[int | None, int] = {}
    for packet in _packets(container, stream, source.url):
        if isinstance(packet, Damaged):
            yield packet
            continue
        shown = after_pts is None or packet.pts is None or packet.pts > after_pts
        if pace and packet.size and shown and wait(pace.seconds_until(packet, stream)):
            return
        captured[packet.pts] = now_ns = time.monotonic_ns()
        if decoder.early and packet.size and packet.pts is not None:
            yield Arrived(packet.pts, float(packet.pts * packet.time_base), now_ns)
        try:
            frames = decoder.decode(packet)
        except (av.error.FFmpegError, DecodeError) as error:
            captured.pop(packet.pts, None)
            yield Damaged(_why(error))
            continue
        decoded_ns = time.monotonic_ns()
        for frame in frames:
            if after_pts is not None and frame.pts is not None and frame.pts <= after_pts:
                captured.pop(frame.pts, None)
            elif frame.is_corrupt:
                captured.pop(frame.pts, None)
                yield Damaged("the frame refers to lost data")
            else:
                captured_ns = captured.pop(frame.pts, now_ns)
                yield Picture(decoder.surface(frame), frame.pts, frame.time or 0.0, captured_ns, now_ns, decoded_ns)
        if wait(0):
            return


def _rewound(container: av.container.InputContainer, stream: av.VideoStream, decoder: Codec) -> bool:
    """False for what cannot be rewound, a raw stream for instance: it is opened again."""
    try:
        container.seek(0, stream=stream, backward=True)
    except (av.error.FFmpegError, OSError):
        return False
    decoder.restart()
    return True


def _packets(container: av.container.InputContainer, stream: av.VideoStream, url: str) -> Iterator[av.Packet | Damaged]:
    packets = container.demux(stream)
    while True:
        try:
            yield next(packets)
        except StopIteration:
            return
        except (av.error.FFmpegError, OSError) as error:
            if is_network(url):
                raise SourceError(f"The source {redacted(url)} broke off: {_why(error)}.", BAD_DATA) from None
            yield Damaged(_why(error))
            return


def _open(url: str, settings: Decoder) -> av.container.InputContainer:
    remote = "://" in url and not url.startswith("file://")
    options = {"rtsp_transport": "tcp"} if url.startswith("rtsp") else {}
    timeout = (settings.open_timeout_s, settings.read_timeout_s) if remote else None
    try:
        return av.open(url, options=options, timeout=timeout)
    except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
        raise SourceError(f"The source {redacted(url)} cannot be opened: {_why(error)}.", NO_INPUT) from None
    except (av.error.FFmpegError, OSError) as error:
        code = BAD_DATA if isinstance(error, av.error.InvalidDataError) else NO_INPUT
        raise SourceError(f"The source {redacted(url)} cannot be opened: {_why(error)}.", code) from None


def _video(container: av.container.InputContainer, url: str) -> av.VideoStream:
    if not container.streams.video or container.format.name == "tty":  # FFmpeg takes any text for ANSI art
        raise SourceError(f"The source {redacted(url)} has no video stream.", BAD_DATA)
    stream = container.streams.video[0]
    if stream.codec_context is None:
        raise SourceError(f"The source {redacted(url)} is in a codec that this FFmpeg does not decode.", BAD_DATA)
    return stream


def _why(error: Exception) -> str:
    if isinstance(error, av.error.ExitError):  # what a timeout of ours looks like
        return "nothing came before the timeout"
    text = getattr(error, "strerror", None) or str(error)
    return text[0].lower() + text[1:]


class _Pace:
    """Plays a file at its own rate, or at `fps` frames/s."""

    def __init__(self, fps: float) -> None:
        self._fps, self._count, self._origin_s = fps, 0, None

    def seconds_until(self, packet: av.Packet, stream: av.VideoStream) -> float:
        """How long to wait for this packet, s."""
        self._count += 1
        now_s, at_s = time.monotonic(), self._time_s(packet, stream)
        if self._origin_s is None or abs(now_s - self._origin_s - at_s) > JUMP_S:
            self._origin_s = now_s - at_s
        return max(0.0, self._origin_s + at_s - now_s)

    def rewound(self) -> None:
        """The next packet is the first again."""
        if not self._fps:
            self._origin_s = None

    def _time_s(self, packet: av.Packet, stream: av.VideoStream) -> float:
        """When a packet is due, s; by the frame rate where it was set or a raw stream has no timestamps."""
        if not self._fps and packet.dts is not None:
            return float(packet.dts * packet.time_base)
        return float(self._count / (self._fps or stream.average_rate or stream.guessed_rate or 25))


class Reader:
    """Runs `play` in a thread. `wake_fd` is readable when take() has something; a full queue holds the thread back.

    `lent`: a picture's pixels are the decoder's, so the thread goes on only when the picture was handled.
    `at_once(picture)` is called in the thread itself, before anybody is woken.
    """

    def __init__(
        self,
        source: Source,
        settings: Decoder,
        after_pts: int | None,
        codec: Callable | None = None,
        lent: bool = False,
        at_once: Callable[[Picture], None] = lambda picture: None,
    ):
        self.wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._events: queue.Queue[Event | Exception] = queue.Queue(maxsize=2)
        self._at_once = at_once
        self._stop, self._lent, self._handled = threading.Event(), lent, threading.Semaphore(0)
        self._thread = threading.Thread(
            target=self._run, args=(source, settings, after_pts, codec), daemon=True, name="reader"
        )
        self._thread.start()

    def woken(self) -> None:
        """Makes wake_fd wait for the next event; call it whenever wake_fd is readable."""
        os.eventfd_read(self.wake_fd)

    def take(self) -> Iterator[Event]:
        """What has happened so far; raises what ended the thread."""
        while True:
            try:
                event = self._events.get_nowait()
            except queue.Empty:
                return
            if isinstance(event, Exception):
                raise event
            yield event
            if self._lent and isinstance(event, Picture):
                self._handled.release()

    def close(self) -> None:
        """Stops the thread; one that hangs in FFmpeg is left to die with the process."""
        self._stop.set()
        self._thread.join(timeout=1)

    def _run(self, source: Source, settings: Decoder, after_pts: int | None, codec: Callable | None) -> None:
        try:
            for event in play(source, settings, after_pts, self._stop.wait, codec):
                if isinstance(event, Picture):
                    self._at_once(event)
                self._put(event)
        except Exception as error:
            self._put(error)

    def _put(self, event: Event | Exception) -> None:
        while not self._stop.is_set():
            try:
                self._events.put(event, timeout=0.1)
            except queue.Full:
                continue
            os.eventfd_write(self.wake_fd, 1)
            break
        if self._lent and isinstance(event, Picture):
            while not self._stop.is_set() and not self._handled.acquire(timeout=0.1):
                pass


class DecodeError(Exception):
    """A packet that a hardware decoder could not decode."""


class OnCpu:
    """FFmpeg's own decoders."""

    early = False

    def __init__(self, stream: av.VideoStream, live: bool):
        stream.thread_type = "SLICE" if live else "AUTO"  # frame threads would hold frames back
        self._context = stream.codec_context

    def decode(self, packet: av.Packet) -> list[av.VideoFrame]:
        return packet.decode()

    def surface(self, frame: av.VideoFrame) -> "AvSurface":
        return AvSurface(frame)

    def restart(self) -> None:
        self._context.flush_buffers()


class AvSurface:
    """A frame of FFmpeg's."""

    def __init__(self, frame: av.VideoFrame):
        self.frame, self.layout = frame, layout_of(frame)

    def write(self, slot: np.ndarray) -> None:
        copy_nv12(self.frame, self.layout, slot)


def layout_of(frame: av.VideoFrame) -> SurfaceLayout:
    """The surface that a frame becomes. An unspecified matrix is BT.709 from 720 rows on, BT.601 below."""
    pitch = -(-frame.width // PITCH_PX) * PITCH_PX
    if frame.format.is_rgb:  # swscale makes BT.601, limited range of it
        return SurfaceLayout(frame.width, frame.height, pitch, "bt601", False)
    matrix = MATRICES.get(frame.colorspace, "bt709" if frame.height >= HD_ROWS else "bt601")
    full = frame.color_range == FULL_RANGE or PLANAR.get(frame.format.name, False)
    return SurfaceLayout(frame.width, frame.height, pitch, matrix, full)


def copy_nv12(frame: av.VideoFrame, layout: SurfaceLayout, slot: np.ndarray) -> None:
    """Writes a frame into a slot, uint8, as NV12. 8-bit 4:2:0 is copied exactly, other formats go through swscale."""
    rows = slot[: layout.nbytes].reshape(-1, layout.pitch)
    luma, chroma = rows[: layout.height], rows[layout.height :]
    if frame.format.name not in PLANAR:
        frame = frame.reformat(format="nv12")
    luma[:, : layout.width] = _plane(frame, 0, layout.width)
    half = (layout.width + 1) // 2
    if frame.format.name == "nv12":
        chroma[:, : 2 * half] = _plane(frame, 1, 2 * half)
    else:
        chroma[:, 0 : 2 * half : 2] = _plane(frame, 1, half)
        chroma[:, 1 : 2 * half : 2] = _plane(frame, 2, half)


def _plane(frame: av.VideoFrame, index: int, row_bytes: int) -> np.ndarray:
    plane = frame.planes[index]
    return np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[: plane.height, :row_bytes]
