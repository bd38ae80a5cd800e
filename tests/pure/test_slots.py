"""The ring never reuses a slot that may still be read, and never loses one."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from peoplecounter.common.ipc.slots import Slots

PARTS = [("global", 0), ("tiles", 0), ("tiles", 1)]
PICTURE = ("picture", 0)  # is lent to viewers


class SlotsMachine(RuleBasedStateMachine):
    """Random owners and holders against the plainest possible model: who reads which (slot, part)."""

    @initialize(slots=st.integers(1, 4))
    def start(self, slots):
        self.ring = Slots(slots)
        self.writing = set()
        self.reads = {}  # (slot, part) -> (holder, generation)
        self.waits = set()  # (slot, part)
        self.views = {}  # (slot, part) that is lent -> (holder, generation)
        self.touched = set()

    @rule()
    def acquire(self):
        slot = self.ring.acquire()
        busy = self.writing | {s for s, _ in (*self.reads, *self.waits, *self.views)}
        assert slot not in busy
        assert (slot is None) == (len(busy) == len(self.ring))
        if slot is not None:
            self.writing.add(slot)

    @precondition(lambda self: self.writing)
    @rule(data=st.data(), parts=st.lists(st.sampled_from(PARTS), min_size=1, unique=True), keep=st.booleans())
    def offer_or_abandon(self, data, parts, keep):
        slot = data.draw(st.sampled_from(sorted(self.writing)))
        self.writing.remove(slot)
        if keep:
            self.ring.offer(slot, parts)
            self.waits |= {(slot, part) for part in parts}
            self.touched.discard(slot)
        else:
            self.ring.abandon(slot)

    @precondition(lambda self: self.waits)
    @rule(data=st.data(), holder=st.sampled_from("abc"))
    def lease(self, data, holder):
        slot, part = data.draw(st.sampled_from(sorted(self.waits)))
        self.ring.lease(slot, part, holder)
        self.waits.remove((slot, part))
        self.touched.add(slot)
        self.reads[slot, part] = holder, self.ring.generation(slot)

    @precondition(lambda self: {s for s, _ in (*self.reads, *self.waits)})
    @rule(data=st.data(), viewer=st.sampled_from("xy"))
    def lend(self, data, viewer):
        slot = data.draw(st.sampled_from(sorted({s for s, _ in (*self.reads, *self.waits)})))
        if (slot, PICTURE) not in self.views:
            self.ring.lend(slot, PICTURE, viewer)
            self.views[slot, PICTURE] = viewer, self.ring.generation(slot)

    @precondition(lambda self: self.views)
    @rule(data=st.data())
    def give_back(self, data):
        slot, part = data.draw(st.sampled_from(sorted(self.views)))
        viewer, generation = self.views.pop((slot, part))
        assert self.ring.release(slot, generation, part, viewer)
        assert not self.ring.release(slot, generation, part, viewer)

    @rule(viewer=st.sampled_from("xy"))
    def viewer_freezes_and_dies(self, viewer):
        assert self.ring.quarantine(viewer) == []  # never lost work
        assert self.ring.forget(viewer) == []
        self.views = {key: value for key, value in self.views.items() if value[0] != viewer}

    @rule(data=st.data(), holder=st.sampled_from("abc"), slot=st.integers(-1, 5), generation=st.integers(0, 9))
    def forged_release(self, data, holder, slot, generation):
        part = data.draw(st.sampled_from(PARTS))
        rightful = self.reads.get((slot, part)) == (holder, generation)
        assert self.ring.release(slot, generation, part, holder) == rightful
        if rightful:
            del self.reads[slot, part]

    @precondition(lambda self: self.reads)
    @rule(data=st.data())
    def release(self, data):
        slot, part = data.draw(st.sampled_from(sorted(self.reads)))
        holder, generation = self.reads.pop((slot, part))
        assert self.ring.release(slot, generation, part, holder)
        assert not self.ring.release(slot, generation, part, holder)

    @precondition(lambda self: self.waits)
    @rule(data=st.data())
    def withdraw(self, data):
        slot, part = data.draw(st.sampled_from(sorted(self.waits)))
        self.ring.withdraw(slot, part)
        self.waits.remove((slot, part))

    @rule(holder=st.sampled_from("abc"))
    def freeze(self, holder):
        held = {key for key, (h, _) in self.reads.items() if h == holder}
        assert set(self.ring.quarantine(holder)) <= held
        assert self.ring.quarantine(holder) == []  # told once

    @rule(holder=st.sampled_from("abc"))
    def die(self, holder):
        held = {key for key, (h, _) in self.reads.items() if h == holder}
        assert set(self.ring.forget(holder)) <= held
        self.reads = {key: value for key, value in self.reads.items() if value[0] != holder}

    @invariant()
    def agrees(self):
        if not hasattr(self, "ring"):
            return
        assert set(self.ring.waiting()) == self.waits
        for holder in "abc":
            assert self.ring.holding(holder) == sum(h == holder for h, _ in self.reads.values())
        for slot in range(len(self.ring)):
            assert self.ring.is_pending(slot) == any(slot == s for s, _ in (*self.reads, *self.waits))
        assert self.ring.lends == bool(self.views)
        assert self.ring.idle == (not self.writing and not self.reads and not self.waits and not self.views)
        oldest = self.ring.oldest_untouched()
        assert oldest is None or not any(slot == oldest for slot, _ in self.views)
        assert oldest is None or (oldest not in self.touched and any(slot == oldest for slot, _ in self.waits))


SlotsMachine.TestCase.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
TestSlots = SlotsMachine.TestCase


def test_quarantined_part_blocks_its_slot_until_its_holder_releases_it_after_all():
    ring = Slots(1)
    slot = ring.acquire()
    generation = ring.offer(slot, [("frame", 0)])
    ring.lease(slot, ("frame", 0), "frozen")
    assert ring.quarantine("frozen") == [(slot, ("frame", 0))]
    assert ring.acquire() is None
    assert ring.release(slot, generation, ("frame", 0), "frozen")
    assert ring.acquire() == slot


def test_oldest_untouched_is_the_oldest_by_offer_not_by_index():
    ring = Slots(3)
    a, b, c = ring.acquire(), ring.acquire(), ring.acquire()
    for slot in (c, a, b):
        ring.offer(slot, [("frame", 0)])
    assert ring.oldest_untouched() == c
    ring.lease(c, ("frame", 0), "x")
    assert ring.oldest_untouched() == a
