"""The process' loop: takes pictures from the surfaces rings while somebody looks, and joins them with their counts.

A picture is scaled into this process' memory and released at once. It is shown when the count of its frame is
published, so that picture and boxes always belong together.
"""

import time
from collections import OrderedDict
from dataclasses import dataclass
from functools import partial
from typing import Any

import av
import msgspec
import zmq

from peoplecounter.common.errors import RESTART
from peoplecounter.common.ipc.consumer import RingConnection, RingConsumer
from peoplecounter.common.ipc.messages import FrameHeader, Offer, SurfaceLayout
from peoplecounter.common.process.gpus import gpus_of, healthy_uuids
from peoplecounter.common.process.runtime import Runtime
from peoplecounter.deploy.dashboard.background import WIDTH_PX, Background
from peoplecounter.deploy.dashboard.known import TOPICS, FoundPeople, Known, WatchedSource
from peoplecounter.deploy.dashboard.live import Demand, LiveFrames
from peoplecounter.deploy.dashboard.shrink import Shrinker, load_shrinker

PENDING_MAX = 16  # pictures of a source whose count may still come
PIXELATED_PX = 48  # width of a pixelated picture
EARLY = 0.9  # of an interval after the last one a picture is due: clocks are not exact
BURST = 500  # messages handled before the loop continues


@dataclass(frozen=True)
class PictureInput:
    """The rings of one GPU and what scales their pictures; without several GPUs there is one."""

    rings: RingConsumer
    shrinker: Shrinker


