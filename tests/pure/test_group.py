"""What the first fusion makes of what all of them publish: areas, alerts, budgets, silent sources and processes."""

import json
import logging
from types import SimpleNamespace

import pytest

from peoplecounter.common.ipc.loop import Loop
from peoplecounter.common.ipc.results import counted_by
from peoplecounter.common.settings import Settings
from peoplecounter.services.fusion.group import SILENT_NS, Group

SECOND_NS = 1_000_000_000
TOTALS = {"frames": 9, "counted": 8, "incomplete": 0, "dropped": {"no_slot": 1}}
SETTINGS = {
    "areas": {"room": {"lines": ["cam.door", "yard.gate"]}},
    "alerts": {"full": {"area": "room", "above": 2}, "desk": {"zone": "yard.desk", "above": 0}},
    "workers": {"fusion": 2},
}


class Published(list):
    """A Publisher that keeps what it should publish."""

    def send(self, kind, name, content):
        self.append((kind, name, json.loads(json.dumps(content))))

    def pass_on(self, topic, body):
        self.append((*topic.decode().split("."), json.loads(body)))

    def last(self, kind, name):
        return next(content for k, n, content in reversed(self) if (k, n) == (kind, name))

    def kinds(self):
        return {kind for kind, *_ in self}


@pytest.fixture
def world(run_dir):
    """A group of the sources cam and yard, with a clock."""
    one = SimpleNamespace(now_ns=10 * SECOND_NS, known={"cam", "yard"}, published=Published())
    loop, opened = Loop(lambda: one.now_ns), []
    rt = SimpleNamespace(
        settings=Settings(run_dir=run_dir, **SETTINGS), loop=loop, name="fusion.0", log=logging.getLogger("fusion.0"),
        control=SimpleNamespace(on=lambda kind, handler: None), closing=lambda it: opened.append(it) or it,
    )  # fmt: skip
    one.group = Group(rt, one.published, lambda: one.known)
    yield one
    for it in opened:
        it.close()
    loop.close()


def status(world, name, state="online", live=True, **shapes):
    content = {"source": name, "state": state, "live": live, "seconds_since_frame": 0.5, "totals": TOTALS, **shapes}
    world.group.hear("status", name, content)


def crossing(world, name, line, ins, outs):
    world.group.hear("crossings", name, {"line": line, "totals": {"in": ins, "out": outs}})


def zone_change(people):
    return {"zone": "desk", "people": people, "totals": {"entered": 1, "left": 1 - people, "dwell_s": 0.0}}


def test_an_area_adds_the_lines_of_all_sources_and_a_lost_message_heals(world):
    status(world, "cam", lines={"door": {"in": 0, "out": 0}})
    status(world, "yard", lines={"gate": {"in": 0, "out": 0}})
    crossing(world, "cam", "door", 2, 0)
    crossing(world, "yard", "gate", 2, 1)  # two others were not heard
    world.group.update()
    area = world.published.last("areas", "room")
    assert (area["in"], area["out"], area["occupancy"], "missing" in area) == (4, 1, 3, False)
    assert world.published.last("alerts", "full")["state"] == "raised"
    status(world, "yard", lines={"gate": {"in": 2, "out": 4}})
    world.group.tell()
    assert world.published.last("areas", "room")["occupancy"] == 0
    assert world.published.last("alerts", "full")["state"] == "cleared"
    status(world, "yard")  # its line was removed: what it has counted stays true
    world.group.tell()
    area = world.published.last("areas", "room")
    assert (area["occupancy"], area["missing"]) == (0, ["yard.gate"])


def test_nothing_is_missing_of_a_source_that_was_not_heard_of(world, caplog):
    status(world, "cam", lines={"door": {"in": 0, "out": 0}})
    world.group.hear("counts", "yard", counted(1))  # of another fusion, which has not told its state yet
    world.now_ns += 2 * SILENT_NS
    world.group.tell()
    assert "missing" not in world.published.last("areas", "room")
    assert caplog.messages == ["fusion.1 is down"]
    caplog.clear()
    status(world, "yard", zones={"desk": {"people": 1}})
    world.group.tell()
    assert world.published.last("areas", "room")["missing"] == ["yard.gate"]
    assert world.published.last("alerts", "desk")["value"] == 1
    assert caplog.messages == ["the area room has lines that do not exist: yard.gate"]
    world.group.hear("zones", "yard", zone_change(0))
    world.group.update()
    assert world.published.last("alerts", "desk")["state"] == "cleared"


