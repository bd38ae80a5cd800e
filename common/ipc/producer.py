"""The owner's end of a ring: memory, slots, and who gets which part next."""

import os
import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from peoplecounter.common.ipc import memory
from peoplecounter.common.ipc.link import Listen, Peer, Timing
from peoplecounter.common.ipc.loop import Loop
from peoplecounter.common.ipc.messages import (
    Header,
    Hello,
    Message,
    Offer,
    Part,
    Ref,
    Refuse,
    Release,
    RingSpec,
    SurfaceLayout,
    TensorLayout,
    Unmapped,
    Welcome,
    namespaces,
)
from peoplecounter.common.ipc.slots import PartKey, Ring

Layout = SurfaceLayout | TensorLayout


@dataclass
class _Content:
    header: Header
    parts: dict[PartKey, Part]


@dataclass
class _Retired:
    """The memory of a past epoch: freed when its last reader has unmapped it, or is gone."""

    memory: object
    epoch: str
    readers: set[bytes]


class Downstream:
    """Owns the ring `<ring>.<instance>` and offers its parts to the consumers that asked for them.

    Parts wait for a consumer with credit, oldest first; among those with credit the least recently used one gets it.
    `on_lost(header, part, reason)` is called for every part that will not be answered: its deadline passed, it was
    dropped for a newer frame, or its holder went silent or died.
    `admit(hello)` may refuse a consumer, in words, or put it off (see Listen).
    """

    def __init__(
        self,
        loop: Loop,
        run_dir: Path,
        ring: str,
        instance: str,
        slots: int,
        timing: Timing,
        on_lost: Callable[[Header, Part, str], None],
        admit: Callable[[Hello], Refuse | None] = lambda hello: None,
        work: object | None = None,
    ):
        self.loop, self.run_dir, self.name, self.slots = loop, run_dir, f"{ring}.{instance}", slots
        self.layout: Layout | None = None
        self._on_lost, self._admit = on_lost, admit
        self._work = work or memory.kind("shm").Work(loop)
        self._old: list[_Retired] = []
        self._ring = Ring(slots)
        self._content: dict[int, _Content] = {}
        self._memory = None
        self._spec: RingSpec | None = None
        self._epoch = ""
        self._turn = count(1)
        self._link = Listen(
            loop, run_dir, self.name, timing, self._welcome, self._on_message, self._on_silent, self._on_gone
        )
        loop.every_tick(self._keep_house)

    @property
    def consumers(self) -> list[Hello]:
        return [peer.hello for peer in self._link.peers.values()]

    @property
    def epoch(self) -> str:
        """Of the ring that is open; empty: none is."""
        return self._epoch if self._spec else ""

    def slots_by_state(self) -> dict[str, int]:
        """How many slots are in each state, see Ring."""
        return self._ring.by_state()

    @property
    def idle(self) -> bool:
        """True when no slot is being written, offered or read."""
        return self._ring.idle

    @property
    def drained(self) -> bool:
        """The same, but for slots whose readers have gone silent: a new epoch is other memory and cannot hurt them."""
        return self._ring.drained

    def holding(self) -> list[tuple[str, int]]:
        """(source, seq) of every frame that waits or is being read."""
        return [(c.header.source, c.header.seq) for i, c in self._content.items() if not self._ring.is_free(i)]

    def open(self, layout: Layout) -> None:
        """Starts a new epoch whose slots have this layout; what was still offered in the old one is lost as stale.

        Callers that must not lose it wait for `drained` first. Raises Refused when there is no memory for it.
        """
        self.retire()
        self._epoch, self.layout = secrets.token_hex(8), layout
        kind = self._work.kind
        self._memory = memory.kind(kind).Owned(
            self._work, self.run_dir, self.name, self._epoch, self.slots, layout.nbytes
        )
        self._spec = RingSpec(kind, self._memory.handle, self.slots, layout.nbytes, layout)
        self._link.invite()

    def retire(self) -> None:
        """Ends the epoch: consumers are welcome again when the next one is opened."""
        for index, key in list(self._ring.waiting()):
            self._withdraw(index, key, "stale")
        for peer in self._link.peers.values():
            self._lose(self._ring.forget(peer.identity))
        if self._memory is not None:
            readers = {peer.identity for peer in self._link.peers.values() if peer.welcomed}
            self._old.append(_Retired(self._memory, self._epoch, readers))
            self._memory = None
        self._free()
        self._ring, self._content, self.layout, self._spec = Ring(self.slots), {}, None, None

    def acquire(self, evict: Callable[[Header], bool] = lambda header: False) -> int | None:
        """A free slot to write into, or None.

        When there is none, the oldest frame that nobody has begun to read gives way if `evict(its header)` says so.
        """
        index = self._ring.acquire()
        if index is None:
            oldest = self._ring.oldest_untouched()
            if oldest is not None and evict(self._content[oldest].header):
                for key in [k for i, k in self._ring.waiting() if i == oldest]:
                    self._withdraw(oldest, key, "no_credit")
                index = self._ring.acquire()
        return index

    def slot(self, index: int):
        """The slot: uint8 [slot_bytes], writable, in shared memory; a Block on a GPU."""
        return self._memory.slot(index)

    def abandon(self, index: int) -> None:
        """Gives back an acquired slot without offering it."""
        self._ring.abandon(index)

    def offer(self, index: int, header: Header, parts: Iterable[Part], written: bool = True) -> None:
        """Offers the parts of a slot that was written, or will be by the work queued so far.

        On a GPU a slot may be offered even before that work is queued, with `written=False`, and then written().
        """
        if written:
            self.written(index)
        by_key = {part.key: part for part in parts}
        self._content[index] = _Content(header, by_key)
        self._ring.offer(index, list(by_key))
        self._dispatch()

    def written(self, index: int) -> None:
        """The slot's readers may begin when the work queued so far has finished."""
        self._memory.ready(index, self._ring.generation(index))

    def close(self) -> None:
        self.loop.leave(self._keep_house)
        self._link.close()
        for retired in self._old:
            retired.memory.close()
        if self._memory is not None:
            self._memory.close()

    def _free(self) -> None:
        """Frees the memory of past epochs that nobody maps any more."""
        for retired in [old for old in self._old if not old.readers]:
            self._old.remove(retired)
            retired.memory.close()

    def _welcome(self, hello: Hello) -> Welcome | Refuse | None:
        if self._work.kind == "cuda" and hello.namespaces[1] != namespaces()[1]:
            return Refuse(f"{hello.service} is in another IPC namespace, where CUDA IPC does not reach: share one.")
        refusal = self._admit(hello)
        if refusal is not None:
            return refusal
        return Welcome(self._epoch, os.getpid(), self._spec) if self._spec else None

    def _on_message(self, peer: Peer, message: Message) -> None:
        if isinstance(message, Unmapped):
            for old in self._old:
                if old.epoch == message.epoch:
                    old.readers.discard(peer.identity)
            return self._free()
        if not isinstance(message, Release):
            self.loop.counters["messages_unexpected"] += 1
            return
        ref, key = message.ref, (message.part, message.index)
        if ref.epoch != self._epoch or not self._ring.release(ref.slot, ref.generation, key, peer.identity):
            self.loop.counters["releases_refused"] += 1
        self._dispatch()

    def _on_silent(self, peer: Peer) -> None:
        self._lose(self._ring.quarantine(peer.identity))

    def _on_gone(self, peer: Peer) -> None:
        self._lose(self._ring.forget(peer.identity))
        for old in self._old:
            old.readers.discard(peer.identity)
        self._free()
        self._dispatch()

    def _lose(self, leases: list[tuple[int, PartKey]]) -> None:
        for index, key in leases:
            content = self._content[index]
            self._on_lost(content.header, content.parts[key], "stale")

    def _withdraw(self, index: int, key: PartKey, reason: str) -> None:
        content = self._content[index]
        self._ring.withdraw(index, key)
        self._on_lost(content.header, content.parts[key], reason)

    def _keep_house(self, now_ns: int) -> None:
        for index, key in list(self._ring.waiting()):
            if 0 < self._content[index].header.deadline_ns < now_ns:
                self._withdraw(index, key, "deadline")
        self._dispatch()

    def _dispatch(self) -> None:
        for index, key in list(self._ring.waiting()):
            peer = self._next_peer(key[0])
            if peer is None:
                continue
            content = self._content[index]
            ref = Ref(self._epoch, index, self._ring.generation(index))
            self._ring.lease(index, key, peer.identity)
            peer.turn = next(self._turn)
            if not self._link.send(peer, Offer(content.header, ref, content.parts[key])):
                self._ring.take_back(index, key)
                peer.silent = True  # until it is heard again, or its process is known to be gone
                self._on_silent(peer)

    def _next_peer(self, part: str) -> Peer | None:
        able = [
            peer
            for peer in self._link.peers.values()
            if peer.welcomed
            and not peer.silent
            and peer.hello.part == part
            and self._ring.holding(peer.identity) < peer.hello.credits
        ]
        return min(able, key=lambda peer: peer.turn, default=None)
