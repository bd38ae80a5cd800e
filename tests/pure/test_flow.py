"""What moves at a source: events of made-up walkers, and that a kill at any moment neither loses nor doubles any."""

import random

import msgspec
import numpy as np
import pytest

from peoplecounter.common import events
from peoplecounter.common.counting import LineSettings, ZoneSettings
from peoplecounter.common.events import Crossing, EventLog, Minute, ShapeChange, ZoneChange
from peoplecounter.common.ipc.messages import FrameHeader
from peoplecounter.common.process.journal import Journal
from peoplecounter.services.fusion.clock import SourceClock, start_of
from peoplecounter.services.fusion.flow import Flow, SeenFrame
from peoplecounter.services.fusion.ledger import Ledger, Totals

FPS, SIZE = 10, (1000, 1000)
START_S = 1_795_676_400.0  # a whole minute
LINE = LineSettings(points=((0.5, 0.0), (0.5, 1.0)), inside=(0.9, 0.5))
ZONE = ZoneSettings(points=((0.6, 0.0), (0.8, 0.0), (0.8, 1.0), (0.6, 1.0)), enter_s=0.3, leave_s=0.3)
SHAPES = {"door": LINE, "queue": ZONE}


def header(seq, pts_s=None, live=False, size=SIZE):
    return FrameHeader(
        source="cam", seq=seq, pts_s=seq / FPS if pts_s is None else pts_s, captured_ns=int(1e9 * seq / FPS),
        deadline_ns=int(live), width=size[0], height=size[1],
    )  # fmt: skip


def detected(*feet_x):
    x = np.array(feet_x, float).reshape(-1, 1) * SIZE[0]
    y = 500.0 + 120 * np.arange(len(x)).reshape(-1, 1)
    boxes = np.hstack([x - 20, y - 100, x + 20, y, np.full_like(x, 0.9), np.full_like(x, 1)]).astype(np.float32)
    return boxes


def there_and_back(seq):
    """Five people who walk between x = 0.2 and 0.85, one after the other."""
    return detected(*(0.2 + 0.65 * abs((seq + 37 * i) % 130 / 65 - 1) for i in range(5)))


class Fusion:
    """What fusion does with a flow: it counts a frame in the journal, then logs and publishes."""

    def __init__(self, folder, shapes=SHAPES):
        self.folder, self.published = folder, []
        self.ledger = Ledger(Journal(folder / "fusion.cam.journal", Totals))
        self.flow = Flow("cam", EventLog(folder / "data", "cam", 64 << 20), self.ledger.totals.flow)
        if self.flow.set_shapes(shapes, START_S):
            self.keep()
        if self.ledger.totals.untracked:
            self.flow.frame(self.ledger.totals.untracked)
            self.keep()

    def keep(self, die_after=""):
        self.ledger.followed(self.flow.keep())
        if die_after != "journal":
            self.flow.log()

    def count(self, seq, people=None, complete=True, die_after="", **options):
        """`die_after` a step of this name it is killed."""
        boxes = there_and_back(seq) if people is None else people
        ones = np.ones(len(boxes), bool).tobytes()
        frame = SeenFrame(header(seq, **options), boxes.tobytes(), ones, ones, complete, START_S + seq / FPS, START_S)
        if die_after == "merge":
            return
        self.ledger.count(frame)
        if die_after == "count":
            return
        _, found = self.flow.frame(frame)
        if die_after == "frame":
            return
        self.keep(die_after)
        self.published += found

    def close(self):
        self.ledger.close()
        self.flow.close()

    def logged(self, *kinds):
        read = [r for path in events.files(self.folder / "data" / events.FOLDER, "cam") for r, _ in events.read(path)]
        return [r for r in read if isinstance(r, kinds)]

    def crossings(self):
        return [(r.number, r.direction, r.time_s) for r in self.logged(Crossing)]


@pytest.fixture
def fusion(tmp_path):
    one = Fusion(tmp_path)
    yield one
    one.close()


def test_walkers_cross_and_visit_and_every_event_says_the_totals(fusion):
    for seq in range(700):
        fusion.count(seq)
    crossed = [content for kind, content in fusion.published if kind == "crossings"]
    assert [c["number"] for c in crossed] == list(range(1, len(crossed) + 1))
    assert crossed[-1]["totals"] == {d: sum(c["direction"] == d for c in crossed) for d in ("in", "out")}
    assert 50 <= len(crossed) <= 56  # five walkers, eleven passages each, the first and last of them cut off
    assert {c["track"] for c in crossed} == {f"cam/{fusion.flow.record.run}/{n}" for n in range(1, 6)}
    changes = fusion.logged(ZoneChange)
    assert fusion.flow.zone_totals("queue").entered == sum(c.entered for c in changes) > 20
    assert all(c.dwell_s > 0 for c in changes if not c.entered)
    assert {r.n for r in fusion.logged(Crossing, ZoneChange, Minute, ShapeChange)} == set(
        range(1, fusion.flow.sums.n + 1)
    )


