"""Live frames on a GPU, offered before they are decoded.

When a packet arrives, its frame is offered at once. All processes behind queue their work, which waits on the GPU for
the slot's fence. When NVDEC has the picture, it is copied into the slot, the fence is set, and the rest happens on the
GPU without a host in between. Then the frame is confirmed to fusion; a frame that is not confirmed is dropped.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from peoplecounter.common.ipc.messages import Confirmed, FrameHeader, Part, SurfaceLayout
from peoplecounter.common.ipc.producer import RingProducer
from peoplecounter.common.process.runtime import Runtime
from peoplecounter.common.topology import FRAME
from peoplecounter.services.decoder.playback import PacketArrived, Picture, Position

if TYPE_CHECKING:
    from peoplecounter.common.process.telemetry import FrameSpan

# (layout, captured_ns, pts_s, position) -> the header of the next frame, see Decoder.new_header
NewHeader = Callable[[SurfaceLayout, int, float | None, Position], FrameHeader]


@dataclass
class EarlyFrame:
    """A live frame that was offered before it is decoded."""

    index: int  # of its slot
    number: int  # of its packet
    layout: SurfaceLayout
    header: FrameHeader
    span: "FrameSpan | None"
    copied_ns: tuple[int, int] | None = None  # (begin, end) of queueing the copy into the slot

    def is_of(self, picture: Picture) -> bool:
        return self.number == picture.number and self.layout == picture.surface.layout


class EarlyOffers:
    """At most one frame that was offered early.

    Threads: the reader's thread calls copy(), as soon as a picture is decoded. The service's loop calls all else.
    """

    def __init__(self, rt: Runtime, surfaces: RingProducer, new_header: NewHeader):
        self._rt, self._surfaces, self._new_header = rt, surfaces, new_header
        self._frame: EarlyFrame | None = None
        self._one_to_one = True  # so far every packet of the stream has given its own picture

    @property
    def header(self) -> FrameHeader | None:
        """The header of the frame that was offered early, if there is one."""
        return self._frame.header if self._frame else None

    def offer(self, event: PacketArrived) -> None:
        """Offers the frame of a packet that is about to be decoded, if the stream and the ring allow it."""
        if self._frame:  # the packet before gave no picture: this stream is not one to one
            self._one_to_one = False
            self.cancel("decode_error")
        layout = self._surfaces.layout
        if not isinstance(layout, SurfaceLayout) or not self._one_to_one:
            return
        index = self._surfaces.acquire(evict=lambda older: True)
        if index is None:
            return  # there may be a slot when the frame is decoded
        header = self._new_header(layout, event.captured_ns, event.pts_s, event.position)
        span = self._rt.tracer.open("decode", header, event.captured_ns) if self._rt.tracer.begin() else None
        header = msgspec.structs.replace(header, early=True, traceparent=span.traceparent if span else "")
        self._surfaces.offer(index, header, [Part(FRAME)], written=False)
        self._frame = EarlyFrame(index, event.number, layout, header, span)

    def copy(self, picture: Picture) -> None:
        """Copies the picture into the slot of its early frame and sets the fence. Called by the reader's thread."""
        frame = self._frame
        if frame and not frame.copied_ns and frame.is_of(picture):
            begin_ns = self._rt.loop.now_ns()
            picture.surface.write(self._surfaces.slot(frame.index))
            self._surfaces.written(frame.index)
            frame.copied_ns = begin_ns, self._rt.loop.now_ns()

    def confirm(self, picture: Picture) -> bool:
        """Confirms the early frame of this picture to fusion; False when the picture has no early frame."""
        if not self._frame or not self._frame.is_of(picture):
            return False
        self.copy(picture)  # unless the reader's thread has done it
        frame, self._frame = self._frame, None
        assert frame.copied_ns is not None
        marks = {"decode": (picture.decode_ns, picture.decoded_ns), "copy": frame.copied_ns}
        header = msgspec.structs.replace(
            frame.header, marks=marks, aspect=picture.surface.aspect, doubtful=picture.doubtful
        )
        self._rt.results.send(Confirmed(header))
        if frame.span:
            frame.span.end(picture.decoded_ns)
        self._rt.counters["frames_decoded"] += 1
        return True

    def cancel(self, reason: str) -> bool:
        """Drops the early frame, if there is one, and ends the waits for its slot; False when there is none."""
        if not self._frame:
            return False
        frame, self._frame = self._frame, None
        self._rt.drop(frame.header, reason)
        self._surfaces.written(frame.index)
        if frame.span:
            frame.span.end(self._rt.loop.now_ns())
        return True

    def restart(self) -> None:
        """The source went offline: its next stream may be one to one again."""
        self.cancel("stale")
        self._one_to_one = True
