"""Five services x killed, frozen, raising, slow: the others stay up, counting resumes, the books balance.

`resumed` is asserted without a wall-clock bound that a busy machine could miss; the measured seconds are printed
(pytest -rP); `make bench` measures them for the README.
"""

import signal
import time

import pytest

from tests.support.group import SERVICES
from tests.support.squares import FRAMES, HEIGHT, WIDTH, expected, make_clip

LIVE = {"realtime": True, "loop": True}
FROZEN_S = 3.0
ENOUGH = 10  # complete counts in a row that show that counting has resumed


@pytest.fixture
def live(group, clip):
    """A group that counts a live source."""
    g = group({"cam": {"url": str(clip), **LIVE}})

    def start(*faulty, fault=()):
        g.start(*(name for name in SERVICES if name not in faulty))
        if faulty:
            g.start(*faulty, fault=fault)
        return g

    return start


def check(g, survivors, unheard=0):
    """The others never noticed, and nothing was lost silently, counted twice or counted wrong."""
    for name in survivors:
        assert g.processes[name].poll() is None, f"{name} ended\n{g.tail()}"
    g.check_books(unheard=unheard)
    wrong = [c["seq"] for c in g.of("counts") if c["complete"] and c["count"] != expected(c["seq"])]
    assert not wrong, f"wrong counts at {wrong}"


def others(name):
    return [other for other in SERVICES if other != name]


@pytest.mark.parametrize("name", SERVICES)
def test_killed(live, name):
    g = live()
    g.wait_counts(20)
    g.signal(name, signal.SIGKILL)
    if name != "fusion.0":  # which is what would tell
        g.wait_for(lambda: g.state(name) == "down", "the others to notice")
    g.start(name)
    print(f"{name} killed: {ENOUGH} complete counts {g.wait_counts(ENOUGH):.2f} s after its start")
    check(g, SERVICES, unheard=3 if name == "fusion.0" else 0)  # counted, but on their way to us


@pytest.mark.parametrize("name", SERVICES)
def test_frozen(live, name):
    g = live()
    g.wait_counts(20)
    g.signal(name, signal.SIGSTOP)
    if name == "fusion.0":  # while it is frozen, nothing tells what the others noticed
        time.sleep(FROZEN_S)
    else:
        g.wait_for(lambda: g.state(name) == "silent", "the others to notice")
    g.signal(name, signal.SIGCONT)
    print(f"{name} frozen: {ENOUGH} complete counts {g.wait_counts(ENOUGH):.2f} s after it went on")
    check(g, SERVICES)


@pytest.mark.parametrize("name", SERVICES)
def test_raising(live, name):
    """Work that raises once costs that frame; a decoder ends, and is started again."""
    g = live(name, fault=("--raise-at", "30"))
    if name.startswith("decoder"):
        assert g.wait_exit(name) == 70
        g.start(name)
    else:
        g.wait_for(lambda: g.counters(name).get("dropped_engine_error"), "the error to be counted")
    g.wait_counts(ENOUGH)
    check(g, SERVICES)
    if name.startswith("infer"):
        missing = [c["missing"] for c in g.of("counts") if "engine_error" in c["missing"].values()]
        assert len(missing) == 1  # that frame says what it lacks, and is not a count of 0


@pytest.mark.parametrize("name", SERVICES)
def test_ten_times_slower(live, name):
    g = live(name, fault=("--slow", "10"))
    g.wait_counts(15, timeout_s=60)
    delays = [c["end_to_end_ms"] for c in g.of("counts")]
    assert max(delays[-3:]) < 2000  # the deadline: the delay is bounded whatever the load
    check(g, SERVICES)


@pytest.mark.parametrize("name", SERVICES[1:])
def test_work_that_takes_longer_than_silent_ms_is_not_silence(group, tmp_path, name):
    """Every call takes longer than a process may be silent: nothing is lost, and nobody was silent."""
    clip = make_clip(tmp_path / "short.mp4", 3)
    g = group({"cam": {"url": str(clip)}}, link__beat_ms="40", link__silent_ms="200", preprocess__group="16")
    g.start(*others(name))
    g.start(name, fault=("--slow", "300"))
    g.wait_for(g.ended, "the end", 60)
    check(g, [])
    assert g.totals() == {"frames": 3, "counted": 3, "incomplete": 0, "dropped": {}}
    assert not [m for m in g.of("service") if m["state"] == "silent"]


