"""Plays a source: `play` yields what happens to it, in order, for anything that opening.py opens.

A Codec decodes its packets: ffmpeg.py, or nvdec.py on a GPU. reader.py runs this in a thread.
"""

import gc
import heapq
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import av
import msgspec

from peoplecounter.common.errors import BAD_DATA, SourceError
from peoplecounter.common.ipc.memory import Slot
from peoplecounter.common.ipc.messages import SurfaceLayout
from peoplecounter.common.settings import DecoderSettings, SourceSettings
from peoplecounter.common.sources import redacted
from peoplecounter.services.decoder.damage import Damage, Verdict, listen
from peoplecounter.services.decoder.ffmpeg import FfmpegDecoder
from peoplecounter.services.decoder.opening import Opening, Unreachable, can_be_resumed, open_source, parts_of, why

FOLLOWS = "it refers to a damaged frame"
JUMP_S = 1.0  # a file played in real time that is this late, or jumps this far, restarts its clock
PENDING_MAX = 256  # packets whose picture may still come
IMAGES_PER_S = 25  # of a folder of images that is played in real time
INDEXED = {"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi"}  # formats that find a frame by its time, surely


class Position(msgspec.Struct, frozen=True):
    """How far a file has been played."""

    frames: int = 0  # pictures and damaged packets since its start
    pts: int | None = None  # of the last one, in the stream's time base; None: only counting finds the next one


START = Position()


@dataclass(frozen=True)
class Picture:
    """One decoded frame.

    `captured_ns`: when its packet arrived. `decode_ns`, `decoded_ns`: begin and end of the call that decoded it. All
    are CLOCK_MONOTONIC. `number`: of its packet. `doubtful`: it may refer to lost data, see damage.py.
    """

    surface: "Surface"
    number: int
    pts_s: float | None  # None: the source has no timestamps
    captured_ns: int
    decode_ns: int
    decoded_ns: int
    position: Position = START
    doubtful: bool = False


class Surface(Protocol):
    """Decoded pixels, which still belong to the decoder."""

    layout: SurfaceLayout  # of a slot that they fit into
    aspect: float  # width of a stored pixel over its height; the surface's pixels are square

    def write(self, slot: Slot) -> None:
        """Copies the pixels into a slot of the surfaces ring, or queues the copy."""


class Frame(Protocol):
    """What a Codec gives for a packet."""

    opaque: int | None  # of the packet
    pts: int | None
    time: float | None  # pts in seconds
    is_corrupt: bool


class Codec(Protocol):
    """Decodes one opening of a source: FFmpeg (ffmpeg.py) or NVDEC (nvdec.py)."""

    early: bool  # a frame may be offered when its packet has arrived, see early.py
    reports_damage: bool  # False: it is not given what is known to be spoilt, which would confuse it

    def decode(self, packet: av.Packet) -> tuple[list, str]:
        """(frames that a packet gives, what is wrong with it or empty). An empty packet marks the end.

        Raises DecodeError or an error of FFmpeg for a packet that gives no picture.
        """

    def surface(self, frame) -> Surface:
        """The pixels of a Frame."""

    def restart(self) -> None:
        """The next packet is the start of the file again."""


class DecodeError(Exception):
    """A packet that a hardware decoder could not decode."""


@dataclass(frozen=True)
class Damaged:
    """A frame that is lost because its data, or data that it refers to, is damaged."""

    detail: str
    position: Position = START


@dataclass(frozen=True)
class Opened:
    """The source was opened. `live`: it cannot be paused."""

    live: bool


@dataclass(frozen=True)
class StateChanged:
    """The source is now "online" (its first picture follows), "reconnecting" or "ended" (nothing follows)."""

    state: str
    detail: str = ""


@dataclass(frozen=True)
class PacketArrived:
    """A packet of a live source is about to be decoded by a codec that allows early offers."""

    number: int
    pts_s: float
    captured_ns: int
    position: Position = START


Event = Opened | PacketArrived | Picture | Damaged | StateChanged
MakeCodec = Callable[[av.VideoStream, SourceSettings, bool], Codec]
Wait = Callable[[float], bool]


def play(
    source: SourceSettings,
    settings: DecoderSettings,
    resume: Position,
    wait: Wait,
    codec: MakeCodec | None = None,
) -> Iterator[Event]:
    """Everything that happens to a source, in order, until it has ended or `wait(seconds)` returns True.

    A file ends, or restarts with `loop`; a stream from a network or a USB camera is opened again for ever. `resume`: go
    on behind this position of a file. `codec(stream, source, live)` decodes; the default is FFmpeg. Raises SourceError
    for a file that is missing, is not a video or has no frame.
    """
    network, failures = source.network, 0
    while True:
        online, retry, detail = False, network, "the stream ended"
        try:
            for event in _once(source, settings, resume, wait, codec or FfmpegDecoder):
                if isinstance(event, Opening):
                    network = retry = event.network
                    event = Opened(source.realtime or network)
                elif isinstance(event, Picture) and not online:
                    yield StateChanged("online")
                    online, failures = True, 0
                yield event
        except SourceError as error:
            if not network and not isinstance(error, Unreachable):
                raise
            retry, detail = True, str(error)
        if retry:
            yield StateChanged("reconnecting", detail)
            if wait(min(settings.backoff_min_s * 2**failures, settings.backoff_max_s)):
                return
            failures = min(failures + 1, 30)
            gc.collect()  # a closed container and its streams refer to each other
            continue
        if not online and resume == START:
            raise SourceError(f"The source {redacted(source.url)} has no frame that can be decoded.", BAD_DATA)
        if not source.loop or wait(0):
            yield StateChanged("ended")
            return
        resume = START


