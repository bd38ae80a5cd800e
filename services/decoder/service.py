"""One source's frames on their way into the surfaces ring, and the source's state on its way to fusion."""

import logging
from collections.abc import Iterator
from functools import partial

import msgspec

from peoplecounter.common.errors import AppError, SourceError
from peoplecounter.common.ipc.link import Peer
from peoplecounter.common.ipc.memory import WorkQueue
from peoplecounter.common.ipc.messages import Done, FrameHeader, Part, Status, Stop, SurfaceLayout
from peoplecounter.common.process.journal import Journal
from peoplecounter.common.process.runtime import Runtime
from peoplecounter.common.sources import SourceChange, known_sources, redacted
from peoplecounter.common.topology import FRAME
from peoplecounter.services.decoder.early import EarlyOffers
from peoplecounter.services.decoder.playback import (
    FOLLOWS,
    Damaged,
    Event,
    MakeCodec,
    Opened,
    Picture,
    Position,
    StateChanged,
)
from peoplecounter.services.decoder.reader import Reader

STATUS_NS = 1_000_000_000
DETAIL_MAX = 500  # characters of a status
UNKNOWN_LAYOUT = SurfaceLayout(0, 0, 0, "bt709", False)  # of a damaged frame before the first good one


class ResumePoint(msgspec.Struct):
    """How far a source has been decoded: a restarted decoder continues behind it and never uses a seq twice."""

    seq: int = 0  # of the next frame
    position: Position = Position()  # behind the last frame
    change: str = ""  # SourceChange.id of the source; a source of another change is played from its start


