"""The consumer's end of every ring of one kind: finds the owners, receives their offers, leases their slots."""

from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from peoplecounter.common.errors import AppError
from peoplecounter.common.ipc.link import LinkClient, Timing
from peoplecounter.common.ipc.loop import Loop
from peoplecounter.common.ipc.memory import MappedMemory, Slot, WorkQueue, memory_kind
from peoplecounter.common.ipc.messages import Hello, Message, Offer, Release, Unmapped, Welcome
from peoplecounter.common.ipc.producer import Layout

SCAN_NS = 250_000_000  # how often the run directory is searched for new owners
ABORT_AFTER_NS = 500_000_000  # when work is stuck, leases older than this wait for an owner that is frozen


class RingConnection:
    """One owner's ring as this process sees it: a link, a mapping of the current epoch, offers not taken yet."""

    def __init__(
        self,
        loop: Loop,
        run_dir: Path,
        path: Path,
        hello: Hello,
        timing: Timing,
        work: WorkQueue,
        wanted: Callable[[], bool],
    ):
        self._loop, self._run_dir, self._work, self._wanted = loop, run_dir, work, wanted
        self.memory: MappedMemory | None = None
        self.layout: Layout | None = None
        self.epoch = ""
        self.offers: deque[Offer] = deque()
        self.leases: set[Lease] = set()
        self.link = LinkClient(loop, path, hello, timing, self._on_welcome, self._on_message, self._on_lost)

    def _on_welcome(self, welcome: Welcome) -> None:
        ring, kind = welcome.ring, self._work.kind
        if ring is None:
            self._loop.counters["messages_unexpected"] += 1
            return
        if ring.memory != kind:
            raise AppError(
                f"{self.link.path.stem} is in {ring.memory} memory, this process works in {kind}: "
                "set the same backend for all services."
            )
        try:
            self.memory = memory_kind(kind).map(self._work, self._run_dir, ring)
        except FileNotFoundError:
            self.link.send(Unmapped(welcome.epoch))
            return  # the owner has replaced it: the next Welcome is on its way
        except AppError:
            if self.link.owner_ended or not self._wanted():
                return  # its handle ended with it and its successor will answer; or we do not read it any more
            raise
        self.epoch, self.layout = welcome.epoch, ring.layout

    def _on_message(self, message: Message) -> None:
        if isinstance(message, Offer) and self.memory is not None and message.ref.epoch == self.epoch:
            self.offers.append(message)
        else:
            self._loop.counters["messages_unexpected"] += 1

    def _on_lost(self) -> None:
        self._loop.counters["offers_stale"] += len(self.offers)
        self.offers.clear()
        self.abort_waits(0)
        memory, epoch, self.memory, self.epoch = self.memory, self.epoch, None, ""
        if memory is not None:
            memory.close(lambda: self._report_unmapped(epoch))

    def decline(self) -> None:
        """Gives back all offers that were not taken."""
        while self.offers:
            self.give_back(self.offers.popleft())

    def give_back(self, offer: Offer) -> None:
        """Releases a part without a lease: nothing has read it, or will."""
        if self.memory is not None and offer.ref.epoch == self.epoch:
            self.link.send(Release(offer.ref, offer.part.name, offer.part.index))

    def _report_unmapped(self, epoch: str) -> None:
        self.link.send(Unmapped(epoch))

    def abort_waits(self, longer_than_ns: int) -> None:
        """Gives up leases older than this: their owner has ended or is frozen and may never write the slot."""
        for lease in list(self.leases):
            if self._loop.now_ns() - lease.since_ns >= longer_than_ns:
                lease.abort_wait()


