"""preprocess: an NV12 surface -> one tensor slot with the letterboxed frame and all its tiles, offered in parts.

surfaces rings (one per source) --> one kernel --> tensors ring: part "global", parts "tiles"
"""

import msgspec

from peoplecounter.common import sources
from peoplecounter.common.errors import Refused
from peoplecounter.common.geometry import TileGrid
from peoplecounter.common.ipc.consumer import Attached, Lease, Upstream
from peoplecounter.common.ipc.messages import Header, Hello, Input, Offer, Part, Refuse, SurfaceLayout, TensorLayout
from peoplecounter.common.ipc.producer import Downstream
from peoplecounter.common.process.runtime import Runtime, serve
from peoplecounter.services.preprocess import kernels

SLOTS_MAX = 64


class Preprocess:
    """The tensors ring, and the input that the engines behind it agreed on."""

    def __init__(self, rt: Runtime):
        settings = rt.settings
        self.rt, self.wanted, self.kernel = rt, None, kernels.load(rt.work)
        self.prepared: set[tuple[SurfaceLayout, TensorLayout]] = set()
        self.tensors = rt.closing(
            Downstream(
                rt.loop,
                settings.run_dir,
                "tensors",
                rt.instance,
                self.slots(len(sources.known(settings))),
                rt.timing,
                on_lost=rt.drop_part,
                admit=self.admit,
                work=rt.work,
            )
        )
        rt.ring = self.tensors
        hello = rt.hello("frame", settings.link.credits)
        self.surfaces = rt.closing(Upstream(rt.loop, settings.run_dir, "surfaces", hello, rt.timing, rt.work))
        rt.rings = self.surfaces

    def slots(self, number: int) -> int:
        """Slots of the tensors ring for so many sources: frames of all of them wait there side by side."""
        return self.rt.settings.preprocess.slots or min(SLOTS_MAX, max(3, number + 2))

    def admit(self, hello: Hello) -> Refuse | None:
        """The first engine decides what tensors are; others must want the same while it is there."""
        if hello.wants is None:
            return Refuse(f"{hello.service} did not say what input its engine wants.")
        others = [c.wants for c in self.tensors.consumers if c is not hello]
        if self.wanted not in (None, hello.wants) and self.wanted in others:
            return Refuse(
                f"tensors here are {_words(self.wanted)}, {hello.service} wants {_words(hello.wants)}: "
                "give all infer services models with the same input."
            )
        if self.wanted not in (None, hello.wants):
            self.tensors.retire()  # made for an engine that has gone
        self.wanted = hello.wants
        return None

    def make_room(self, surface: SurfaceLayout) -> None:
        """Opens a tensors ring that a frame of this size fits into, once what is in the old one has been read.

        It has room for frames of every source that is there: sources may come while we run.
        """
        needed = self.layout_for(surface)
        have, slots = self.tensors.layout, self.slots(len(self.surfaces.attached))
        fits = have and have.images >= needed.images and (have.size_px, have.dtype) == (needed.size_px, needed.dtype)
        if fits and self.tensors.slots >= slots:
            return
        while have and self.rt.running and not self.tensors.drained:
            self.rt.tick()
        self.tensors.slots = max(self.tensors.slots, slots)
        self.tensors.open(needed)

    def prepare(self, surface: SurfaceLayout, tensor: TensorLayout) -> None:
        """Lets the kernel get ready for layouts it has not seen yet, ticking meanwhile."""
        if (surface, tensor) in self.prepared:
            return
        self.prepared.add((surface, tensor))
        ready = self.kernel.prepare(surface, tensor)
        while ready and self.rt.running and not ready.done():
            self.rt.tick()

    def layout_for(self, surface: SurfaceLayout) -> TensorLayout:
        size, overlap = self.wanted.size_px, self.rt.settings.preprocess.overlap
        tiles = len(TileGrid(surface.width, surface.height, size, overlap))
        return TensorLayout(1 + tiles, size, self.wanted.dtype, overlap)

    def acquire(self, header: Header) -> int | None:
        """A free tensor slot: a frame waits for it, but a live one takes it from an older one of its own source.

        So sources do not push each other out: when there are too many, each waits its turn and drops its own oldest.
        """
        live = header.deadline_ns > 0
        while self.rt.running and not self.rt.late(header):
            index = self.tensors.acquire(evict=lambda older: live and older.source == header.source)
            if index is not None:
                return index
            self.rt.tick()
        return None

    def process(self, owner: Attached, offer: Offer) -> None:
        """One surface: kernel, then offer; every way out either offers the frame or says why not."""
        rt, header = self.rt, offer.header
        lease = self.surfaces.lease(owner, offer, on_lift=lambda: rt.drop(header, "stale"))
        if lease is None:
            return rt.drop(header, "stale")
        try:
            self.fill(lease, header)
        finally:
            rt.work.then(lease.release)

    def fill(self, lease: Lease, header: Header) -> None:
        """The frame's tensors into a slot, which is offered while a GPU may still be writing it."""
        rt = self.rt
        self.make_room(lease.layout)
        self.prepare(lease.layout, self.tensors.layout)
        index = self.acquire(header)
        if lease.lifted or lease.stale or self.tensors.layout is None:  # what is there, or wanted, changed meanwhile
            if index is not None:
                self.tensors.abandon(index)
            return None if lease.lifted else rt.drop(header, "stale")
        if index is None:
            return rt.drop(header, "deadline" if rt.running else "stale")
        began_ns = rt.loop.now_ns()
        try:
            self.kernel.run(lease.slot, lease.layout, self.tensors.layout, self.tensors.slot(index))
        except Refused:  # a GPU that is lost
            raise
        except Exception:
            rt.log.exception("kernel failed on %s %d", header.source, header.seq)
            self.tensors.abandon(index)
            return rt.drop(header, "engine_error")
        ended_ns = rt.loop.now_ns()
        header = msgspec.structs.replace(header, marks={**header.marks, "preprocess": (began_ns, ended_ns)})
        self.tensors.offer(index, header, self.parts(header))  # before the release: engines wait for it
        rt.count["frames_preprocessed"] += 1
        rt.tracer.record("preprocess", header, began_ns, ended_ns)

    def parts(self, header: Header) -> list[Part]:
        """Image 0 as "global", the tiles in equal groups."""
        settings = self.rt.settings.preprocess
        grid = TileGrid(header.width, header.height, self.tensors.layout.size_px, settings.overlap)
        groups = grid.groups(settings.group)
        of = 1 + len(groups)
        tiles = [Part("tiles", i, 1 + first, count, of) for i, (first, count) in enumerate(groups)]
        return [Part("global", 0, 0, 1, of), *tiles]


def run(rt: Runtime) -> None:
    preprocess = Preprocess(rt)
    rt.ready()
    while rt.running:
        rt.tick()
        if preprocess.wanted is None:
            continue  # no engine yet: surfaces wait in their ring
        for owner, offer in preprocess.surfaces.offers():
            preprocess.process(owner, offer)
            if not rt.running:
                break
    rt.linger(lambda: preprocess.tensors.drained)


def _words(wanted: Input) -> str:
    return f"{wanted.dtype} {wanted.size_px} px"


if __name__ == "__main__":
    serve("preprocess", run)
