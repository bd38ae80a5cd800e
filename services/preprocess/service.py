"""The tensors ring, and the input that all engines behind it must share."""

from collections.abc import Iterator
from functools import partial
from math import ceil

import msgspec

from peoplecounter.common.errors import AppError
from peoplecounter.common.ipc.consumer import Lease, RingConnection
from peoplecounter.common.ipc.messages import (
    FrameHeader,
    Hello,
    Input,
    Offer,
    Part,
    Refuse,
    SurfaceLayout,
    TensorLayout,
)
from peoplecounter.common.process.runtime import Runtime
from peoplecounter.common.settings import ViewSettings
from peoplecounter.common.sources import known_sources
from peoplecounter.common.topology import GLOBAL, TILES
from peoplecounter.common.views import View, groups
from peoplecounter.services.preprocess.kernels import load_kernel

SLOTS_MAX = 64
GPU_GROUP = 16  # views of a part on a GPU whose engines do not say how many suit them
CPU_PARTS = 8  # of a frame for each worker on a CPU: so no core waits long for another, and the next frame is new


class Preprocess:
    """Turns surfaces into tensors."""

    def __init__(self, rt: Runtime):
        settings = rt.settings
        self.rt, self.kernel = rt, load_kernel(rt.work)
        self.input: Input | None = None  # what the engines read; None: no engine has connected yet
        self.prepared: set[tuple[SurfaceLayout, TensorLayout, tuple[View, ...]]] = set()
        self.chosen: dict[str, tuple[str, ViewSettings]] = {}  # source -> epoch of its ring, which views it wants
        self.tensors = rt.open_ring(self.slots_for(len(known_sources(settings))), on_lost=rt.drop, admit=self.admit)
        self.surfaces = rt.open_inputs(settings.link.credits)

    def slots_for(self, sources: int) -> int:
        """Slots of the tensors ring for this many sources, whose frames wait there side by side."""
        return self.rt.settings.preprocess.slots or min(SLOTS_MAX, max(3, sources + 2))

    def admit(self, hello: Hello) -> Refuse | None:
        """The first engine decides what the tensors are; while it is connected, others must read the same."""
        if hello.wants is None:
            return Refuse(f"{hello.service} did not say what input its engine reads.")
        if self.input not in (None, hello.wants):
            if self.input in [other.wants for other in self.tensors.consumers if other is not hello]:
                return Refuse(
                    f"the tensors of this ring are {self.input}, {hello.service} reads {hello.wants}: "
                    "give all infer services models with the same input."
                )
            self.tensors.retire()  # it was made for an engine that has gone
        self.input = hello.wants
        return None

    def frames(self) -> Iterator[tuple[RingConnection, Offer]]:
        """The frames to process now, from each source in turn; what is overtaken meanwhile is dropped.

        A live frame waits while the engines are behind, so that the one that starts is the newest of its source.
        """
        while self.rt.running and self.input and (taken := self.surfaces.take(self.may_start)):
            yield taken
        for connection, offer in self.surfaces.overtaken():
            self.rt.drop(offer.header, "no_credit")
            lease = self.surfaces.lease(connection, offer)
            if lease:
                self.rt.work.on_done(lease.release)  # on a GPU it may not be decoded yet

    def may_start(self, offer: Offer) -> bool:
        return not (offer.header.live and self.tensors.backlog)

    def process(self, connection: RingConnection, offer: Offer) -> None:
        """One surface: runs the kernel and offers the tensors. Every way out offers the frame or drops it."""
        rt, header = self.rt, offer.header
        lease = self.surfaces.lease(connection, offer, on_abort=lambda: rt.drop(header, "stale"))
        if lease is None:
            return rt.drop(header, "stale")
        try:
            self.fill_slot(lease, header)
        finally:
            rt.work.on_done(lease.release)

    def fill_slot(self, lease: Lease, header: FrameHeader) -> None:
        """Writes the frame's tensors into a slot and offers it, on a GPU while it is still being written."""
        rt, surface = self.rt, lease.layout
        assert isinstance(surface, SurfaceLayout) and self.input is not None
        views = self.view_settings(header.source, lease.epoch).table(
            surface.width, surface.height, self.input.size, self.input.corner
        )
        self.make_room(TensorLayout(len(views), self.input))
        self.prepare_kernel(surface, views)
        index = self.acquire(header)
        tensor = self.tensors.layout
        if lease.aborted or lease.stale or not isinstance(tensor, TensorLayout):  # something changed meanwhile
            if index is not None:
                self.tensors.abandon(index)
            if not lease.aborted:  # an aborted lease has dropped the frame
                rt.drop(header, "stale")
            return
        if index is None:
            return rt.drop(header, "deadline" if rt.running else "stale")
        began_ns = rt.loop.now_ns()
        try:
            run = partial(self.kernel.run, lease.slot, surface, tensor, views, self.tensors.slot(index))
            rt.work.call(run, rt.tick)
        except AppError:  # the GPU is lost
            raise
        except Exception:
            rt.log.exception("the kernel failed on %s %d", header.source, header.seq)
            self.tensors.abandon(index)
            return rt.drop(header, "engine_error")
        ended_ns = rt.loop.now_ns()
        header = msgspec.structs.replace(header, marks={**header.marks, "preprocess": (began_ns, ended_ns)})
        self.tensors.offer(index, header, self.parts(views))  # before the release: engines wait for it
        rt.counters["frames_preprocessed"] += 1
        rt.tracer.record("preprocess", header, began_ns, ended_ns)

    def view_settings(self, source: str, epoch: str) -> ViewSettings:
        """Which views a source wants; read again when its decoder opens a ring, as its settings may have changed."""
        if self.chosen.get(source, ("", None))[0] != epoch:
            known = known_sources(self.rt.settings).get(source)
            group = self.rt.settings.views
            own = known.source.views.within(group) if known and known.source else group
            self.chosen[source] = epoch, own
        return self.chosen[source][1]

    def make_room(self, needed: TensorLayout) -> None:
        """Opens a tensors ring for this many images, once the frames in the old ring have been read.

        It has room for frames of every current source: sources may be added at run time.
        """
        current = self.tensors.layout
        slots = self.slots_for(len(self.surfaces.attached))
        fits = isinstance(current, TensorLayout) and current.images >= needed.images and current.input == needed.input
        if fits and self.tensors.slots >= slots:
            return
        while current and self.rt.running and not self.tensors.drained:
            self.rt.tick()
        self.tensors.slots = max(self.tensors.slots, slots)
        self.tensors.open(needed)

    def prepare_kernel(self, surface: SurfaceLayout, views: tuple[View, ...]) -> None:
        """Prepares the kernel for layouts it has not run with yet, ticking meanwhile."""
        tensor = self.tensors.layout
        if not isinstance(tensor, TensorLayout) or (surface, tensor, views) in self.prepared:
            return
        self.prepared.add((surface, tensor, views))
        ready = self.kernel.prepare(surface, tensor, views)
        while ready and self.rt.running and not ready.done():
            self.rt.tick()

    def acquire(self, header: FrameHeader) -> int | None:
        """A free tensor slot, for which a frame waits; None when its deadline passes.

        While no engine is there, a live frame takes the slot of an older one of its own source.
        """
        while self.rt.running and not self.rt.late(header):
            index = self.tensors.acquire(evict=lambda older: header.live and older.source == header.source)
            if index is not None:
                return index
            self.rt.tick()
        return None

    def parts(self, views: tuple[View, ...]) -> list[Part]:
        """The whole frame as one part, its other views in groups of about equal size."""
        rt, settings = self.rt, self.rt.settings
        count, engines = len(views) - 1, [hello for hello in self.tensors.consumers if hello.part == TILES]
        workers = max(1, len(engines))
        if rt.work.kind == "cuda":  # one large batch takes less time than several
            suitable = min((hello.images_max for hello in engines if hello.images_max), default=GPU_GROUP)
        else:
            suitable = max(1, ceil(count / CPU_PARTS / workers))
        tiles = groups(count, settings.preprocess.group or suitable, workers)
        of = 1 + len(tiles)
        return [Part(GLOBAL, 0, of, 0, views[:1])] + [
            Part(TILES, i, of, 1 + first, views[1 + first : 1 + first + count])
            for i, (first, count) in enumerate(tiles)
        ]