def test_a_lossless_part_waits_for_a_frozen_worker(group, clip):
    """It may come back, and does: no part is lost, and no frame."""
    g = group({"cam": {"url": str(clip)}}, preprocess__group="3")
    g.start()
    g.start("infer_tiles.1")
    g.wait_for(
        lambda: all(g.counters(f"infer_tiles.{i}").get("parts_inferred", 0) > 10 for i in (0, 1)), "both to work"
    )
    g.signal("infer_tiles.1", signal.SIGSTOP)
    g.wait_for(lambda: g.state("infer_tiles.1") == "silent", "the others to notice")
    g.signal("infer_tiles.1", signal.SIGCONT)
    g.wait_for(g.ended, "the end", 60)
    check(g, [])
    assert g.totals() == {"frames": FRAMES, "counted": FRAMES, "incomplete": 0, "dropped": {}}


def test_a_killed_worker_of_two_costs_at_most_the_parts_it_held(group, clip):
    """Lossless: frames other than those with a part on the lost worker are complete."""
    g = group({"cam": {"url": str(clip), "loop": True}}, preprocess__group="3")
    g.start()
    g.start("infer_tiles.1")
    g.wait_for(
        lambda: all(g.counters(f"infer_tiles.{i}").get("parts_inferred", 0) > 10 for i in (0, 1)), "both to work"
    )
    g.signal("infer_tiles.1", signal.SIGKILL)
    g.wait_counts(3 * FRAMES)
    missing = [part for c in g.of("counts") for part in c["missing"].items()]
    assert len(missing) <= 2, missing  # its credits
    assert {reason for _, reason in missing} <= {"stale"}
    assert not g.totals()["dropped"]
    check(g, SERVICES)


def test_a_lossless_source_survives_a_killed_fusion_without_losing_a_frame(group, clip):
    """Unsettled results are sent again, the ledger knows what was published."""
    g = group({"cam": {"url": str(clip), "loop": True}})
    g.start()
    g.wait_counts(20)
    for _ in range(2):
        g.signal("fusion.0", signal.SIGKILL)
        g.start("fusion.0")
        g.wait_counts(40)
    check(g, SERVICES, unheard=2 * 32)  # counted, but on their way to us when fusion was killed
    assert not g.totals()["dropped"]
    assert not g.totals()["incomplete"]


@pytest.mark.parametrize("kind", ["indexed", "without timestamps", "clock that starts again"])
def test_a_killed_decoder_goes_on_behind_its_last_frame(group, tmp_path, kind):
    clip = make_clip(tmp_path / ("clip.h264" if kind == "without timestamps" else "clip.mp4"))
    if kind == "clock that starts again":
        clip = make_clip(tmp_path / "joined.ts", sizes=((WIDTH, HEIGHT),) * 2)
    g = group({"cam": {"url": str(clip)}}, decoder__slots="3")
    g.start("fusion.0", "infer_global.0", "preprocess.0", "decoder.cam")
    g.start("infer_tiles.0", fault=("--slow", "2"))
    g.wait_counts(15)
    g.signal("decoder.cam", signal.SIGKILL)
    g.start("decoder.cam")
    g.wait_for(g.ended, "the end", 60)
    if kind != "clock that starts again":  # its second half shows the same as its first
        check(g, ["fusion.0", "infer_global.0", "infer_tiles.0", "preprocess.0"])
    totals = g.totals()
    assert totals["frames"] == FRAMES
    counted = [(c["count"], c["pts_s"]) for c in g.of("counts")]
    if kind == "without timestamps":
        assert {pts_s for _, pts_s in counted} == {None}
        assert len({count for count, _ in counted}) == 23  # no count is repeated out of turn, see check()
    assert sum(totals["dropped"].values()) <= 3  # what was in its ring