def _once(
    source: SourceSettings, settings: DecoderSettings, resume: Position, wait: Wait, codec: MakeCodec
) -> Iterator[Event | Opening]:
    """One opening of a source, to its end. A looping file is rewound with the same decoder, if it can be rewound."""
    parts = parts_of(source.url)
    progress = _Progress(resume if can_be_resumed(source.url) else START)
    pace = _Pace(source.fps or (IMAGES_PER_S if len(parts) > 1 else 0))
    for part in parts:
        try:
            opened = open_source(part, source, settings)
        except SourceError as error:
            if len(parts) == 1:
                raise
            yield from progress.of(Damaged(str(error)))
            continue
        with opened.container:
            yield opened
            play_one = _Pass(opened, source, settings, progress, pace if source.realtime else None, wait, codec)
            yield from play_one.run()
            while source.loop and len(parts) == 1 and not wait(0) and play_one.rewind():
                progress.restart()
                yield from play_one.run()
                if not progress.frames:
                    return
        if wait(0):
            return


class _Progress:
    """How much of a file has been played, and what a restarted decoder leaves out because it was counted before."""

    def __init__(self, resume: Position):
        self.restart(resume)

    def restart(self, resume: Position = START) -> None:
        """The file begins, or begins again."""
        self.frames = 0
        self._resume, self._sought = resume, False  # sought: the frame was searched for by its pts
        self._pts: int | None = None
        self._in_order = True

    def seek(self) -> int | None:
        """The pts to search for, so that what was counted need not be decoded again; None: play from the start."""
        pts = self._resume.pts
        if pts is not None:
            self.frames, self._pts, self._sought = self._resume.frames, pts, True
        return pts

    def was_counted(self, pts: int | None) -> bool:
        """True for a packet or frame that a restarted decoder reads again."""
        if self._sought:
            assert self._resume.pts is not None
            return pts is not None and pts <= self._resume.pts
        return self.frames < self._resume.frames

    def position(self, pts: int | None) -> Position:
        """The position behind the next frame."""
        in_order = self._in_order and pts is not None and (self._pts is None or pts > self._pts)
        return Position(self.frames + 1, pts if in_order else None)

    def of(self, event: "Picture | Damaged", pts: int | None = None) -> Iterator["Picture | Damaged"]:
        """The event with its position, unless it was counted before."""
        known = self.was_counted(pts)
        if known and self._sought:
            return
        self._sought = False  # found: the clock of the stream may start again behind it
        # a damaged packet comes before frames that are shown earlier, so only counting finds what is behind it
        position = self.position(None if isinstance(event, Damaged) else pts)
        self.frames, self._pts, self._in_order = position.frames, pts, position.pts is not None
        if not known:
            yield replace(event, position=position)


@dataclass
class _Sent:
    """A packet that the decoder was given."""

    captured_ns: int
    verdict: Verdict
    pts: int | None = None


