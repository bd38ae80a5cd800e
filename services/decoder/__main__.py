"""decoder: one source -> NV12 surfaces in a ring, offered one by one.

file, RTSP, … --> PyAV, or its demuxer and NVDEC --> surfaces ring, part "frame"
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import msgspec

from peoplecounter.common import sources
from peoplecounter.common.errors import Refused, SourceError
from peoplecounter.common.ipc.link import Peer
from peoplecounter.common.ipc.messages import Confirmed, Done, Header, Part, Status, Stop, SurfaceLayout
from peoplecounter.common.ipc.producer import Downstream
from peoplecounter.common.process.journal import Journal
from peoplecounter.common.process.runtime import Runtime, serve
from peoplecounter.common.process.telemetry import Opened
from peoplecounter.common.sources import redacted
from peoplecounter.services.decoder.playback import Arrived, Changed, Damaged, Event, Picture
from peoplecounter.services.decoder.reader import Reader

STATUS_NS = 1_000_000_000
DETAIL_MAX = 500  # characters of a status


class Place(msgspec.Struct):
    """Where this source has got to: a restarted decoder goes on behind it and never uses a seq twice."""

    seq: int = 0  # of the next frame
    pts: int | None = None  # of the last one, in the stream's time base
    change: str = ""  # by which the source was added; another one is played from its beginning


@dataclass
class Announced:
    """A live frame that was offered before it is decoded."""

    index: int  # of its slot
    pts: int
    layout: SurfaceLayout
    header: Header
    span: Opened | None
    copied: tuple[int, int] | None = None  # when its pixels were queued for the slot, ns

    def is_of(self, picture: Picture) -> bool:
        return self.pts == picture.pts and self.layout == picture.surface.layout


class Decoder:
    """One source's frames on their way into the surfaces ring."""

    def __init__(self, rt: Runtime):
        settings = rt.settings
        change = _change(rt)
        self.rt, self.source = rt, change.source
        self.surfaces = rt.closing(
            Downstream(
                rt.loop,
                settings.run_dir,
                "surfaces",
                rt.instance,
                settings.decoder.slots,
                rt.timing,
                on_lost=lambda header, part, reason: rt.drop(header, reason),
                work=rt.work,
            )
        )
        rt.ring = self.surfaces
        self.journal = rt.closing(Journal(settings.run_dir / f"decoder.{rt.instance}.journal", Place))
        self.place = self.journal.read() or Place()
        if change.id and change.id != self.place.change:
            self.place = Place(self.place.seq, None, change.id)
        self.announced: Announced | None = None
        codec, lent = _codec(rt.work)
        self.reader = rt.closing(Reader(self.source, settings.decoder, self.place.pts, codec, lent, self.copy))
        rt.loop.watch(self.reader.wake_fd, self.reader.woken)
        self.state, self.detail, self.status_ns, self.ended = "opening", "", 0, False
        self.told_end = False
        self.one_to_one = True  # so far every packet has given its picture
        rt.control.on(Stop, self.stop)
        rt.about = redacted(self.source.url)
        rt.loop.every_tick(self.tell)  # also while a frame waits for a slot

    def events(self) -> Iterator[Event]:
        """What has happened to the source. Raises SourceError for one of the settings that is no video."""
        try:
            yield from self.reader.take()
        except SourceError as error:
            if not self.place.change:
                raise
            self.rt.log.error("%s", error)  # it was added while the group runs: that goes on
            yield Changed("ended", str(error))

    def announce(self, event: Arrived) -> None:
        """Offers a live frame while it is being decoded: by then, everything behind it waits on the GPU, not on us."""
        if self.announced:  # its packet gave no picture: not one of those streams
            self.one_to_one = False
            self.cancel()
        layout = self.surfaces.layout
        if layout is None or not self.one_to_one:
            return
        index = self.surfaces.acquire(evict=lambda older: True)
        if index is None:
            return  # it may have one when it is decoded
        self.place.pts = event.pts
        header = self.new_header(layout, event.captured_ns, event.pts_s)
        span = self.rt.tracer.open("decode", header, event.captured_ns) if self.rt.tracer.begin() else None
        header = msgspec.structs.replace(header, early=True, traceparent=span.traceparent if span else "")
        self.surfaces.offer(index, header, [Part("frame")], written=False)
        self.announced = Announced(index, event.pts, layout, header, span)

    def copy(self, picture: Picture) -> None:
        """The announced frame's pixels into its slot; called in the reader's thread, as soon as they are there."""
        announced = self.announced
        if announced and not announced.copied and announced.is_of(picture):
            begin_ns = self.rt.loop.now_ns()
            picture.surface.write(self.surfaces.slot(announced.index))
            self.surfaces.written(announced.index)
            announced.copied = begin_ns, self.rt.loop.now_ns()

    def confirm(self, picture: Picture) -> None:
        """The announced frame is decoded."""
        self.copy(picture)  # unless the reader's thread has done it
        (one, self.announced), rt = (self.announced, None), self.rt
        marks = {"decode": (picture.decode_ns, picture.decoded_ns), "copy": one.copied}
        rt.results.send(Confirmed(msgspec.structs.replace(one.header, marks=marks)))
        if one.span:
            one.span.end(picture.decoded_ns)
        rt.count["frames_decoded"] += 1

    def cancel(self, reason: str = "decode_error") -> None:
        """The announced frame did not come: nobody is to wait for it, and what came out of it is void."""
        if self.announced:
            one, self.announced = self.announced, None
            self.rt.drop(one.header, reason)
            self.surfaces.written(one.index)
            if one.span:
                one.span.end(self.rt.loop.now_ns())

    def new_header(self, layout: SurfaceLayout, captured_ns: int, pts_s: float) -> Header:
        """The next seq, written down before anybody hears of it."""
        seq, self.place.seq = self.place.seq, self.place.seq + 1
        self.journal.write(self.place)
        live = self.source.live
        deadline_ns = captured_ns + self.rt.settings.deadline_ms * 1_000_000 if live else 0
        return Header(
            source=self.rt.instance,
            seq=seq,
            pts_s=pts_s,
            captured_ns=captured_ns,
            deadline_ns=deadline_ns,
            width=layout.width,
            height=layout.height,
        )

    def show(self, picture: Picture) -> None:
        """One frame into a slot; a lossless one waits for it, a live one takes it from an older frame or is dropped."""
        rt, layout = self.rt, picture.surface.layout
        if self.announced and self.announced.is_of(picture):
            return self.confirm(picture)
        self.cancel()  # it comes in another size, or later
        self.make_room(layout)
        index = self.acquire()  # before it has a seq: ended while it waits, the frame is decoded again
        if not rt.running:
            if index is not None:
                self.surfaces.abandon(index)
            return
        self.place.pts = picture.pts
        header = self.new_header(layout, picture.captured_ns, picture.pts_s)
        if index is None:
            return rt.drop(header, "no_slot")
        copy_ns = rt.loop.now_ns()
        picture.surface.write(self.surfaces.slot(index))
        end_ns = rt.loop.now_ns()
        header = msgspec.structs.replace(
            header, marks={"decode": (picture.decode_ns, picture.decoded_ns), "copy": (copy_ns, end_ns)}
        )
        if rt.tracer.begin():
            span = rt.tracer.open("decode", header, picture.decode_ns)
            span.end(picture.decoded_ns)
            header = msgspec.structs.replace(header, traceparent=span.traceparent)
        rt.count["frames_decoded"] += 1
        self.surfaces.offer(index, header, [Part("frame")])

    def make_room(self, layout: SurfaceLayout) -> None:
        """A ring for surfaces of this layout; a change waits until the old surfaces were read."""
        if layout != self.surfaces.layout:
            while self.surfaces.layout and self.rt.running and not self.surfaces.drained:
                self.rt.tick()
            self.rt.log.info("%dx%d, %s, %s range", layout.width, layout.height, layout.matrix, _range(layout))
            self.surfaces.open(layout)

    def acquire(self) -> int | None:
        live = self.source.live
        index = self.surfaces.acquire(evict=lambda older: live)
        while index is None and not live and self.rt.running:
            self.rt.tick()
            index = self.surfaces.acquire()
        return index

    def skip(self, event: Damaged) -> None:
        """Data that could not be decoded is a frame that was dropped."""
        layout = self.surfaces.layout or SurfaceLayout(0, 0, 0, "bt709", False)
        if self.announced:  # it was this one
            self.rt.log.warning("seq %d skipped: %s", self.announced.header.seq, event.detail)
            return self.cancel()
        self.rt.log.warning("seq %d skipped: %s", self.place.seq, event.detail)
        self.rt.drop(self.new_header(layout, self.rt.loop.now_ns(), 0.0), "decode_error")

    def change(self, event: Changed) -> None:
        if event.state != "online":
            self.cancel("stale")
            self.one_to_one = True  # whatever comes next is another stream
        if event.state != self.state:
            self.rt.log.info("%s is %s%s", redacted(self.source.url), event.state, event.detail and f": {event.detail}")
        self.state, self.detail, self.ended = event.state, event.detail[:DETAIL_MAX], event.state == "ended"
        self.status_ns = 0

    def stop(self, peer: Peer, message: Stop) -> None:
        """The source was removed: it ends as a file does."""
        self.change(Changed("ended", "removed"))
        self.rt.control.send(peer, Done())

    def tell(self, now_ns: int) -> None:
        """The source's state for fusion, once a second and whenever it changes."""
        if now_ns >= self.status_ns and not (self.ended and self.told_end):
            self.status_ns = now_ns + STATUS_NS
            self.told_end = self.ended
            self.rt.results.send(Status(self.rt.instance, self.state, self.place.seq, self.detail))


