"""The life of a ring's slots, as a pure state machine: no I/O, no clock, no GPU.

    FREE --acquire--> WRITING --offer--> OFFERED --every part released or withdrawn--> FREE
                         |                  each part: waiting --lease--> leased --release--> gone
                         +--abandon--> FREE

A part that is given up because its holder went silent is quarantined: it still blocks the slot, because the holder may
still be reading, until the holder releases it or its process is known to have ended.

A part may also be lent to a viewer. That, too, blocks the slot, and nothing else: nobody waits for it.
"""

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field

Holder = Hashable
PartKey = tuple[str, int]  # (name, index): ("global", 0), ("tiles", 0), ("tiles", 1) …

FREE, WRITING, OFFERED = "free", "writing", "offered"


@dataclass
class _Slot:
    state: str = FREE
    generation: int = 0
    touched: bool = False  # a part of it was leased in this generation
    waiting: list[PartKey] = field(default_factory=list)
    leased: dict[PartKey, Holder] = field(default_factory=dict)
    lent: dict[PartKey, Holder] = field(default_factory=dict)
    quarantined: set[PartKey] = field(default_factory=set)

    @property
    def shown(self) -> str:
        if self.quarantined:
            return "quarantined"
        return "leased" if self.leased or self.lent else self.state

    @property
    def pending(self) -> bool:
        """True while somebody has to read it, who may be silent."""
        return self.state == OFFERED and bool(self.waiting or self.leased)


class Slots:
    """`count` equal memory blocks. Each is reused only when every part of it was released or withdrawn."""

    def __init__(self, count: int):
        self._slots = [_Slot() for _ in range(count)]
        self._offered: list[int] = []  # slots in the order they were offered, oldest first

    def __len__(self) -> int:
        return len(self._slots)

    @property
    def idle(self) -> bool:
        """True when every slot is free."""
        return all(slot.state == FREE for slot in self._slots)

    @property
    def drained(self) -> bool:
        """True when every slot is free, except for parts of silent holders and of viewers."""
        return all(
            slot.state == FREE
            or (slot.state == OFFERED and not slot.waiting and slot.leased.keys() <= slot.quarantined)
            for slot in self._slots
        )

    def is_pending(self, index: int) -> bool:
        """True while a part of the slot waits or is leased."""
        return self._slots[index].pending

    @property
    def lends(self) -> bool:
        """True while a part of any slot is lent."""
        return any(slot.lent for slot in self._slots)

    def by_state(self) -> dict[str, int]:
        """How many slots are in each state. A slot with a leased or quarantined part counts as that."""
        states = ("free", "writing", "offered", "leased", "quarantined")
        return {state: sum(slot.shown == state for slot in self._slots) for state in states}

    def is_free(self, index: int) -> bool:
        return self._slots[index].state == FREE

    def acquire(self) -> int | None:
        """The index of a free slot, now being written in a new generation; None when no slot is free."""
        for index, slot in enumerate(self._slots):
            if slot.state == FREE:
                slot.state = WRITING
                slot.generation += 1
                return index
        return None

    def abandon(self, index: int) -> None:
        """Returns a slot that was acquired but not offered."""
        self._expect(index, WRITING)
        self._slots[index].state = FREE

    def offer(self, index: int, parts: list[PartKey]) -> int:
        """Makes the parts of a written slot available for lease; returns the slot's generation."""
        self._expect(index, WRITING)
        slot = self._slots[index]
        slot.state, slot.waiting, slot.touched = OFFERED, list(parts), False
        self._offered.append(index)
        return slot.generation

    def waiting(self) -> Iterator[tuple[int, PartKey]]:
        """Each (slot, part) that is not leased yet, oldest slot first."""
        for index in list(self._offered):
            for part in list(self._slots[index].waiting):
                yield index, part

    def generation(self, index: int) -> int:
        return self._slots[index].generation

    def lease(self, index: int, part: PartKey, holder: Holder) -> None:
        """Gives one waiting part to a holder."""
        slot = self._slots[index]
        slot.waiting.remove(part)
        slot.leased[part] = holder
        slot.touched = True

    def release(self, index: int, generation: int, part: PartKey, holder: Holder) -> bool:
        """Ends a lease; False, without a change, when this holder has no such lease in this generation."""
        if not 0 <= index < len(self._slots):
            return False
        slot = self._slots[index]
        held = slot.lent if slot.lent.get(part) == holder else slot.leased
        if slot.generation != generation or held.get(part) != holder:
            return False
        del held[part]
        if held is slot.leased:
            slot.quarantined.discard(part)
        self._free_if_unused(index)
        return True

    def lend(self, index: int, part: PartKey, holder: Holder) -> None:
        """Shows a part of an offered slot to a viewer. Ends by release() or forget(); it is never lost work."""
        self._expect(index, OFFERED)
        self._slots[index].lent[part] = holder

    def undo_lease(self, index: int, part: PartKey) -> None:
        """The lease never reached its holder: the part waits again."""
        slot = self._slots[index]
        del slot.leased[part]
        slot.waiting.append(part)

    def withdraw(self, index: int, part: PartKey) -> None:
        """Takes back a part that is not leased."""
        self._slots[index].waiting.remove(part)
        self._free_if_unused(index)

    def oldest_untouched(self) -> int | None:
        """The oldest offered slot of which no part was ever leased: the first to drop when a live source needs room.

        Not one that is lent: dropping it would give no room.
        """
        return next((i for i in self._offered if not self._slots[i].touched and not self._slots[i].lent), None)

    def holding(self, holder: Holder) -> int:
        """How many parts the holder has leased."""
        held = (h for slot in self._slots for h in (*slot.leased.values(), *slot.lent.values()))
        return sum(h == holder for h in held)

    def quarantine(
        self, holder: Holder, gives_up: Callable[[int], bool] = lambda index: True
    ) -> list[tuple[int, PartKey]]:
        """Marks a silent holder's leases of slots that `gives_up(index)`; returns those that were not marked before."""
        marked = []
        for index, slot in enumerate(self._slots):
            for part, owner in slot.leased.items():
                if owner == holder and part not in slot.quarantined and gives_up(index):
                    slot.quarantined.add(part)
                    marked.append((index, part))
        return marked

    def forget(self, holder: Holder) -> list[tuple[int, PartKey]]:
        """The holder's process has ended: ends its leases; returns those that were not quarantined before."""
        lost = self.quarantine(holder)
        for index, slot in enumerate(self._slots):
            for part in [p for p, owner in (*slot.leased.items(), *slot.lent.items()) if owner == holder]:
                self.release(index, slot.generation, part, holder)
        return lost

    def _expect(self, index: int, state: str) -> None:
        if self._slots[index].state != state:
            raise ValueError(f"slot {index} is {self._slots[index].state}, not {state}")

    def _free_if_unused(self, index: int) -> None:
        slot = self._slots[index]
        if slot.state == OFFERED and not slot.pending and not slot.lent:
            slot.state = FREE
            self._offered.remove(index)