class Decoder:
    """One source. Files wait for a free slot; a live source evicts its oldest frame, or drops the new one."""

    def __init__(self, rt: Runtime):
        settings, change = rt.settings, _source_change(rt)
        assert change.source is not None
        self.rt, self.source = rt, change.source
        looked_at = settings.dashboard.pictures != "off"  # one more slot, so that a viewer costs the others nothing
        self.surfaces = rt.open_ring(
            settings.decoder.slots + looked_at, on_lost=lambda header, reason, part: rt.drop(header, reason)
        )
        self.journal = rt.closing(Journal(settings.run_dir / f"decoder.{rt.instance}.journal", ResumePoint))
        self.resume = self.journal.read() or ResumePoint()
        if change.id and change.id != self.resume.change:
            self.resume = ResumePoint(self.resume.seq, change=change.id)
        self.live = self.source.live  # until it is opened: a stream by HTTP is live, a file by HTTP is not
        self.early = EarlyOffers(rt, self.surfaces, self.new_header)
        codec, pixels_are_lent = _codec(rt.work)
        self.reader = rt.closing(
            Reader(self.source, settings.decoder, self.resume.position, codec, pixels_are_lent, self.early.copy)
        )
        rt.loop.watch(self.reader.wake_fd, self.reader.on_wake)
        self.state, self.detail, self.status_due_ns = "opening", "", 0
        self.ended = False  # the source has ended
        self.end_published = False  # fusion has been told
        rt.control.on(Stop, self.stop)
        rt.about = redacted(self.source.url)
        rt.loop.every_tick(self.publish_status)  # also while a frame waits for a slot

    def events(self) -> Iterator[Event]:
        """What has happened to the source. Raises SourceError for a source of the settings that is not a video."""
        try:
            yield from self.reader.take()
        except SourceError as error:
            if not self.resume.change:
                raise
            self.rt.log.error("%s", error)  # it was added at run time: the group goes on without it
            yield StateChanged("ended", str(error))

    def new_header(
        self, layout: SurfaceLayout, captured_ns: int, pts_s: float | None, position: Position
    ) -> FrameHeader:
        """The header of the next frame. Its seq is recorded before any other process learns of it."""
        seq = self.resume.seq
        self.resume.seq, self.resume.position = seq + 1, position
        self.journal.write(self.resume)
        deadline_ns = captured_ns + self.rt.settings.deadline_ms * 1_000_000 if self.live else 0
        return FrameHeader(
            source=self.rt.instance,
            seq=seq,
            pts_s=pts_s,
            captured_ns=captured_ns,
            deadline_ns=deadline_ns,
            width=layout.width,
            height=layout.height,
        )

    @property
    def goes_on(self) -> bool:
        """False when this process is to end, or the source has ended."""
        return self.rt.running and not self.ended

    def publish_frame(self, picture: Picture) -> None:
        """Copies one picture into a slot and offers it."""
        rt, layout = self.rt, picture.surface.layout
        if self.early.confirm(picture):
            return
        self.early.cancel("decode_error")  # the picture has another size, or comes later
        self.make_room(layout)
        index = self.acquire_slot()  # before the frame has a seq: a decoder that ends here decodes it again
        if not self.goes_on:  # meanwhile: no frame comes behind the end that fusion was told
            if index is not None:
                self.surfaces.abandon(index)
            return
        header = self.new_header(layout, picture.captured_ns, picture.pts_s, picture.position)
        header = msgspec.structs.replace(header, aspect=picture.surface.aspect, doubtful=picture.doubtful)
        if index is None:
            return rt.drop(header, "no_slot")
        copy_ns = rt.loop.now_ns()
        rt.work.call(partial(picture.surface.write, self.surfaces.slot(index)), rt.tick)
        marks = {"decode": (picture.decode_ns, picture.decoded_ns), "copy": (copy_ns, rt.loop.now_ns())}
        header = msgspec.structs.replace(header, marks=marks)
        if rt.tracer.begin():
            span = rt.tracer.open("decode", header, picture.decode_ns)
            span.end(picture.decoded_ns)
            header = msgspec.structs.replace(header, traceparent=span.traceparent)
        rt.counters["frames_decoded"] += 1
        self.surfaces.offer(index, header, [Part(FRAME)])

    def make_room(self, layout: SurfaceLayout) -> None:
        """Opens a ring for surfaces of this layout; a change waits until the old surfaces have been read."""
        if layout == self.surfaces.layout:
            return
        while self.surfaces.layout and self.goes_on and not self.surfaces.drained:
            self.rt.tick()
        if self.ended:
            return
        range_ = "full" if layout.full_range else "limited"
        self.rt.log.info("%dx%d, %s, %s range", layout.width, layout.height, layout.matrix, range_)
        self.surfaces.open(layout)

    def acquire_slot(self) -> int | None:
        """A slot; None when a live source finds none, or when the service or the source ends.

        A source that can wait does so while its fusion is away: its frames must not fill the rings of the others.
        """
        live = self.live
        while not live and self.goes_on and self.rt.results.away(self.rt.instance):
            self.rt.tick()
        index = self.surfaces.acquire(evict=lambda older: live)
        while index is None and not live and self.goes_on:
            self.rt.tick()
            index = self.surfaces.acquire()
        return index

    def drop_damaged(self, event: Damaged) -> None:
        """Data that cannot be decoded is a frame that is dropped."""
        early = self.early.header
        level = logging.DEBUG if event.detail == FOLLOWS else logging.WARNING  # one line for all that follow
        self.rt.log.log(level, "frame %d dropped: %s", early.seq if early else self.resume.seq, event.detail)
        if self.early.cancel("decode_error"):  # it was this frame
            return
        layout = self.surfaces.layout if isinstance(self.surfaces.layout, SurfaceLayout) else UNKNOWN_LAYOUT
        header = self.new_header(layout, self.rt.loop.now_ns(), None, event.position)
        self.rt.drop(header, "decode_error")

    def on_opened(self, event: Opened) -> None:
        """The source is open, and is now known to be live or not."""
        self.live = event.live

    def change_state(self, event: StateChanged) -> None:
        """The source is online, reconnecting or ended."""
        if event.state != "online":
            self.early.restart()
        if event.state != self.state:
            detail = f": {event.detail}" if event.detail else ""
            self.rt.log.info("%s is %s%s", redacted(self.source.url), event.state, detail)
        self.state, self.detail, self.ended = event.state, event.detail[:DETAIL_MAX], event.state == "ended"
        self.rt.ends = self.ended
        self.status_due_ns = 0

    def stop(self, peer: Peer, message: Stop) -> None:
        """The source was removed: it ends as a file does."""
        self.change_state(StateChanged("ended", "removed"))
        self.rt.control.send(peer, Done())

    def publish_status(self, now_ns: int) -> None:
        """Sends the source's state to fusion, once a second and whenever it changes."""
        if now_ns >= self.status_due_ns and not (self.ended and self.end_published):
            self.status_due_ns = now_ns + STATUS_NS
            self.end_published = self.ended
            self.rt.results.send(Status(self.rt.instance, self.state, self.resume.seq, self.detail, self.live))

    @property
    def settled(self) -> bool:
        """True when the source has ended, its last frames have been read, and fusion has settled all results."""
        return self.end_published and self.surfaces.drained and self.rt.results.settled

    def finish(self) -> None:
        """Before the process ends: records that the source has ended, and waits for readers of the last frames."""
        if self.end_published:
            self.rt.control.source_ended(self.resume.change)
        self.early.cancel("stale")  # asked to end before its picture came
        self.rt.linger(lambda: self.surfaces.drained)


def _source_change(rt: Runtime) -> SourceChange:
    """The source that this process decodes."""
    sources = known_sources(rt.settings)
    if rt.instance not in sources:
        names = ", ".join(sources) or "none"
        raise AppError(f"The source {rt.instance!r} does not exist. Existing sources: {names}.")
    return sources[rt.instance]


def _codec(work: WorkQueue) -> tuple[MakeCodec | None, bool]:
    """(what decodes, whether its pictures must be copied before the next one): FFmpeg, or NVDEC for GPU memory."""
    if work.kind == "shm":
        return None, False
    from peoplecounter.services.decoder.nvdec import NvdecDecoder

    return lambda stream, source, live: NvdecDecoder(stream, source, live, work.stream), True