def counted(people, complete=True, all_ms=50.0):
    times = {"stages_ms": {"fusion": 0.2}, "hops_ms": {}, "end_to_end_ms": all_ms}
    return {"count": people, "complete": complete, "totals": TOTALS, **times}


def test_a_zone_is_no_line_and_a_line_is_no_zone(world, caplog):
    status(world, "cam", zones={"door": {"people": 0}})
    status(world, "yard", lines={"desk": {"in": 0, "out": 0}, "gate": {"in": 0, "out": 0}})
    world.group.tell()
    assert world.published.last("areas", "room")["missing"] == ["cam.door"]
    assert caplog.messages == [
        "the area room has lines that do not exist: cam.door",
        "the alert desk watches a line or zone that does not exist",
    ]


def test_budgets_are_of_live_sources_and_people_of_complete_frames(world):
    status(world, "cam", live=False)
    status(world, "yard")
    world.group.hear("counts", "cam", counted(3))
    world.group.hear("counts", "cam", counted(1, complete=False))
    world.group.tell()
    assert world.group.sources["cam"].people == 3 and "budgets" not in world.published.kinds()
    world.group.hear("counts", "yard", counted(2))
    world.group.tell()
    assert world.published.last("budgets", "group")["end_to_end"]["p95_ms"] == 50
    world.now_ns += 60 * SECOND_NS
    world.group.tell()
    assert world.published.last("budgets", "group") == {}


def test_somebody_who_comes_and_goes_in_one_batch_of_messages_is_an_alert(world):
    status(world, "yard", zones={"desk": {"people": 0}})
    for people in (1, 0):
        world.group._pass_on(b"zones.yard", json.dumps(zone_change(people)).encode())
    states = [content["state"] for kind, _, content in world.published if kind == "alerts"]
    assert states == ["raised", "cleared"]


def test_sources_of_a_silent_fusion_are_stale_and_those_that_were_removed_are_forgotten(world):
    world.known = {"cam", "door", "hall"}  # two of them are counted by fusion.1
    status(world, "cam")
    status(world, "hall", state="ended")
    world.now_ns += SILENT_NS + 1
    status(world, "cam")
    crossing(world, "hall", "gate", 5, 2)
    world.group.hear("dropped", "hall", {"totals": TOTALS | {"frames": 35}})
    world.group.tell()
    told = {name: content for kind, name, content in world.published if kind == "status"}
    assert told.keys() == {"door", "hall"} and told["hall"]["state"] == "ended"
    assert (told["door"]["state"], told["door"]["detail"]) == ("stale", "fusion.1 does not answer")
    assert told["hall"]["totals"]["frames"] == 35 and told["hall"]["lines"] == {"gate": {"in": 5, "out": 2}}
    assert world.group.sources["cam"].state(world.now_ns) == "online"
    world.known = {"cam"}
    world.group.tell()
    assert world.group.sources.keys() == {"cam"}


def test_a_fusion_that_does_not_run_is_down(world, caplog):
    world.group.tell()
    assert "service" not in world.published.kinds()
    world.now_ns += SILENT_NS + 1
    world.group.tell()
    assert world.published.last("service", "fusion.1")["state"] == "down" and "fusion.1 is down" in caplog.messages


@pytest.mark.parametrize("body", [b'{"a": 1}', b"[1]", b"7", b"no JSON", b'{"totals": 1}'])
@pytest.mark.parametrize("kind", ["counts", "dropped", "status", "crossings", "zones"])
def test_what_no_fusion_sends_is_not_passed_on(world, kind, body):
    with pytest.raises(ValueError):
        world.group._pass_on(f"{kind}.yard".encode(), body)
    assert not world.published


def test_which_fusion_counts_a_source_is_the_same_in_every_process():
    assert [counted_by(name, 2) for name in ("cam", "door", "yard", "hall")] == [0, 1, 0, 1]
    loads = [sum(counted_by(f"cam{i}", 4) == number for i in range(400)) for number in range(4)]
    assert sum(loads) == 400 and min(loads) > 70
