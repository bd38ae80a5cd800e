"""The consumer's end of every ring of one kind: finds the owners, receives their offers, leases their slots."""

from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

from peoplecounter.common.errors import Refused
from peoplecounter.common.ipc import memory
from peoplecounter.common.ipc.link import Dial, Timing
from peoplecounter.common.ipc.loop import Loop
from peoplecounter.common.ipc.messages import Hello, Message, Offer, Release, Unmapped, Welcome

SCAN_NS = 250_000_000  # how often the run directory is searched for new owners
GIVE_UP_NS = 500_000_000  # in stuck work, a lease this old waits for an owner that is frozen


class Attached:
    """One owner's ring as this process sees it: a link, a mapping of the current epoch, offers not yet taken."""

    def __init__(self, loop: Loop, run_dir: Path, path: Path, hello: Hello, timing: Timing, work):
        self._loop, self._run_dir, self._work = loop, run_dir, work
        self.mapped = None
        self.layout = None
        self.epoch = ""
        self.offers: deque[Offer] = deque()
        self.leases: set[Lease] = set()
        self.link = Dial(loop, path, hello, timing, self._on_welcome, self._on_message, self._on_lost)

    def _on_welcome(self, welcome: Welcome) -> None:
        ring, kind = welcome.ring, self._work.kind
        if ring.memory != kind:
            raise Refused(
                f"{self.link.path.stem} is in {ring.memory} memory, this process works in {kind}: "
                "set the same backend for all services."
            )
        try:
            self.mapped = memory.kind(kind).Mapped(self._work, self._run_dir, ring)
        except FileNotFoundError:
            self.link.send(Unmapped(welcome.epoch))
            return  # replaced meanwhile: the next Welcome is on its way
        except Refused:
            if self.link.owner_ended:
                return  # its handle died with it: its successor will answer the next hello
            raise
        self.epoch, self.layout = welcome.epoch, ring.layout

    def _on_message(self, message: Message) -> None:
        if isinstance(message, Offer) and self.mapped is not None and message.ref.epoch == self.epoch:
            self.offers.append(message)
        else:
            self._loop.counters["messages_unexpected"] += 1

    def _on_lost(self) -> None:
        self._loop.counters["offers_stale"] += len(self.offers)
        self.offers.clear()
        self.lift(0)
        mapped, epoch, self.mapped, self.epoch = self.mapped, self.epoch, None, ""
        if mapped is not None:
            mapped.close(lambda: self.link.send(Unmapped(epoch)))

    def lift(self, longer_than_ns: int) -> None:
        """Gives up what is leased for longer than this: its owner is gone, or frozen, and may never write it."""
        for lease in list(self.leases):
            if self._loop.now_ns() - lease.since_ns >= longer_than_ns:
                lease.lift()


class Lease:
    """One part of a slot, held until release(). A lease of an epoch that has ended is `stale`: do not read on.

    `lifted`: the owner was given up while we waited for it; what came out is void.

    `with lease as slot:` releases at the end, for readers whose work is done by then.
    """

    def __init__(self, owner: Attached, offer: Offer, now_ns: int, on_lift: Callable[[], None]):
        self._owner, self._offer, self._mapped = owner, offer, owner.mapped
        self.layout, self.lifted, self.on_lift = owner.layout, False, on_lift
        self.since_ns = now_ns
        owner.leases.add(self)
        self._mapped.wait(offer.ref.slot, offer.ref.generation)
        self.slot = self._mapped.slot(offer.ref.slot)

    @property
    def stale(self) -> bool:
        return self._owner.epoch != self._offer.ref.epoch

    def lift(self) -> None:
        """Says so, then ends the waiting for the owner: what was read of the slot is void."""
        if not self.lifted:
            self.lifted = True
            self.on_lift()
            self._mapped.lift(self._offer.ref.slot, self._offer.ref.generation)

    def __enter__(self):
        return self.slot

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Lets the owner use the slot again; only the first call does something."""
        if self not in self._owner.leases:
            return
        self._owner.leases.discard(self)
        if not self.stale:
            self._owner.link.send(Release(self._offer.ref, self._offer.part.name, self._offer.part.index))


class Upstream:
    """Consumes one part of every ring named `<ring>.*` in the run directory, whoever owns it, whenever it appears."""

    def __init__(self, loop: Loop, run_dir: Path, ring: str, hello: Hello, timing: Timing, work=None):
        self._loop, self._run_dir, self._ring, self._hello, self._timing = loop, run_dir, ring, hello, timing
        self._work = work or memory.kind("shm").Work(loop)
        self._owners: dict[Path, Attached] = {}
        self._turn = 0
        self._scan_ns = 0
        loop.every_tick(self._scan)
        self._work.on_stuck.append(self._lift)

    @property
    def attached(self) -> list[str]:
        """Names of the rings that are mapped."""
        return [path.stem for path, owner in self._owners.items() if owner.mapped is not None]

    @property
    def leases(self) -> int:
        """How many parts this process holds."""
        return sum(len(owner.leases) for owner in self._owners.values())

    @property
    def credits(self) -> int:
        """How many more offers this process accepts now."""
        attached = [owner for owner in self._owners.values() if owner.mapped is not None]
        return sum(max(0, self._hello.credits - len(o.leases) - len(o.offers)) for o in attached)

    def take(self) -> tuple[Attached, Offer] | None:
        """The next offer, the owners in turn; None when there is none."""
        owners = list(self._owners.values())
        for i in range(len(owners)):
            owner = owners[(self._turn + i) % len(owners)]
            if owner.offers:
                self._turn = (self._turn + i + 1) % len(owners)
                return owner, owner.offers.popleft()
        return None

    def offers(self) -> Iterator[tuple[Attached, Offer]]:
        """Every offer received so far."""
        while (taken := self.take()) is not None:
            yield taken

    def lease(self, owner: Attached, offer: Offer, on_lift: Callable[[], None] = lambda: None) -> Lease | None:
        """The offered part; None when its epoch has ended. Release it when the work that reads it has finished.

        `on_lift` is called before that work is let go on in vain.
        """
        if owner.mapped is None or owner.epoch != offer.ref.epoch:
            self._loop.counters["offers_stale"] += 1
            return None
        return Lease(owner, offer, self._loop.now_ns(), on_lift)

    def close(self) -> None:
        self._work.finish()  # an owner reuses and frees what we say goodbye to
        self._loop.leave(self._scan)
        for owner in self._owners.values():
            owner.link.close()
        self._owners.clear()

    def _lift(self) -> None:
        """The work of this process is stuck behind a frozen owner: gives up everything that has waited for long."""
        for owner in self._owners.values():
            owner.lift(GIVE_UP_NS)

    def _scan(self, now_ns: int) -> None:
        if now_ns < self._scan_ns:
            return
        self._scan_ns = now_ns + SCAN_NS
        there = set(self._run_dir.glob(f"{self._ring}.*.sock"))
        for path in there - self._owners.keys():
            self._owners[path] = Attached(self._loop, self._run_dir, path, self._hello, self._timing, self._work)
        for path in self._owners.keys() - there:
            if self._owners[path].link.welcome is None:
                self._owners.pop(path).link.close()
