"""Plays a source: `play` yields what happens to it, in order, for any file or URL that FFmpeg opens.

A Codec decodes its packets: ffmpeg.py, or nvdec.py on a GPU. reader.py runs this in a thread.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import av
from av.stream import Disposition

from peoplecounter.common.errors import BAD_DATA, CONFIG, NO_INPUT, SourceError
from peoplecounter.common.ipc.memory import Slot
from peoplecounter.common.ipc.messages import SurfaceLayout
from peoplecounter.common.settings import DecoderSettings, SourceSettings
from peoplecounter.common.sources import redacted
from peoplecounter.services.decoder.ffmpeg import FfmpegDecoder

JUMP_S = 1.0  # a file played in real time that is this late, or jumps this far, restarts its clock


@dataclass(frozen=True)
class Picture:
    """One decoded frame.

    `captured_ns`: when its packet arrived. `decode_ns`, `decoded_ns`: begin and end of the call that decoded it. All
    are CLOCK_MONOTONIC.
    """

    surface: "Surface"
    pts: int | None
    pts_s: float
    captured_ns: int
    decode_ns: int
    decoded_ns: int


class Surface(Protocol):
    """Decoded pixels, which still belong to the decoder."""

    layout: SurfaceLayout  # of a slot that they fit into

    def write(self, slot: Slot) -> None:
        """Copies the pixels into a slot of the surfaces ring, or queues the copy."""


class Codec(Protocol):
    """Decodes one opening of a source: FFmpeg (ffmpeg.py) or NVDEC (nvdec.py)."""

    early: bool  # a frame may be offered when its packet has arrived, see early.py

    def decode(self, packet: av.Packet) -> list:
        """The frames that a packet gives (an empty packet marks the end); each has pts, time and is_corrupt."""

    def surface(self, frame) -> Surface:
        """A frame's pixels."""

    def restart(self) -> None:
        """The next packet is the start of the file again."""


class DecodeError(Exception):
    """A packet that a hardware decoder could not decode."""


@dataclass(frozen=True)
class Damaged:
    """A packet or frame that cannot be decoded."""

    detail: str


@dataclass(frozen=True)
class StateChanged:
    """The source is now "online" (its first picture follows), "reconnecting" or "ended" (nothing follows)."""

    state: str
    detail: str = ""


@dataclass(frozen=True)
class PacketArrived:
    """A packet of a live source is about to be decoded by a codec that allows early offers."""

    pts: int
    pts_s: float
    captured_ns: int


Event = PacketArrived | Picture | Damaged | StateChanged


def play(
    source: SourceSettings,
    settings: DecoderSettings,
    after_pts: int | None,
    wait: Callable[[float], bool],
    codec: Callable[[av.VideoStream, bool], Codec] | None = None,
) -> Iterator[Event]:
    """Everything that happens to a source, in order, until it has ended or `wait(seconds)` returns True.

    A file ends, or restarts with `loop`; a network stream is reconnected for ever. `after_pts`: resume a file behind
    this presentation time. `codec(stream, live)` decodes; the default is FFmpeg. Raises SourceError for a file that is
    missing, is not a video or has no frame.
    """
    codec = codec or FfmpegDecoder
    if source.network:
        yield from _network(source, settings, wait, codec)
        return
    while True:
        seen = False
        for event in _once(source, settings, after_pts, wait, codec):
            if isinstance(event, Picture) and not seen:
                yield StateChanged("online")
                seen = True
            yield event
        if not seen and after_pts is None:
            raise SourceError(f"The source {redacted(source.url)} has no frame that can be decoded.", BAD_DATA)
        if not source.loop or wait(0):
            yield StateChanged("ended")
            return
        after_pts = None


def _network(source: SourceSettings, settings: DecoderSettings, wait: Callable, codec: Callable) -> Iterator[Event]:
    failures = 0
    while True:
        detail, online = "the stream ended", False
        try:
            for event in _once(source, settings, None, wait, codec):
                if isinstance(event, Picture) and not online:
                    yield StateChanged("online")
                    online, failures = True, 0
                yield event
        except SourceError as error:
            detail = str(error)
        yield StateChanged("reconnecting", detail)
        if wait(min(settings.backoff_min_s * 2**failures, settings.backoff_max_s)):
            return
        failures = min(failures + 1, 30)