class _Pass:
    """Plays an opened source from its position to its end, more than once when it is rewound."""

    def __init__(
        self,
        opened: Opening,
        source: SourceSettings,
        settings: DecoderSettings,
        progress: _Progress,
        pace: "_Pace | None",
        wait: Wait,
        codec: MakeCodec,
    ):
        self._container, self._stream, self._network = opened.container, opened.stream, opened.network
        self._lost = opened.lost
        self._source, self._progress, self._wait = source, progress, wait
        self._pace = None if opened.network else pace
        self._live = source.realtime or opened.network
        self._decoder = codec(opened.stream, source, self._live)
        self._damage = Damage(settings.recover_s)
        self._sent: dict[int, _Sent] = {}
        self._number, self._time_s = 0, 0.0  # of the packet that was decoded last
        self._timed = False  # the packets of this file have times
        # AVI numbers packets as they are stored: with B-frames, which come out in another order, their times do, too
        self._times: list[float] | None = [] if opened.container.format.name == "avi" else None
        if opened.container.format.name in INDEXED and (pts := progress.seek()) is not None:
            opened.container.seek(pts, stream=opened.stream, backward=True)

    def rewind(self) -> bool:
        """Goes back to the start; False when it cannot (a raw stream, for instance) and must be opened again."""
        try:
            self._container.seek(0, stream=self._stream, backward=True)
        except (av.error.FFmpegError, OSError):
            return False
        self._decoder.restart()
        if self._times:
            self._times.clear()
        if self._pace:
            self._pace.rewound()
        return True

    def run(self) -> Iterator[Event]:
        for packet, lost in self._packets():
            known = self._progress.was_counted(packet.pts)
            if self._pace and packet.size and not known and self._wait(self._pace.seconds_until(packet, self._stream)):
                return
            yield from self._decode(packet, lost, time.monotonic_ns())
            if self._wait(0):
                return

    def _packets(self) -> Iterator[tuple[av.Packet, str]]:
        """Each packet, with what is lost of it or before it; the last packet is empty.

        Where one MPEG-TS recording is joined to another, FFmpeg takes the end of the first one for damaged.
        """
        reads = self._read()
        for packet, lost in reads:
            while lost and packet.size:
                try:
                    following = next(reads, None)
                except SourceError:
                    yield packet, lost
                    raise
                yield packet, "" if following and _is_joined(packet, following[0]) else lost
                if following is None:
                    return
                packet, lost = following
            yield packet, lost

    def _read(self) -> Iterator[tuple[av.Packet, str]]:
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet, said = listen(lambda: next(packets, None))
            except (av.error.FFmpegError, OSError) as error:
                if self._network:
                    url = redacted(self._source.url)
                    raise SourceError(f"The connection to {url} broke: {why(error)}.", BAD_DATA) from None
                yield av.Packet(), why(error)  # what was read before it can still be decoded
                return
            if packet is None:
                return
            self._lost.hear(said)
            yield packet, self._lost.of(packet)

    def _decode(self, packet: av.Packet, lost: str, now_ns: int) -> Iterator[Event]:
        self._number += 1
        number, pts_s = self._number, float(packet.pts * packet.time_base) if packet.pts is not None else None
        packet.opaque = number
        spoilt = self._damage.spoils(packet.is_keyframe)
        if not packet.size and lost:
            yield from self._progress.of(Damaged(lost))
        elif packet.size:
            self._timed = self._timed or pts_s is not None
            if self._times is not None and pts_s is not None:
                heapq.heappush(self._times, pts_s)
            if self._live or not self._timed:
                self._time_s = now_ns / 1e9
            elif pts_s is not None:  # a packet without a time comes with the one before it
                self._time_s = pts_s
            if (lost or spoilt) and not self._decoder.reports_damage:
                yield from self._judge(number, packet.is_keyframe, packet.pts, lost, now_ns)
                if self._sent[number].verdict == "void":
                    return
        if self._decoder.early and packet.size and pts_s is not None and not spoilt:
            yield PacketArrived(number, pts_s, now_ns, self._progress.position(packet.pts))
        pts, keyframe, size = packet.pts, packet.is_keyframe, packet.size  # a decoder may empty the packet
        failed = False
        try:
            frames, problem = self._decoder.decode(packet)
        except (av.error.FFmpegError, DecodeError) as error:
            frames, problem, failed = [], why(error), True
        if size and (failed or number not in self._sent):
            yield from self._judge(number, keyframe, pts, problem if failed else lost or problem, now_ns, failed)
        decoded_ns = time.monotonic_ns()
        for frame in frames:
            yield from self._show(frame, now_ns, decoded_ns)

    def _judge(
        self, number: int, keyframe: bool, pts: int | None, problem: str, now_ns: int, failed: bool = False
    ) -> Iterator[Damaged]:
        """Settles whether the picture of a packet will be shown; one that will not, or that `failed`, is damaged."""
        verdict = self._damage.judge(keyframe, pts, self._time_s, failed or bool(problem))
        verdict = "void" if failed else verdict
        self._sent[number] = _Sent(now_ns, verdict, pts)
        self._sent.pop(number - PENDING_MAX, None)
        if verdict == "void":
            if self._times:
                self._times.remove(max(self._times))  # the packet's own, it came last
                heapq.heapify(self._times)
            yield from self._progress.of(Damaged(problem or FOLLOWS), pts)  # type: ignore[misc]

    def _show(self, frame: Frame, now_ns: int, decoded_ns: int) -> Iterator[Picture | Damaged]:
        time_s = heapq.heappop(self._times) if self._times else frame.time
        sent = self._sent.pop(frame.opaque or self._number, None) or _Sent(now_ns, "whole")
        for other in self._sent.values():  # with B-frames, packets of later pictures may have come before this one's
            is_later = other.pts is not None and frame.pts is not None and other.pts > frame.pts  # others show nothing
            if is_later and other.verdict != "void" and other.captured_ns < sent.captured_ns:
                other.captured_ns, sent.captured_ns = sent.captured_ns, other.captured_ns
        if sent.verdict == "void":
            return
        if frame.is_corrupt and sent.verdict == "whole":
            self._damage.begin(self._time_s)
            yield from self._progress.of(Damaged("the frame refers to lost data"), frame.pts)
            return
        picture = Picture(
            self._decoder.surface(frame),
            frame.opaque or self._number,
            time_s,
            sent.captured_ns,
            now_ns,
            decoded_ns,
            doubtful=sent.verdict == "doubtful",
        )
        yield from self._progress.of(picture, frame.pts)


def _is_joined(last: av.Packet, first: av.Packet) -> bool:
    """True when a recording ends with one packet, and another one begins with the next: its clock starts again."""
    return first.is_keyframe and last.dts is not None and first.dts is not None and first.dts < last.dts


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
