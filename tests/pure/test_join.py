"""Every seq is settled exactly once, in order, whatever arrives and whatever does not."""

from hypothesis import given, settings
from hypothesis import strategies as st

from peoplecounter.common.ipc.messages import Confirmed, Detections, Dropped, FrameHeader, Part, Status
from peoplecounter.services.fusion.join import LOOK_NS, SOON_NS, Ended, Gap, Join, Settled

MS = 1_000_000
PARTS = [Part("global", 0, 3), Part("tiles", 0, 3), Part("tiles", 1, 3)]


def header(seq, deadline_ns=0, source="cam", early=False):
    known = {"pts_s": 0, "captured_ns": 0, "width": 9, "height": 9}
    return FrameHeader(source=source, seq=seq, deadline_ns=deadline_ns, early=early, **known)


def answer(seq, part, deadline_ns=0, early=False):
    return Detections(header(seq, deadline_ns, early=early), part, b"", 0, 0)


def new_join(reorder=4, idle_ms=1000):
    join = Join(reorder, idle_ms * MS)
    join.resume("cam", 0)
    return join


def settled(join, now_ns=0):
    return list(join.settle(now_ns))


def test_results_are_awaited_until_a_frame_is_complete_or_takes_long():
    join = new_join()
    assert not join.awaits(0)
    for part in PARTS:
        join.add(answer(0, part), part, 0)
        assert join.awaits(SOON_NS - 1) is (part != PARTS[-1])
    join.add(answer(1, PARTS[0]), None, MS)
    assert join.awaits(SOON_NS) and not join.awaits(SOON_NS + MS)
    settled(join)
    assert join.awaits(MS)


def test_a_frame_is_settled_when_all_its_parts_are():
    join = new_join()
    for part in PARTS:
        assert settled(join) == []
        assert join.add(answer(0, part), part, 0)
    (due,) = settled(join)
    assert due.frame.missing("stale") == {}
    assert due.frame.receipts == PARTS


def test_a_late_or_repeated_answer_is_refused():
    join = new_join()
    assert join.add(answer(0, PARTS[0]), 1, 0)
    assert not join.add(answer(0, PARTS[0]), 2, 0)
    for part in PARTS[1:]:
        join.add(answer(0, part), 3, 0)
    assert len(settled(join)) == 1
    assert not join.add(answer(0, PARTS[1]), 4, 0)


def test_a_dropped_part_leaves_the_frame_incomplete_with_its_reason():
    join = new_join()
    join.add(answer(0, PARTS[0]), 1, 0)
    join.add(Dropped(header(0), "engine_error", PARTS[1]), 2, 0)
    join.add(answer(0, PARTS[2]), 3, 0)
    (due,) = settled(join)
    assert due.frame.missing("stale") == {"tiles.0": "engine_error"}


def test_a_frame_whose_every_part_was_dropped_is_dropped_with_a_reason_and_not_counted_as_zero():
    join = new_join()
    for part in PARTS:
        join.add(Dropped(header(0), "deadline", part), 1, 0)
    (due,) = settled(join)
    assert not due.frame.answers
    assert due.reason == "deadline"


def test_the_deadline_ends_the_wait():
    join = new_join()
    join.add(answer(0, PARTS[0], deadline_ns=50 * MS), 1, 0)
    assert settled(join, 50 * MS) == []
    (due,) = settled(join, 50 * MS + LOOK_NS)
    assert due.frame.missing(due.reason) == {"tiles.0": "deadline", "tiles.1": "deadline"}


def test_a_lost_lossless_frame_is_given_up_when_more_later_ones_were_answered_than_the_rings_hold():
    join = new_join(reorder=4)
    for seq in range(1, 5):
        for part in PARTS:
            join.add(answer(seq, part), 1, 0)
    assert settled(join) == []
    for part in PARTS:
        join.add(answer(5, part), 1, 0)
    assert settled(join) == []  # it may still be on its way
    due = settled(join, 201 * MS)  # a fifth of idle_ns
    assert due[0] == Gap("cam", 0, 1)
    assert [d.frame.header.seq for d in due[1:]] == [1, 2, 3, 4, 5]


def test_a_branch_that_is_behind_is_waited_for():
    """infer_tiles still connects to fusion while infer_global has answered the first frames: nothing is given up."""
    join = new_join(reorder=2)
    for seq in range(20):
        join.add(answer(seq, PARTS[0]), 1, 0)
    assert settled(join) == []


def test_a_slow_workers_frame_is_waited_for_however_many_later_ones_are_complete():
    """Two workers, one of them much slower: its frame is held by a ring, so it is not lost."""
    join = new_join(reorder=4)
    join.add(answer(0, PARTS[0]), 1, 0)
    for seq in range(1, 40):
        for part in PARTS:
            join.add(answer(seq, part), 1, seq * 50 * MS)
        join.held("cam", 0, seq * 50 * MS)
        assert settled(join, seq * 50 * MS) == []