def run(rt: Runtime) -> None:
    decoder = Decoder(rt)
    rt.ready()
    while rt.running and not decoder.ended:
        rt.tick()
        for event in decoder.events():
            if isinstance(event, Arrived):
                decoder.announce(event)
            elif isinstance(event, Picture):
                decoder.show(event)
            elif isinstance(event, Damaged):
                decoder.skip(event)
            else:
                decoder.change(event)
            if not rt.running:
                break
    while rt.running and not (decoder.told_end and decoder.surfaces.drained and rt.results.settled):
        rt.tick()  # the last frames are still being read, the last results not yet settled
    if decoder.told_end:
        rt.control.ended(decoder.place.change)
    decoder.cancel("stale")  # asked to end before its picture came
    rt.linger(lambda: decoder.surfaces.drained)


def _change(rt: Runtime) -> sources.Change:
    """By which this source came."""
    known = sources.known(rt.settings)
    if rt.instance not in known:
        raise Refused(f"The source {rt.instance!r} is not there: there is {', '.join(known) or 'none'}.")
    return known[rt.instance]


def _codec(work) -> tuple[Callable | None, bool]:
    """(what decodes, whether its pictures are only lent): FFmpeg into shared memory, NVDEC into a GPU's."""
    if work.kind == "shm":
        return None, False
    from peoplecounter.services.decoder.nvdec import OnGpu

    return partial(OnGpu, cuda_stream=work.stream), True


def _range(layout: SurfaceLayout) -> str:
    return "full" if layout.full_range else "limited"


if __name__ == "__main__":
    serve("decoder", run)