def test_minutes_contain_every_crossing_and_say_how_much_was_seen(fusion):
    for seq in range(2100):
        if not 700 <= seq < 1200:  # fifty seconds without a picture
            fusion.count(seq, complete=seq % 10 > 0)
    fusion.flow.end_minute()
    fusion.keep()
    minutes = fusion.logged(Minute)
    assert [m.start_s - START_S for m in minutes] == [0, 60, 120, 180]
    assert [round(m.observed_s) for m in minutes] == [60, 10, 60, 30]
    assert [round(m.complete_s) for m in minutes] == [54, 9, 54, 27]
    assert all(m.people_max == 5 and m.people_mean == pytest.approx(5, abs=0.01) for m in minutes)
    totals = fusion.flow.line_totals("door")
    assert sum(m.lines["door"].ins for m in minutes) == totals.ins
    assert sum(m.lines["door"].outs for m in minutes) == totals.outs


@pytest.mark.parametrize("seed", range(6))
def test_a_kill_at_any_moment_changes_nothing(tmp_path, seed):
    """Nobody is forgotten in the middle of a crossing: its track is in the journal, too."""
    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    whole = Fusion(tmp_path / "whole")
    for seq in range(400):
        whole.count(seq)
    rng, killed, seq = random.Random(seed), Fusion(tmp_path / "killed"), 0
    while seq < 400:
        fate = rng.choice(["merge", "count", "frame", "journal", ""]) if rng.random() < 0.1 else ""
        killed.count(seq, die_after=fate)
        if fate or rng.random() < 0.05:
            killed.close()
            killed = Fusion(tmp_path / "killed")
        seq = killed.ledger.totals.next_seq
    assert killed.crossings() == whole.crossings()
    assert [r.dwell_s for r in killed.logged(ZoneChange)] == [r.dwell_s for r in whole.logged(ZoneChange)]
    assert killed.flow.sums.lines == whole.flow.sums.lines
    assert msgspec.json.encode(killed.logged(Minute)) == msgspec.json.encode(whole.logged(Minute))
    whole.close()
    killed.close()


def test_after_a_reboot_the_totals_go_on(tmp_path):
    first = Fusion(tmp_path)
    for seq in range(330):
        first.count(seq)
    totals = first.flow.line_totals("door").public()
    first.close()
    (tmp_path / "fusion.cam.journal").unlink()
    second = Fusion(tmp_path)
    assert second.flow.line_totals("door").public() == totals
    assert second.flow.record.run != first.flow.record.run  # no number of a track is used again
    for seq in range(330):
        second.count(seq)
    numbers = [r.number for r in second.logged(Crossing)]
    assert numbers == list(range(1, len(numbers) + 1))
    assert sum(second.flow.line_totals("door").public().values()) == len(numbers) > sum(totals.values())
    second.flow.end_minute()
    second.keep()
    assert sum(m.lines["door"].ins for m in second.logged(Minute) if m.lines) == second.flow.line_totals("door").ins
    second.close()


def test_a_log_on_a_full_disk_waits_and_is_written_later(fusion, monkeypatch):
    def full(records):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(fusion.flow._log, "append", full)
    for seq in range(200):
        fusion.count(seq)
    assert fusion.flow.line_totals("door").ins and not fusion.logged(Crossing)
    monkeypatch.undo()
    fusion.flow._retry_s = 0.0  # a second later
    fusion.count(200)
    numbers = [number for number, *_ in fusion.crossings()]
    assert numbers == list(range(1, fusion.flow.sums.crossings + 1))


def test_another_geometry_is_another_revision_and_the_totals_go_on(fusion):
    for seq in range(330):
        fusion.count(seq)
    before = fusion.flow.line_totals("door").ins
    moved = LINE.model_copy(update={"points": ((0.55, 0.0), (0.55, 1.0))})
    assert fusion.flow.set_shapes({"door": moved}, START_S) and not fusion.flow.set_shapes({"door": moved}, START_S)
    for seq in range(330, 660):
        fusion.count(seq)
    revisions = [(r.name, r.revision, bool(r.settings)) for r in fusion.logged(ShapeChange)]
    assert revisions == [("door", 1, True), ("queue", 1, True), ("queue", 1, False), ("door", 2, True)]
    by_revision = [sum(r.revision == n for r in fusion.logged(Crossing)) for n in (1, 2)]
    assert all(by_revision) and sum(by_revision) == fusion.flow.sums.crossings
    assert fusion.flow.line_totals("door").ins > before


def test_an_incomplete_frame_moves_nobody_and_the_next_event_says_so(fusion):
    for seq, x in enumerate(np.linspace(0.3, 0.48, 20)):
        fusion.count(seq, detected(x))
    for seq in range(20, 30):
        fusion.count(seq, detected(), complete=False)
    for seq, x in enumerate(np.linspace(0.58, 0.7, 15), start=30):
        fusion.count(seq, detected(x))
    (crossing,) = fusion.logged(Crossing)
    assert (crossing.direction, crossing.complete) == ("in", False)