def _once(
    source: SourceSettings,
    settings: DecoderSettings,
    after_pts: int | None,
    wait: Callable[[float], bool],
    codec: Callable,
) -> Iterator[Event]:
    """One opening of a source, to its end. A looping file is rewound with the same decoder, if it can be rewound."""
    with _open(source.url, settings) as container:
        stream = _video(container, source)
        decoder = codec(stream, source.live)
        if after_pts is not None:
            container.seek(after_pts, stream=stream, backward=True)
        pace = _Pace(source.fps) if source.realtime and not source.network else None
        seen = True
        while seen:
            seen = False
            for event in _pass(container, stream, decoder, source, after_pts, pace, wait):
                seen = seen or isinstance(event, Picture)
                yield event
            if wait(0) or not source.loop or source.network or not _rewound(container, stream, decoder):
                return
            after_pts = None
            if pace:
                pace.rewound()


def _pass(
    container, stream, decoder: Codec, source: SourceSettings, after_pts: int | None, pace, wait
) -> Iterator[Event]:
    """From the container's position to its end."""
    captured: dict[int | None, int] = {}
    for packet in _packets(container, stream, source):
        if isinstance(packet, Damaged):
            yield packet
            continue
        shown = after_pts is None or packet.pts is None or packet.pts > after_pts
        if pace and packet.size and shown and wait(pace.seconds_until(packet, stream)):
            return
        captured[packet.pts] = now_ns = time.monotonic_ns()
        if decoder.early and packet.size and packet.pts is not None:
            yield PacketArrived(packet.pts, float(packet.pts * packet.time_base), now_ns)
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
    """Rewinds a file; False when it cannot be rewound (a raw stream, for instance) and must be opened again."""
    try:
        container.seek(0, stream=stream, backward=True)
    except (av.error.FFmpegError, OSError):
        return False
    decoder.restart()
    return True


def _packets(
    container: av.container.InputContainer, stream: av.VideoStream, source: SourceSettings
) -> Iterator[av.Packet | Damaged]:
    packets = container.demux(stream)
    while True:
        try:
            yield next(packets)
        except StopIteration:
            return
        except (av.error.FFmpegError, OSError) as error:
            if source.network:
                raise SourceError(f"The connection to {redacted(source.url)} broke: {_why(error)}.", BAD_DATA) from None
            yield Damaged(_why(error))
            return


def _open(url: str, settings: DecoderSettings) -> av.container.InputContainer:
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


def _video(container: av.container.InputContainer, source: SourceSettings) -> av.VideoStream:
    """The stream that the source names; else the default, among several the largest. Cover art is not a video."""
    videos = [] if container.format.name == "tty" else container.streams.video  # FFmpeg accepts any text as ANSI art
    streams = {stream.index: stream for stream in videos if not stream.disposition & Disposition.attached_pic}
    url = redacted(source.url)
    if not streams:
        raise SourceError(f"The source {url} has no video stream.", BAD_DATA)
    if source.stream < 0:
        candidates = list(streams.values())
    elif source.stream in streams:
        candidates = [streams[source.stream]]
    else:
        raise SourceError(
            f"The source {url} has no video stream {source.stream}: its video streams are "
            f"{', '.join(f'{index} ({stream.width}x{stream.height})' for index, stream in streams.items())}.",
            CONFIG,
        )
    decodable = [stream for stream in candidates if stream.codec_context is not None]
    if not decodable:
        raise SourceError(f"The source {url} uses a codec that this FFmpeg cannot decode.", BAD_DATA)
    return max(decodable, key=lambda s: (bool(s.disposition & Disposition.default), s.width * s.height))


def _why(error: Exception) -> str:
    if isinstance(error, av.error.ExitError):  # how FFmpeg reports our timeout
        return "no data within the timeout"
    text = getattr(error, "strerror", None) or str(error)
    return text[0].lower() + text[1:]


class _Pace:
    """Paces a file at its own rate, or at `fps` frames/s."""

    def __init__(self, fps: float) -> None:
        self._fps, self._count = fps, 0
        self._origin_s: float | None = None

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
        """When a packet is due, s: by its timestamp, or by the frame rate if `fps` is set or it has no timestamp."""
        if not self._fps and packet.dts is not None:
            return float(packet.dts * packet.time_base)
        return float(self._count / (self._fps or stream.average_rate or stream.guessed_rate or 25))
