"""What a run that has ended says of its files: a loss is never silent."""

import pytest

from peoplecounter.common.errors import BAD_DATA, SOFTWARE
from peoplecounter.deploy.group.subscribe import Tally


def ended(frames, counted, **dropped):
    tally = Tally()
    tally.add("status", "door", {"state": "ended", "detail": "", "totals": totals(frames, counted, **dropped)})
    return tally


def totals(frames, counted, **dropped):
    return {"frames": frames, "counted": counted, "incomplete": 0, "dropped": dropped}


@pytest.mark.parametrize(
    "tally",
    [ended(4, 4), ended(4, 4, stale=0), ended(4, 3, decode_error=1), ended(0, 0)],
)
def test_nothing_was_lost(tally):
    assert tally.lost(set()) is None


def test_frames_that_were_lost_are_named_with_their_reasons():
    text, code = ended(9, 5, stale=1, engine_error=2, decode_error=1).lost(set())
    assert text == "door is not counted completely: 3 of 9 frames were dropped (2 engine_error, 1 stale)"
    assert code == SOFTWARE


def test_a_file_of_damaged_frames_only_is_bad_data():
    text, code = ended(3, 0, decode_error=3).lost(set())
    assert text == "door is not counted: none of its 3 frames could be decoded"
    assert code == BAD_DATA


def test_a_live_source_or_one_that_has_not_ended_may_drop():
    assert ended(9, 5, no_credit=4).lost({"door"}) is None
    tally = Tally()
    tally.add("status", "door", {"state": "online", "detail": "", "totals": totals(9, 5, stale=4)})
    assert tally.lost(set()) is None
