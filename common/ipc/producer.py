"""The owner's end of a ring: its memory, its slots, and which consumer gets which part next."""

import os
import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from peoplecounter.common.ipc.link import LinkServer, Peer, Timing
from peoplecounter.common.ipc.loop import Loop
from peoplecounter.common.ipc.memory import OwnedMemory, Slot, WorkQueue, memory_kind
from peoplecounter.common.ipc.messages import (
    FrameHeader,
    Hello,
    Message,
    Offer,
    Part,
    Refuse,
    Release,
    RingSpec,
    SlotRef,
    SurfaceLayout,
    TensorLayout,
    Unmapped,
    Welcome,
    namespaces,
)
from peoplecounter.common.ipc.slots import PartKey, Slots

Layout = SurfaceLayout | TensorLayout


@dataclass
class _Content:
    header: FrameHeader
    parts: dict[PartKey, Part]


@dataclass
class _RetiredMemory:
    """The memory of a past epoch. It is freed when its last reader has unmapped it or ended."""

    memory: OwnedMemory
    epoch: str
    readers: set[bytes]


class RingProducer:
    """Owns the ring `<ring>.<instance>` and offers its parts to the consumers that asked for them.

    Parts wait for a consumer with credit, oldest first; among those with credit, the least recently used one gets the
    part. `on_lost(header, reason, part)` is called for every part that will not be answered: its deadline passed, it
    was dropped for a newer frame, its holder ended, or went silent with a live frame. `admit(hello)` may refuse a
    consumer. `lent`: the name of a part for viewers. It is offered with a slot, to one that has credit at that moment,
    and is never waited for; one slot at most is lent at a time.
    """

    def __init__(
        self,
        loop: Loop,
        run_dir: Path,
        ring: str,
        instance: str,
        slots: int,
        timing: Timing,
        on_lost: Callable[[FrameHeader, str, Part], None],
        admit: Callable[[Hello], Refuse | None] = lambda hello: None,
        work: WorkQueue | None = None,
        lent: str = "",
    ):
        self.loop, self.run_dir, self.name, self.slots = loop, run_dir, f"{ring}.{instance}", slots
        self._lent = lent
        self.layout: Layout | None = None
        self._on_lost, self._admit = on_lost, admit
        self._work = work or memory_kind("shm").work_queue(loop)
        self._retired: list[_RetiredMemory] = []
        self._slots = Slots(slots)
        self._content: dict[int, _Content] = {}
        self._memory: OwnedMemory | None = None
        self._spec: RingSpec | None = None
        self._epoch = ""
        self._turns = count(1)
        self._link = LinkServer(
            loop, run_dir, self.name, timing, self._welcome, self._on_message, self._on_silent, self._on_gone
        )
        loop.every_tick(self._on_tick)

    @property
    def consumers(self) -> list[Hello]:
        return [peer.hello for peer in self._link.peers.values()]

    @property
    def epoch(self) -> str:
        """The current epoch; empty when no epoch is open."""
        return self._epoch if self._spec else ""

    def slots_by_state(self) -> dict[str, int]:
        """How many slots are in each state, see Slots."""
        return self._slots.by_state()

    @property
    def idle(self) -> bool:
        """True when no slot is being written, offered or read."""
        return self._slots.idle

    @property
    def drained(self) -> bool:
        """True when idle, except for slots of silent readers: a new epoch has other memory and cannot hurt them."""
        return self._slots.drained

    @property
    def backlog(self) -> bool:
        """True while a part of a live frame waits for credit of a consumer that is alive."""
        served = {peer.hello.part for peer in self._link.peers.values() if peer.welcomed and not peer.silent}
        return any(key[0] in served and self._content[i].header.live for i, key in self._slots.waiting())

    @property
    def deserted(self) -> bool:
        """True when it has consumers and none has been heard for silent_ms; viewers do not count."""
        heard_ns = [peer.heard_ns for peer in self._link.peers.values() if peer.hello.part != self._lent]
        silent_ns = self.loop.now_ns() - max([self.loop.woke_ns, *heard_ns])
        return bool(heard_ns) and silent_ns > self._link.timing.silent_ns

    def holding(self) -> list[tuple[str, int]]:
        """(source, seq) of every frame that waits or is being read."""
        return [(c.header.source, c.header.seq) for i, c in self._content.items() if self._slots.is_pending(i)]

    def open(self, layout: Layout) -> None:
        """Starts a new epoch whose slots have this layout. Offers of the old epoch are lost as stale.

        Callers that must not lose them wait for `drained` first. Raises AppError when there is no memory for it.
        """
        self.retire()
        self._epoch, self.layout = secrets.token_hex(8), layout
        kind = memory_kind(self._work.kind)
        self._memory = kind.allocate(self._work, self.run_dir, self.name, self._epoch, self.slots, layout.nbytes)
        self._spec = RingSpec(self._work.kind, self._memory.handle, self.slots, layout.nbytes, layout)
        self._link.invite()

    def retire(self) -> None:
        """Ends the epoch. Consumers wait until the next one is opened."""
        for index, key in list(self._slots.waiting()):
            self._withdraw(index, key, "stale")
        for peer in self._link.peers.values():
            self._report_lost(self._slots.forget(peer.identity))
        if self._memory is not None:
            readers = {peer.identity for peer in self._link.peers.values() if peer.welcomed}
            self._retired.append(_RetiredMemory(self._memory, self._epoch, readers))
            self._memory = None
        self._free_retired()
        self._slots, self._content, self.layout, self._spec = Slots(self.slots), {}, None, None

    def acquire(self, evict: Callable[[FrameHeader], bool] = lambda header: False) -> int | None:
        """A free slot to write into, or None.

        When no slot is free, the oldest frame of which no part was leased is dropped, if `evict(its header)` agrees.
        """
        index = self._slots.acquire()
        if index is None:
            oldest = self._slots.oldest_untouched()
            if oldest is not None and evict(self._content[oldest].header):
                for key in [k for i, k in self._slots.waiting() if i == oldest]:
                    self._withdraw(oldest, key, "no_credit")
                index = self._slots.acquire()
        return index

    def slot(self, index: int) -> Slot:
        """The slot, writable."""
        return self._open_memory().slot(index)

    def abandon(self, index: int) -> None:
        """Returns an acquired slot without offering it."""
        self._slots.abandon(index)

    def offer(self, index: int, header: FrameHeader, parts: Iterable[Part], written: bool = True) -> None:
        """Offers the parts of a slot that was written, or will be written by the work queued so far.

        On a GPU a slot may even be offered before that work is queued: with `written=False`, and later written().
        """
        if written:
            self.written(index)
        by_key = {part.key: part for part in parts}
        self._content[index] = _Content(header, by_key)
        self._slots.offer(index, list(by_key))
        self._dispatch()
        self._lend(index, header)

    def written(self, index: int) -> None:
        """The slot's readers may start when the work queued so far has finished."""
        self._open_memory().ready(index, self._slots.generation(index))

    def close(self) -> None:
        self.loop.stop_calling(self._on_tick)
        self._link.close()
        for retired in self._retired:
            retired.memory.close()
        if self._memory is not None:
            self._memory.close()

    def _open_memory(self) -> OwnedMemory:
        assert self._memory is not None, "no epoch is open"
        return self._memory

    def _free_retired(self) -> None:
        """Frees the memory of past epochs that no consumer maps any more."""
        for retired in [r for r in self._retired if not r.readers]:
            self._retired.remove(retired)
            retired.memory.close()

    def _welcome(self, hello: Hello) -> Welcome | Refuse | None:
        if self._work.kind == "cuda" and hello.namespaces[1] != namespaces()[1]:
            return Refuse(f"{hello.service} is in another IPC namespace: CUDA IPC needs all services in the same one.")
        refusal = self._admit(hello)
        if refusal is not None:
            return refusal
        return Welcome(self._epoch, os.getpid(), self._spec) if self._spec else None

    def _on_message(self, peer: Peer, message: Message) -> None:
        if isinstance(message, Unmapped):
            for retired in self._retired:
                if retired.epoch == message.epoch:
                    retired.readers.discard(peer.identity)
            self._free_retired()
        elif isinstance(message, Release):
            ref, key = message.ref, (message.part, message.index)
            if ref.epoch != self._epoch or not self._slots.release(ref.slot, ref.generation, key, peer.identity):
                self.loop.counters["releases_refused"] += 1
            self._dispatch()
        else:
            self.loop.counters["messages_unexpected"] += 1

    def _on_silent(self, peer: Peer) -> None:
        """A lossless frame waits for its holder, which may come back; a live one does not."""
        self._report_lost(self._slots.quarantine(peer.identity, lambda i: self._content[i].header.live))

    def _on_gone(self, peer: Peer) -> None:
        self._report_lost(self._slots.forget(peer.identity))
        for retired in self._retired:
            retired.readers.discard(peer.identity)
        self._free_retired()
        self._dispatch()

    def _report_lost(self, leases: list[tuple[int, PartKey]]) -> None:
        for index, key in leases:
            content = self._content[index]
            self._on_lost(content.header, "stale", content.parts[key])

    def _withdraw(self, index: int, key: PartKey, reason: str) -> None:
        content = self._content[index]
        self._slots.withdraw(index, key)
        self._on_lost(content.header, reason, content.parts[key])

    def _on_tick(self, now_ns: int) -> None:
        for index, key in list(self._slots.waiting()):
            if 0 < self._content[index].header.deadline_ns < now_ns:
                self._withdraw(index, key, "deadline")
        self._dispatch()

    def _dispatch(self) -> None:
        for index, key in list(self._slots.waiting()):
            peer = self._next_peer(key[0])
            if peer is None:
                continue
            content = self._content[index]
            ref = SlotRef(self._epoch, index, self._slots.generation(index))
            self._slots.lease(index, key, peer.identity)
            peer.turn = next(self._turns)
            if not self._link.send(peer, Offer(content.header, ref, content.parts[key])):
                self._slots.undo_lease(index, key)
                peer.silent = True  # until it is heard again, or its process is known to have ended
                self._on_silent(peer)

    def _lend(self, index: int, header: FrameHeader) -> None:
        peer = self._next_peer(self._lent) if self._lent and not self._slots.lends else None
        if peer is None or self._slots.is_free(index):
            return
        part = Part(self._lent)
        self._slots.lend(index, part.key, peer.identity)
        peer.turn = next(self._turns)
        ref = SlotRef(self._epoch, index, self._slots.generation(index))
        if not self._link.send(peer, Offer(header, ref, part)):
            self._slots.release(index, ref.generation, part.key, peer.identity)

    def _next_peer(self, part: str) -> Peer | None:
        able = [
            peer
            for peer in self._link.peers.values()
            if peer.welcomed
            and not peer.silent
            and peer.hello.part == part
            and self._slots.holding(peer.identity) < peer.hello.credits
        ]
        return min(able, key=lambda peer: peer.turn, default=None)