def test_a_lost_head_is_given_up_though_later_frames_are_held_for_ever():
    """The senders' windows are full, nothing moves: only the head's own silence may count."""
    join = new_join(reorder=1000, idle_ms=1000)
    join.add(answer(0, PARTS[0]), 1, 0)
    for at_ms in range(0, 1100, 100):
        join.add(answer(1, PARTS[0]), 1, at_ms * MS)
        join.held("cam", 2, at_ms * MS)
    (due,) = settled(join, 1001 * MS)
    assert due.frame.header.seq == 0


def test_drops_of_later_frames_do_not_hurry_a_slow_one():
    join = new_join(reorder=2)
    join.add(answer(0, PARTS[0]), 1, 0)
    for seq in range(1, 50):
        join.add(Dropped(header(seq), "no_slot"), 1, 0)
    assert settled(join) == []


def test_the_last_lost_frames_are_given_up_when_no_ring_holds_them_any_more():
    join = new_join(idle_ms=1000)
    join.add(answer(0, PARTS[0]), 1, 0)
    join.end(Status("cam", "ended", 3), "end", 0)
    join.held("cam", 2, 900 * MS)
    (first,) = settled(join, 1500 * MS)
    assert first.frame.missing("stale") == {"tiles.0": "stale", "tiles.1": "stale"}
    assert settled(join, 1899 * MS) == []  # seq 2 was held until 900 ms
    gap, end = settled(join, 1899 * MS + LOOK_NS)
    assert gap == Gap("cam", 1, 2)
    assert end == Ended("cam", 3, ["end"])


def test_a_restarted_fusion_goes_on_where_the_ledger_ends():
    join = Join(4, MS)
    join.resume("cam", 10)
    assert not join.add(answer(9, PARTS[0]), 1, 0)
    join.add(Dropped(header(10), "deadline"), 1, 0)
    assert [d.frame.header.seq for d in settled(join)] == [10]


def test_a_seq_far_ahead_is_one_gap_however_long():
    join = new_join()
    join.add(Dropped(header(2**60, deadline_ns=1), "no_slot"), 1, 0)
    gap, one = settled(join, 2)
    assert gap.count == 2**60
    assert one.frame.header.seq == 2**60


@given(st.data())
@settings(deadline=None, max_examples=150)
def test_every_seq_exactly_once_and_in_order(data):
    """Parts answered, dropped, repeated or lost in any order, of any frame, at any time."""
    frames = data.draw(st.integers(1, 12))
    results = [(seq, part) for seq in range(frames) for part in PARTS]
    arriving = data.draw(st.lists(st.sampled_from(results), max_size=40))
    join, seen = new_join(reorder=3, idle_ms=10), []

    def take(now):
        for due in settled(join, now):
            if isinstance(due, Gap):
                seen.extend(range(due.first, due.first + due.count))
            elif isinstance(due, Settled):
                seen.append(due.frame.header.seq)

    now = 0
    for seq, part in arriving:
        now += data.draw(st.integers(0, 4)) * MS
        dropped = data.draw(st.booleans())
        deadline = data.draw(st.sampled_from([0, 0, (seq + 5) * MS]))
        body = Dropped(header(seq, deadline), "stale", part) if dropped else answer(seq, part, deadline)
        join.add(body, None, now)
        take(now)
    join.end(Status("cam", "ended", frames), None, now)
    take(now + 11 * MS)
    assert seen == list(range(frames))


def test_a_frame_that_was_offered_early_counts_only_when_its_decoder_confirms_it():
    """What a GPU made of pixels that were never decoded must not be counted."""
    for confirmed_first in (False, True):
        join = new_join()
        if confirmed_first:
            assert join.add(Confirmed(header(0, early=True)), 9, 0)
        for part in PARTS:
            assert settled(join) == []
            assert join.add(answer(0, part, early=True), part, 0)
        if not confirmed_first:
            assert settled(join) == []
            assert join.add(Confirmed(header(0, early=True)), 9, 0)
        (due,) = settled(join)
        assert due.frame.decoded and due.frame.missing("stale") == {} and 9 in due.frame.receipts


def test_an_early_frame_that_was_not_decoded_is_dropped_whatever_was_answered():
    join = new_join()
    for part in PARTS:
        join.add(answer(0, part, early=True), part, 0)
    join.add(Dropped(header(0, early=True), "decode_error"), 4, 0)
    (due,) = settled(join)
    assert due.frame.dropped == "decode_error"
    for part in PARTS:
        join.add(answer(1, part, deadline_ns=5 * MS, early=True), part, 0)
    (due,) = settled(join, 6 * MS)  # its decoder died
    assert not due.frame.decoded