def test_a_killed_preprocess_loses_at_most_what_its_ring_held(group, clip):
    g = group({"cam": {"url": str(clip), "loop": True}})
    g.start()
    g.wait_counts(20)
    g.signal("preprocess.0", signal.SIGKILL)
    g.start("preprocess.0")
    g.wait_counts(60)
    check(g, SERVICES)
    totals = g.totals()
    assert sum(totals["dropped"].values()) + totals["incomplete"] <= 3 + 2 + 2  # slots, credits down, credits up


def test_the_end_is_reached_even_when_the_last_frames_die_with_their_worker(group, clip):
    """Without a supervisor no process answers the last parts: they are given up with a reason, and the source ends."""
    g = group({"cam": {"url": str(clip)}}, fusion__idle_s="2")
    g.start("fusion.0", "infer_global.0", "decoder.cam", "preprocess.0")
    g.start("infer_tiles.0", fault=("--slow", "4"))
    g.wait_counts(FRAMES // 2)
    g.signal("preprocess.0", signal.SIGKILL)
    g.signal("decoder.cam", signal.SIGKILL)
    g.start("decoder.cam", "preprocess.0")
    g.signal("preprocess.0", signal.SIGSTOP)
    g.signal("preprocess.0", signal.SIGCONT)
    g.wait_for(g.ended, "the end", 60)
    g.check_books()
    assert g.totals()["frames"] == FRAMES


def test_a_slow_worker_beside_a_fast_one_loses_nothing(group, clip):
    """Lossless: its parts are late, not lost, however many frames overtake them."""
    g = group({"cam": {"url": str(clip)}}, preprocess__group="6")
    g.start("fusion.0", "infer_global.0", "infer_tiles.0", "preprocess.0", "decoder.cam")
    g.start("infer_tiles.1", fault=("--slow", "30"))
    g.wait_for(g.ended, "the end", 90)
    g.check_books()
    assert g.totals() == {"frames": FRAMES, "counted": FRAMES, "incomplete": 0, "dropped": {}}


def test_many_parts_a_frame_and_a_killed_preprocess_do_not_stop_a_lossless_source(group, clip):
    """12 tile parts a frame fill the senders' windows before 64 frames are complete: a lost one is given up."""
    g = group({"cam": {"url": str(clip), "loop": True}}, preprocess__group="1", fusion__reorder_frames="64")
    g.start()
    g.wait_counts(20)
    for _ in range(2):
        g.signal("preprocess.0", signal.SIGKILL)
        g.start("preprocess.0")
        g.wait_counts(60, 60)
    check(g, SERVICES)


def test_a_service_asked_to_end_finishes_what_it_offered(group, clip):
    """SIGTERM and a new start of decoder and preprocess in a lossless group: next to nothing is lost."""
    g = group({"cam": {"url": str(clip), "loop": True}})
    g.start()
    g.wait_counts(20)
    for name in ("decoder.cam", "preprocess.0"):
        g.signal(name, signal.SIGTERM)
        assert g.wait_exit(name) == 0
        g.start(name)
        g.wait_counts(40, 60)
    check(g, SERVICES)
    totals = g.totals()
    assert set(totals["dropped"]) <= {"stale"}
    assert sum(totals["dropped"].values()) + totals["incomplete"] <= 2 + 1  # preprocess' credits, and one in its hands


def test_a_frozen_worker_does_not_keep_a_larger_source_out(group, clip, tmp_path):
    """A new ring is other memory: no process waits for a reader of the old one."""
    small = make_clip(tmp_path / "small.mp4", 40, ((176, 80),))
    g = group({"small": {"url": str(small), **LIVE}, "cam": {"url": str(clip), **LIVE}})
    g.start("fusion.0", "infer_global.0", "infer_tiles.0", "infer_tiles.1", "preprocess.0", "decoder.small")
    g.wait_counts(20)
    g.signal("infer_tiles.1", signal.SIGSTOP)
    g.start("decoder.cam")
    g.wait_for(lambda: sum(c["complete"] for c in g.of("counts", "cam")) > ENOUGH, "the larger source")
    g.check_books("cam")