class Lease:
    """One part of a slot, held until release(). When its epoch has ended it is `stale`: do not read on.

    `aborted`: this process stopped waiting for the owner, so what was read of the slot is void.
    `with lease as slot:` releases at the end, for readers whose work is done by then.
    """

    def __init__(
        self, connection: RingConnection, memory: MappedMemory, offer: Offer, now_ns: int, on_abort: Callable[[], None]
    ):
        assert connection.layout is not None
        self._connection, self._offer, self._memory = connection, offer, memory
        self.layout, self.aborted, self.on_abort = connection.layout, False, on_abort
        self.since_ns = now_ns
        connection.leases.add(self)
        memory.wait(offer.ref.slot, offer.ref.generation)
        self.slot: Slot = memory.slot(offer.ref.slot)

    @property
    def epoch(self) -> str:
        """Of the ring that the slot belongs to."""
        return self._offer.ref.epoch

    @property
    def stale(self) -> bool:
        return self._connection.epoch != self.epoch

    def abort_wait(self) -> None:
        """Calls on_abort, then ends the wait for the owner."""
        if not self.aborted:
            self.aborted = True
            self.on_abort()
            self._memory.abort_wait(self._offer.ref.slot, self._offer.ref.generation)

    def __enter__(self) -> Slot:
        return self.slot

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Lets the owner reuse the slot. Only the first call has an effect."""
        if self not in self._connection.leases:
            return
        self._connection.leases.discard(self)
        if not self.stale:
            self._connection.link.send(Release(self._offer.ref, self._offer.part.name, self._offer.part.index))


class RingConsumer:
    """Consumes one part of every ring named `<ring>.*` in the run directory, including rings that appear later.

    `wanted(instance)`: only of rings for which it is true; it is asked again with each search for rings.
    """

    def __init__(
        self,
        loop: Loop,
        run_dir: Path,
        ring: str,
        hello: Hello,
        timing: Timing,
        work: WorkQueue | None = None,
        wanted: Callable[[str], bool] = lambda instance: True,
    ):
        self._wanted = wanted
        self._loop, self._run_dir, self._ring, self._hello, self._timing = loop, run_dir, ring, hello, timing
        self._work = work or memory_kind("shm").work_queue(loop)
        self._connections: dict[Path, RingConnection] = {}
        self._turn = 0
        self._scan_due_ns = 0
        loop.every_tick(self._scan)
        self._work.on_stuck.append(self._abort_stuck)

    @property
    def attached(self) -> list[str]:
        """Names of the rings that are mapped."""
        return [path.stem for path, ring in self._connections.items() if ring.memory is not None]

    @property
    def leases(self) -> int:
        """How many parts this process holds."""
        return sum(len(ring.leases) for ring in self._connections.values())

    @property
    def credits(self) -> int:
        """How many more offers this process accepts now."""
        mapped = [ring for ring in self._connections.values() if ring.memory is not None]
        return sum(max(0, self._hello.credits - len(ring.leases) - len(ring.offers)) for ring in mapped)

    def take(self, accept: Callable[[Offer], bool] = lambda offer: True) -> tuple[RingConnection, Offer] | None:
        """The next offer, from each owner in turn; None when there is none, or none that is accepted."""
        connections = list(self._connections.values())
        for i in range(len(connections)):
            connection = connections[(self._turn + i) % len(connections)]
            if connection.offers and accept(connection.offers[0]):
                self._turn = (self._turn + i + 1) % len(connections)
                return connection, connection.offers.popleft()
        return None

    def offers(self) -> Iterator[tuple[RingConnection, Offer]]:
        """Every offer received so far."""
        while (taken := self.take()) is not None:
            yield taken

    def overtaken(self) -> Iterator[tuple[RingConnection, Offer]]:
        """Every offer of a live frame behind which the same owner has offered a newer one."""
        for connection in self._connections.values():
            while len(connection.offers) > 1 and connection.offers[0].header.live:
                yield connection, connection.offers.popleft()

    def lease(
        self, connection: RingConnection, offer: Offer, on_abort: Callable[[], None] = lambda: None
    ) -> Lease | None:
        """The offered part; None when its epoch has ended. Release it when the work that reads it has finished.

        `on_abort` is called before the wait for a dead or frozen owner is ended.
        """
        if connection.memory is None or connection.epoch != offer.ref.epoch:
            self._loop.counters["offers_stale"] += 1
            return None
        return Lease(connection, connection.memory, offer, self._loop.now_ns(), on_abort)

    def close(self) -> None:
        self._work.finish()  # an owner reuses and frees memory of consumers that sent Bye
        self._loop.stop_calling(self._scan)
        for connection in self._connections.values():
            connection.link.close()
        self._connections.clear()

    def _abort_stuck(self) -> None:
        """This process' work is stuck behind a frozen owner: gives up every lease that has waited for long."""
        for connection in self._connections.values():
            connection.abort_waits(ABORT_AFTER_NS)

    def _scan(self, now_ns: int) -> None:
        if now_ns < self._scan_due_ns:
            return
        self._scan_due_ns = now_ns + SCAN_NS
        sockets = {path for path in self._run_dir.glob(f"{self._ring}.*.sock") if self._wanted(_instance(path))}
        for path in sockets - self._connections.keys():
            self._connections[path] = RingConnection(
                self._loop, self._run_dir, path, self._hello, self._timing, self._work,
                partial(self._wanted, _instance(path)),
            )  # fmt: skip
        for path in self._connections.keys() - sockets:
            connection = self._connections[path]
            if path.exists():  # it is not wanted any more
                connection.decline()
            if connection.link.welcome is None or (path.exists() and not connection.leases):
                self._connections.pop(path).link.close()


def _instance(path: Path) -> str:
    """Of the owner of a ring with this socket."""
    return path.stem.partition(".")[2]
