"""The consumer's end of every ring of one kind: finds the owners, receives their offers, leases their slots."""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from common import memory
from common.link import Dial, Timing
from common.loop import Loop
from common.messages import Hello, Message, Offer, Release, Welcome

SCAN_NS = 250_000_000  # how often the run directory is searched for new owners


class Attached:
    """One owner's ring as this process sees it: a link, a mapping of the current epoch, offers not yet taken."""

    def __init__(self, loop: Loop, run_dir: Path, path: Path, hello: Hello, timing: Timing):
        self._loop, self._run_dir = loop, run_dir
        self.mapped = None
        self.layout = None
        self.epoch = ""
        self.offers: deque[Offer] = deque()
        self.link = Dial(loop, path, hello, timing, self._on_welcome, self._on_message, self._on_lost)

    def _on_welcome(self, welcome: Welcome) -> None:
        try:
            self.mapped = memory.kind(welcome.ring.memory).Mapped(self._run_dir, welcome.ring)
        except FileNotFoundError:
            return  # replaced meanwhile: the next Welcome is on its way
        self.epoch, self.layout = welcome.epoch, welcome.ring.layout

    def _on_message(self, message: Message) -> None:
        if isinstance(message, Offer) and self.mapped is not None and message.ref.epoch == self.epoch:
            self.offers.append(message)
        else:
            self._loop.counters["messages_unexpected"] += 1

    def _on_lost(self) -> None:
        self._loop.counters["offers_stale"] += len(self.offers)
        self.offers.clear()
        if self.mapped is not None:
            self.mapped.close()
        self.mapped, self.epoch = None, ""


class Upstream:
    """Consumes one part of every ring named `<ring>.*` in the run directory, whoever owns it, whenever it appears."""

    def __init__(self, loop: Loop, run_dir: Path, ring: str, hello: Hello, timing: Timing):
        self._loop, self._run_dir, self._ring, self._hello, self._timing = loop, run_dir, ring, hello, timing
        self._owners: dict[Path, Attached] = {}
        self._turn = 0
        self._scan_ns = 0
        loop.every_tick(self._scan)

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

    @contextmanager
    def lease(self, owner: Attached, offer: Offer) -> Iterator[np.ndarray | None]:
        """The slot's bytes, uint8, read-only; None when its epoch has ended. Released when the block is left."""
        mapped = owner.mapped if owner.epoch == offer.ref.epoch else None
        if mapped is None:
            self._loop.counters["offers_stale"] += 1
            yield None
            return
        try:
            mapped.wait(offer.ref.slot)
            yield mapped.slot(offer.ref.slot)
            mapped.done(offer.ref.slot)
        finally:
            if owner.epoch == offer.ref.epoch:
                owner.link.send(Release(offer.ref, offer.part.name, offer.part.index))

    def close(self) -> None:
        self._loop.leave(self._scan)
        for owner in self._owners.values():
            owner.link.close()
        self._owners.clear()

    def _scan(self, now_ns: int) -> None:
        if now_ns < self._scan_ns:
            return
        self._scan_ns = now_ns + SCAN_NS
        there = set(self._run_dir.glob(f"{self._ring}.*.sock"))
        for path in there - self._owners.keys():
            self._owners[path] = Attached(self._loop, self._run_dir, path, self._hello, self._timing)
        for path in self._owners.keys() - there:
            if self._owners[path].link.welcome is None:
                self._owners.pop(path).link.close()
