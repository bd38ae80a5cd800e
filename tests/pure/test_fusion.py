"""Fusion's rules without a process: what it accepts, its ledger, its sources, the processes of the group, timings."""

import json

import numpy as np
import pytest

from peoplecounter.common.errors import AppError
from peoplecounter.common.ipc.messages import Confirmed, Detections, Dropped, FrameHeader, Part, Report, Status
from peoplecounter.common.process.journal import Journal
from peoplecounter.common.settings import Settings, SourceSettings
from peoplecounter.common.sources import write_change
from peoplecounter.common.views import View
from peoplecounter.services.fusion.flow import SeenFrame
from peoplecounter.services.fusion.join import PendingFrame
from peoplecounter.services.fusion.ledger import Ledger, Totals
from peoplecounter.services.fusion.members import Members
from peoplecounter.services.fusion.service import is_acceptable
from peoplecounter.services.fusion.state import REFRESH_NS, STALE_NS, SourceStates
from peoplecounter.services.fusion.timings import timings

MS = 1_000_000


def header(**changes):
    fields = {"source": "cam", "seq": 7, "pts_s": 0.1, "captured_ns": 0, "deadline_ns": 0, "width": 64, "height": 64}
    return FrameHeader(**{**fields, **changes})


def detections(part, boxes=b"", began_ns=0, ended_ns=0, gpu_ns=0, **changes):
    return Detections(header(**changes), part, boxes, began_ns, ended_ns, gpu_ns)


VIEW = View(64, 64, 0, 0)
GLOBAL, TILES = Part("global", 0, 2, 0, (VIEW,)), Part("tiles", 0, 2, 1, (VIEW,) * 8)
BOX = np.array([[1, 2, 3, 4, 0.9, 0, 0, 1]], "<f4")


@pytest.mark.parametrize(
    "body, sender, acceptable",
    [
        (Status("cam", "online"), "decoder.cam", True),
        (Status("cam", "online"), "decoder.yard", False),
        (Status("yard", "online"), "decoder.yard", False),
        (detections(GLOBAL, BOX.tobytes()), "infer_global.0", True),
        (detections(GLOBAL, source="yard"), "infer_global.0", False),
        (detections(Part("tiles", 5, 2, 1, (VIEW,))), "infer_tiles.0", False),
        (detections(GLOBAL, BOX.tobytes()[:-1]), "infer_global.0", False),
        (detections(GLOBAL, (BOX * np.nan).tobytes()), "infer_global.0", False),
        (Confirmed(header()), "decoder.cam", True),
        (Confirmed(header()), "infer_tiles.0", False),
        (Dropped(header(), "no_slot"), "decoder.cam", True),
        (Dropped(header(), "boredom"), "decoder.cam", False),
    ],
)
def test_what_fusion_accepts(body, sender, acceptable):
    assert is_acceptable(body, sender, {"cam"}.__contains__) == acceptable


def test_a_ledger_is_written_before_it_is_read_and_continues_after_a_restart(tmp_path):
    path = tmp_path / "fusion.cam.journal"
    ledger = Ledger(Journal(path, Totals))
    for seq, complete in ((0, True), (1, False)):
        ledger.count(SeenFrame(header(seq=seq), b"", b"", b"", complete, 0.0, None))
        ledger.followed(b"")
    ledger.drop(2, 3, "no_credit", b"")
    ledger.drop(5, 1, "no_credit", b"")
    ledger.close()
    again = Ledger(Journal(path, Totals))
    public = {"frames": 6, "counted": 2, "incomplete": 1, "dropped": {"no_credit": 4}}
    assert again.totals.public() == public
    assert public["frames"] == public["counted"] + sum(public["dropped"].values())
    again.close()


@pytest.fixture
def sources(run_dir):
    settings = Settings(run_dir=run_dir, sources={"cam": {"url": "rtsp://10.0.0.1/1"}})
    resumed = []
    states = SourceStates(settings, 0, lambda name, next_seq: resumed.append((name, next_seq)))
    states.resumed, states.settings = resumed, settings
    yield states
    states.close()


def test_a_source_waits_for_its_decoder_then_goes_stale_without_it(sources):
    source = sources.get("cam", 0)
    assert sources.resumed == [("cam", 0)] and source.published_state(10 * STALE_NS) == "waiting"
    source.state, source.heard_ns = "online", STALE_NS
    assert source.published_state(2 * STALE_NS) == "online"
    assert source.published_state(2 * STALE_NS + 1) == "stale"
    source.state = "ended"
    assert source.public("cam", 10 * STALE_NS)["state"] == "ended"