def test_a_camera_that_changes_its_resolution_goes_on(fusion):
    for seq, x in enumerate(np.linspace(0.3, 0.45, 20)):
        fusion.count(seq, detected(x))
    for seq, x in enumerate(np.linspace(0.46, 0.7, 25), start=20):
        fusion.count(seq, detected(x) * np.array([0.5, 0.5, 0.5, 0.5, 1, 1], np.float32), size=(500, 500))
    assert [r.track.rpartition("/")[2] for r in fusion.logged(Crossing)] == ["1"]


def test_an_error_in_the_middle_of_a_frame_does_not_stay(fusion, monkeypatch):
    """What a source state does with a flow that fails."""
    for seq in range(30):
        fusion.count(seq)
    with monkeypatch.context() as broken:
        broken.setattr(fusion.flow._zones["queue"], "update", lambda people: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            fusion.count(30)
    fusion.flow.forget_tracks()
    for seq in range(31, 300):
        fusion.count(seq)
    assert fusion.flow.sums.crossings > 10


def test_tracks_of_another_version_are_begun_anew_and_totals_go_on(tmp_path):
    one = Fusion(tmp_path)
    for seq in range(330):
        one.count(seq)
    totals = one.flow.line_totals("door")
    one.close()
    again = Flow("cam", EventLog(tmp_path / "data", "cam", 64 << 20), b"\x81\xa1x\x01")
    assert again.line_totals("door") == totals and len(again.tracker.state) == 0
    again.close()


@pytest.mark.parametrize("pts_s", [0.0, 100.0])
def test_all_tracks_end_when_a_file_begins_again_or_its_time_jumps(fusion, pts_s):
    for seq in range(50):
        fusion.count(seq, detected(0.45))
    assert fusion.flow.tracker.last_number == 1
    fusion.count(50, detected(0.55), pts_s=pts_s)
    assert fusion.flow.tracker.last_number == 2
    assert not fusion.logged(Crossing)


def test_below_five_frames_a_second_a_warning_says_that_lines_cannot_be_trusted(fusion):
    for seq in range(100):
        fusion.count(seq, detected(0.4))
    assert fusion.flow.warning() == "" and "warning" not in fusion.flow.public()
    for seq in range(100, 145):
        fusion.count(seq, detected(0.4), pts_s=10 + (seq - 100) / 4)
    assert fusion.flow.public()["warning"] == "only 4.0 frames/s are counted: lines and zones need 5"


def test_time_of_a_file_goes_on_when_it_is_played_again():
    clock, began_s = SourceClock(), START_S
    times = [clock.of(header(seq, pts_s=seq % 20 / FPS), began_s + seq / 50, None) for seq in range(60)]
    assert np.allclose(np.diff([time_s for time_s, *_ in times]), 1 / FPS)
    assert np.allclose([utc_s for _, utc_s, _ in times], began_s + np.arange(60) / FPS)
    assert [seq for seq, (*_, anew) in enumerate(times) if anew] == [20, 40]


def test_another_file_of_the_same_name_has_a_time_of_its_own(tmp_path):
    log = EventLog(tmp_path / "data", "cam", 64 << 20)
    first = Flow("cam", log, change="a")
    first.frame(seen(header(0), START_S))
    assert first.record.clock.began_s == START_S
    for flow in (Flow("cam", log, first.keep(), "b"), first):
        if flow is first:
            flow.begin_anew("b")
        flow.frame(seen(header(1, pts_s=0.0), START_S + 5 * 3600))
        assert flow.record.clock.began_s == START_S + 5 * 3600
    again = Flow("cam", log, first.keep(), "b")
    assert again.record.clock.began_s == START_S + 5 * 3600
    log.close()


def seen(one, captured_s):
    return SeenFrame(one, b"", b"", b"", True, captured_s, None)


@pytest.mark.parametrize("set_back_s", [5, 3600])
def test_a_clock_that_is_set_back_begins_another_minute(fusion, set_back_s):
    """A camera has this machine's time."""
    for seq in range(1200):
        at = START_S + seq / FPS - (set_back_s if seq >= 610 else 0)
        fusion.flow.frame(SeenFrame(header(seq, live=True), b"", b"", b"", True, at, None))
    fusion.flow.end_minute()
    minutes = [r for r in fusion.flow.record.unlogged if isinstance(r, Minute)]
    assert all(m.observed_s <= 60 for m in minutes)
    assert sum(m.observed_s for m in minutes) == pytest.approx(119.8, abs=0.2)


def test_a_camera_has_the_time_of_this_machine():
    """Whatever its own timestamps say."""
    clock = SourceClock()
    assert clock.of(header(7, pts_s=99.0, live=True), START_S, None) == (0.7, START_S, False)
    assert clock.of(header(8, pts_s=4.0, live=True), START_S + 5, None) == (0.8, START_S + 5, False)


@pytest.mark.parametrize(
    "text, zone, utc_s",
    [("2026-11-26T08:00:00", "Europe/Berlin", 1795676400), ("2026-11-26T08:00:00+05:45", "UTC", 1795659300),
     ("", "UTC", None)],
)  # fmt: skip
def test_the_start_of_a_file_is_local_time_unless_it_says_otherwise(text, zone, utc_s):
    assert start_of(text, zone) == utc_s