class Viewer:
    """`mode`: what is shown of the pictures, see DashboardSettings.pictures."""

    def __init__(self, rt: Runtime, known: Known, live: LiveFrames):
        self.rt, self.known, self.live, self.mode = rt, known, live, rt.settings.dashboard.pictures
        self.inputs: list[PictureInput] = []
        self.gpus = gpus_of(rt.settings)
        self.pending: dict[str, OrderedDict[int, av.VideoFrame]] = {}  # source -> seq -> picture
        self.taken_ns: dict[str, int] = {}  # source -> when its last picture was captured
        self.shown_s: dict[str, float] = {}  # source -> when a frame of it was shown last
        self.socket = rt.loop.context.socket(zmq.SUB)
        self.socket.setsockopt(zmq.RCVHWM, 10_000)
        for topic in TOPICS:
            self.socket.subscribe(f"{topic}.")
        self.socket.connect(rt.settings.publish)
        rt.loop.watch(self.socket, self.follow)

    def look(self) -> None:
        """Takes every picture that was offered; the rings are searched while somebody looks."""
        if self.mode == "off":
            return
        demand = self.live.demand
        if not self.inputs:
            if not demand:
                return
            self.inputs = self.open_inputs()  # on a GPU this creates a context: not before it is needed
        if healthy_uuids(self.gpus) != self.rt.settings.gpus:  # a GPU was lost or has come back
            self.rt.running, self.rt.exit_code = False, RESTART
            return
        for one in self.inputs:
            for connection, offer in one.rings.offers():
                self.take(one, connection, offer, demand.get(offer.header.source))
        for of in (self.pending, self.taken_ns, self.shown_s):
            for source in of.keys() - demand.keys():
                of.pop(source)

    def open_inputs(self) -> list[PictureInput]:
        """The rings of the sources that somebody looks at, by GPU."""
        rt, gpus = self.rt, self.gpus

        def looked_at(source: str, number: int | None) -> bool:
            here = gpus is None or gpus.placement.sources.get(source) == number
            return here and source in self.live.demand

        numbers = [gpus.placement.uuids.index(uuid) for uuid in rt.settings.gpus] if gpus else [None]
        opened = []
        for device, number in enumerate(numbers):
            work = rt.work_on(device)
            rings = rt.open_inputs(credits=1, wanted=partial(looked_at, number=number), work=work)
            opened.append(PictureInput(rings, load_shrinker(work)))
        return opened

    def take(self, from_: PictureInput, connection: RingConnection, offer: Offer, demand: Demand | None) -> None:
        """Scales one picture, if it is due, and releases it."""
        header, layout = offer.header, connection.layout
        if demand is None or not isinstance(layout, SurfaceLayout) or not self.is_due(header, demand):
            return connection.give_back(offer)
        width = {"background": WIDTH_PX, "pixelated": PIXELATED_PX}.get(self.mode, demand.width)
        if not from_.shrinker.is_ready(layout, width):
            return connection.give_back(offer)
        lease = from_.rings.lease(connection, offer)
        if lease is None:
            return None
        self.taken_ns[header.source] = header.captured_ns

        def keep(picture: av.VideoFrame) -> None:
            if not lease.aborted:
                pending = self.pending.setdefault(header.source, OrderedDict())
                pending[header.seq] = picture
                if len(pending) > PENDING_MAX:
                    pending.popitem(last=False)
            lease.release()

        return from_.shrinker.shrink(lease.slot, layout, width, keep)

    def is_due(self, header: FrameHeader, demand: Demand) -> bool:
        """True for a picture that somebody could be shown. While a source drops frames, any may be the next counted."""
        source = self.known.sources.get(header.source)
        passed_s = (header.captured_ns - self.taken_ns.get(header.source, 0)) / 1e9
        due = passed_s >= demand.interval_s * EARLY or (source is not None and source.loses_frames)
        return demand.ready and due

    def follow(self) -> None:
        """Reads what fusion has published."""
        for _ in range(BURST):
            try:
                topic, body = self.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            except ValueError:
                continue
            kind, _, name = topic.decode(errors="replace").partition(".")
            try:
                people = self.known.add(kind, name, body, seldom=name not in self.live.demand)
            except msgspec.MsgspecError:
                self.rt.counters["messages_malformed"] += 1
                continue
            demand = self.live.demand.get(name)
            if people is not None and demand is not None:
                self.show(name, people, demand)

    def show(self, source: str, people: FoundPeople, demand: Demand) -> None:
        """Shows a counted frame, with its picture where that was taken."""
        pending = self.pending.get(source, OrderedDict())
        picture = pending.pop(people.seq, None)
        while pending and next(iter(pending)) < people.seq:
            pending.popitem(last=False)  # dropped, or never counted
        now_s = time.monotonic()
        if self.mode != "off" and picture is None:
            return
        if self.mode == "off" and now_s - self.shown_s.get(source, 0.0) < demand.interval_s * EARLY:
            return
        self.shown_s[source] = now_s
        with self.known.lock:
            watched = self.known.sources.get(source)
            about = self.about(watched, source, people) if watched else None
        if watched is None or about is None:
            return
        if self.mode == "background" and picture is not None:
            self.learn(watched.background, picture, people, complete=about["complete"])
            picture = watched.background.picture
        self.live.publish(source, people.seq, msgspec.json.encode(about), picture)

    def learn(self, background: Background, picture: av.VideoFrame, people: FoundPeople, complete: bool) -> None:
        """A frame for the background, if it is time for one, and everybody in it was looked for."""
        now_s = time.monotonic()
        if complete and background.is_due(now_s):
            background.learn(picture, people.shares, now_s)

    def about(self, watched: WatchedSource, source: str, people: FoundPeople) -> dict[str, Any]:
        """What a client gets with the picture of a frame."""
        count = watched.count
        lines, zones = self.known.shapes(source)
        if count.get("seq") != people.seq:
            count = {}
        return {
            "source": source,
            "seq": people.seq,
            "time": people.time,
            "pts_s": people.pts_s,
            "count": count.get("count", len(people.boxes)),
            "complete": count.get("complete", True),
            "missing": count.get("missing", {}),
            "end_to_end_ms": count.get("end_to_end_ms"),
            "width": people.width,
            "height": people.height,
            "pixel_aspect": people.pixel_aspect,
            "boxes": people.boxes,
            "ids": people.ids,
            "lines": lines,
            "zones": zones,
            "video": self.mode,
        }