def test_a_source_that_was_just_added_is_found_and_one_that_was_removed_may_end_first(sources):
    now = REFRESH_NS
    assert not sources.is_known("yard", now)
    write_change(sources.settings, "yard", SourceSettings(url="yard.mp4"))
    assert not sources.is_known("yard", now)  # the sources were read a moment ago
    now += REFRESH_NS + 1
    assert sources.is_known("yard", now)
    yard = sources.get("yard", now)
    yard.state, yard.heard_ns = "online", now
    write_change(sources.settings, "yard", None)
    sources.refresh(now)
    assert sources.is_known("yard", now) and "yard" in sources.names()
    yard.state = "ended"
    sources.refresh(now)
    assert not sources.is_known("yard", now) and "yard" not in sources.names()


def test_a_file_that_is_added_again_waits_again(sources):
    write_change(sources.settings, "yard", SourceSettings(url="yard.mp4"))
    sources.refresh(0)
    yard = sources.get("yard", 0)
    yard.state, yard.detail = "ended", "removed"
    write_change(sources.settings, "yard", SourceSettings(url="yard.mp4"))
    sources.refresh(0)
    assert (yard.state, yard.detail) == ("waiting", "")


def test_an_unreadable_change_changes_nothing(sources, run_dir):
    sources.get("cam", 0)
    (run_dir / "sources").mkdir()
    (run_dir / "sources" / "yard.json").write_text(json.dumps({"url": "no id"}))
    with pytest.raises(AppError, match=r"yard\.json is not a source"):
        sources.refresh(0)
    assert sources.names() == {"cam"}


def test_processes_are_up_when_they_report_and_their_changes_are_logged():
    members = Members()
    report = Report("infer_tiles.0", 42, {"parts_inferred": 3})
    assert members.report(report, 0) == ""
    assert members.processes["infer_tiles.0"].public(2_000 * MS) == {
        "state": "up", "seconds": 2.0, "pid": 42, "counters": {"parts_inferred": 3}
    }  # fmt: skip
    assert members.change("infer_tiles.0", "silent", 3_000 * MS) == "infer_tiles.0 is silent"
    assert members.change("infer_tiles.0", "silent", 4_000 * MS) == ""
    assert members.processes["infer_tiles.0"].public(4_000 * MS)["seconds"] == 1.0
    assert members.report(report, 5_000 * MS) == "infer_tiles.0 is up again"
    assert members.change("infer_tiles.0", "down", 6_000 * MS) == "infer_tiles.0 is down"
    assert members.change("decoder.cam", "ended", 6_000 * MS) == ""
    members.forget("decoder.cam")
    assert list(members.processes) == ["infer_tiles.0"]


def test_timings_of_a_frame_in_order():
    marks = {"decode": (1 * MS, 4 * MS), "copy": (4 * MS, 5 * MS), "preprocess": (6 * MS, 8 * MS)}
    frame = PendingFrame(header(marks=marks), parts=3)
    frame.answers = {
        ("global", 0): detections(GLOBAL, began_ns=8 * MS, ended_ns=10 * MS, gpu_ns=1 * MS),
        ("tiles", 0): detections(TILES, began_ns=9 * MS, ended_ns=15 * MS, gpu_ns=2 * MS),
        ("tiles", 1): detections(TILES, began_ns=11 * MS, ended_ns=20 * MS, gpu_ns=2 * MS),
    }
    stages, hops = timings(frame, 21 * MS, 22 * MS)
    assert stages == {
        "decode": 3, "copy": 1, "preprocess": 2, "infer_global": 2, "infer_tiles": 11, "fusion": 1,
        "infer_global_gpu": 1, "infer_tiles_gpu": 4,
    }  # fmt: skip
    assert hops == {
        "packet>decode": 1, "decode>copy": 0, "copy>preprocess": 1, "preprocess>infer_global": 0,
        "preprocess>infer_tiles": 1, "infer_tiles>fusion": 1, "fusion_wait": 10,
    }  # fmt: skip


def test_an_early_frame_is_preprocessed_while_it_is_decoded():
    """Its copy, not preprocess, is what the engines wait for, and the decoder's times come with its confirmation."""
    frame = PendingFrame(header(early=True, marks={"preprocess": (1 * MS, 2 * MS)}), parts=2)
    frame.answers = {("global", 0): detections(GLOBAL, began_ns=7 * MS, ended_ns=8 * MS)}
    frame.confirmed = header(marks={"decode": (1 * MS, 5 * MS), "copy": (5 * MS, 6 * MS)})
    _, hops = timings(frame, 9 * MS, 10 * MS)
    assert hops["copy>infer_global"] == 1 and hops["infer_global>fusion"] == 1
    assert "preprocess>infer_global" not in hops and "fusion_wait" not in hops
