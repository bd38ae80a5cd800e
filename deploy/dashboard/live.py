"""Who looks at what, and what is shown: pictures with the boxes of the same frame, to clients of a WebSocket.

The process' loop asks what is looked at and hands over frames; an asyncio loop in the web thread serves the clients.
"""

import asyncio
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import av
import msgspec

from peoplecounter.deploy.report.pictures import jpeg

WIDTH_MIN, WIDTH_MAX = 16, 1920  # px of a picture
WATCHED_MAX = 64  # sources that a client looks at
CLIENTS_MAX = 64
FPS_MAX = 60.0
ASLEEP_S = 10.0  # a client that does not acknowledge for this long does not look
LATE = 0.8  # a frame may come this share of an interval after the one before: clocks are not exact
QUALITY = 5  # FFmpeg's, from 2 (best) to 31


class Wish(msgspec.Struct, forbid_unknown_fields=True):
    """One source that a client looks at."""

    source: str
    width: int = 640
    fps: float = 10.0


class ClientMessage(msgspec.Struct, forbid_unknown_fields=True):
    """What a client sends: what it watches, or that it has drawn a frame."""

    watch: list[Wish] | None = None
    ack: str | None = None
    seq: int = -1


@dataclass(frozen=True)
class Demand:
    """What is looked at of a source. `ready`: somebody could draw a frame now."""

    width: int
    interval_s: float
    ready: bool


@dataclass(frozen=True)
class ShownFrame:
    """A counted frame, its picture if there is one, and what belongs to it as JSON."""

    number: int  # grows with each
    seq: int
    about: bytes
    picture: av.VideoFrame | None


@dataclass(eq=False)
class Client:
    """One that looks: by a WebSocket, or for a single picture."""

    wishes: dict[str, Wish] = field(default_factory=dict)
    unacknowledged: dict[str, tuple[int, float]] = field(default_factory=dict)  # source -> seq, when it was sent
    sent: dict[str, tuple[int, float]] = field(default_factory=dict)  # source -> number, when
    wake: asyncio.Event = field(default_factory=asyncio.Event)

    def is_asleep(self, source: str, now_s: float) -> bool:
        return source in self.unacknowledged and now_s - self.unacknowledged[source][1] > ASLEEP_S


class LiveFrames:
    """The frames that are shown. Only `demand` and `publish()` are for other threads."""

    def __init__(self) -> None:
        self.demand: Mapping[str, Demand] = {}  # is replaced, never changed
        self.clients: set[Client] = set()
        self._latest: dict[str, ShownFrame] = {}
        self._encoded: dict[tuple[str, int], tuple[int, asyncio.Future[bytes]]] = {}  # source, width -> number, JPEG
        self._numbers = 0
        self._coming: dict[str, ShownFrame] = {}  # on their way from another thread, the newest of each source
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        """Called by the loop that serves the clients."""
        self._loop = asyncio.get_running_loop()

    def publish(self, source: str, seq: int, about: bytes, picture: av.VideoFrame | None) -> None:
        """A frame to show instead of the one before. May be called from any thread."""
        self._numbers += 1
        with self._lock:
            first = source not in self._coming
            self._coming[source] = ShownFrame(self._numbers, seq, about, picture)
        if self._loop is not None and first:
            self._loop.call_soon_threadsafe(self._show, source)

    def enter(self, client: Client) -> bool:
        """Lets a client look; False when there are too many."""
        if len(self.clients) >= CLIENTS_MAX:
            return False
        self.clients.add(client)
        return True

    def only_newer(self, client: Client, source: str) -> None:
        """The client gets no frame that is there already."""
        if source in self._latest:
            client.sent[source] = self._latest[source].number, 0.0

    def leave(self, client: Client) -> None:
        self.clients.discard(client)
        self.update()

    def watch(self, client: Client, wishes: list[Wish]) -> None:
        """Replaces what a client looks at. Raises ValueError for what nobody can be shown."""
        if len(wishes) > WATCHED_MAX:
            raise ValueError(f"more than {WATCHED_MAX} sources")
        for wish in wishes:
            if not (WIDTH_MIN <= wish.width <= WIDTH_MAX and 0.1 <= wish.fps <= FPS_MAX):
                raise ValueError(f"width is {WIDTH_MIN} to {WIDTH_MAX} px, fps 0.1 to {FPS_MAX:.0f}")
        client.wishes = {wish.source: wish for wish in wishes}
        for source in client.unacknowledged.keys() - client.wishes.keys():
            del client.unacknowledged[source]
        client.wake.set()
        self.update()

    def acknowledge(self, client: Client, source: str, seq: int) -> None:
        """The client has drawn a frame."""
        if client.unacknowledged.get(source, (None, 0.0))[0] == seq:
            del client.unacknowledged[source]
            client.wake.set()
            self._update(source)

    def update(self) -> None:
        """Sums up what is looked at."""
        now_s = time.monotonic()
        sources = {source for client in self.clients for source in client.wishes}
        found = {source: self._sum(source, now_s) for source in sources}
        self.demand = {source: demand for source, demand in found.items() if demand is not None}
        for source in self._latest.keys() - self.demand.keys():
            del self._latest[source]
        for key in [key for key in self._encoded if key[0] not in self.demand]:
            del self._encoded[key]

    def _update(self, source: str) -> None:
        """The same for one source that is still looked at."""
        demand = self._sum(source, time.monotonic())
        if demand is not None:
            self.demand = {**self.demand, source: demand}

    def _sum(self, source: str, now_s: float) -> Demand | None:
        looking = [c for c in self.clients if source in c.wishes and not c.is_asleep(source, now_s)]
        if not looking:
            return None
        wishes = [client.wishes[source] for client in looking]
        ready = any(source not in client.unacknowledged for client in looking)
        return Demand(max(wish.width for wish in wishes), 1 / max(wish.fps for wish in wishes), ready)

    async def next_frame(self, client: Client) -> tuple[str, ShownFrame, int]:
        """(source, frame, width) that the client gets next; it counts as sent, and is to be acknowledged."""
        while True:
            client.wake.clear()
            wait_s = None
            for source, wish in sorted(client.wishes.items(), key=lambda item: client.sent.get(item[0], (0, 0.0))[1]):
                shown = self._latest.get(source)
                number, sent_s = client.sent.get(source, (0, 0.0))
                if shown is None or source in client.unacknowledged or shown.number <= number:
                    continue
                left_s = sent_s + LATE / wish.fps - time.monotonic()
                if left_s <= 0:
                    client.sent[source] = shown.number, time.monotonic()
                    client.unacknowledged[source] = shown.seq, time.monotonic()
                    self._update(source)
                    return source, shown, wish.width
                wait_s = left_s if wait_s is None else min(wait_s, left_s)
            try:
                await asyncio.wait_for(client.wake.wait(), wait_s)
            except TimeoutError:
                continue

    async def jpeg(self, source: str, shown: ShownFrame, width: int) -> bytes:
        """The picture of a frame, encoded once for each width; empty without one."""
        if shown.picture is None:
            return b""
        key = source, min(width, shown.picture.width)
        if key not in self._encoded or self._encoded[key][0] != shown.number:
            work = asyncio.get_running_loop().run_in_executor(None, jpeg, shown.picture, key[1], QUALITY)
            self._encoded[key] = shown.number, work
        return await asyncio.shield(self._encoded[key][1])

    def _show(self, source: str) -> None:
        with self._lock:
            shown = self._coming.pop(source)
        if source not in self.demand:
            return
        self._latest[source] = shown
        for client in self.clients:
            if source in client.wishes:
                client.wake.set()
