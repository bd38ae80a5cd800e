"""What is published for Home Assistant: descriptions, states, and never a number that is not known."""

import json

import pytest

from peoplecounter.deploy.bridge.home_assistant import (
    ANEW_S,
    EXPIRE_S,
    GONE_S,
    REFRESH_S,
    ROUND_S,
    SILENT_S,
    TICK_S,
    HomeAssistant,
)

STATUS = "peoplecounter/bridge/here/status"
DOOR = "peoplecounter/state/source/door"
LINES = {"front-door": {"in": 3, "out": 1}}
ZONES = {"items": {"people": 2, "entered": 5, "left": 3, "dwell_s": 9.0}}


class Bridge:
    """A bridge whose time passes on request. `kept` is what the broker has retained, `states` what it was told else."""

    def __init__(self):
        self.shown, self.now_s, self.kept, self.states = HomeAssistant("here"), 100.0, {}, {}

    def hears(self, kind, name="door", **content):
        self.shown.add(kind, name, content, self.now_s)

    def status(self, state="online", name="door", **more):
        self.hears("status", name, state=state, detail="", **more)

    def count(self, people, complete=True, name="door"):
        self.hears("counts", name, count=people, complete=complete)

    def sees(self, people, **more):
        """It is online, and a frame of it has been counted."""
        self.status(**more)
        self.count(people)
        self.status(**more)

    def area(self, occupancy, ins=0, outs=0):
        self.hears("areas", "shop", **{"occupancy": occupancy, "in": ins, "out": outs})

    def after(self, seconds=TICK_S):
        """What it publishes now, this many seconds later: pairs of topic and text."""
        self.now_s += seconds
        sent = self.shown.due(self.now_s)
        self.kept |= {topic: text for topic, text, keep in sent if keep}
        self.kept = {topic: text for topic, text in self.kept.items() if text}
        self.states |= {topic: text for topic, text, keep in sent if not keep}
        return [(topic, text) for topic, text, _ in sent]

    def passes(self, seconds, *names, people=None):
        """Time in which fusion tells of itself, and of these sources."""
        sent = []
        for _ in range(round(seconds)):
            self.hears("service", "fusion.0", state="up")
            for name in names:
                self.status(name=name)
                if people is not None:
                    self.count(people, name=name)
            sent += self.after(1)
        return sent

    def state(self, topic=DOOR):
        return json.loads(self.states[topic])

    def configs(self):
        """Unique id -> configuration."""
        configs = [json.loads(text) for topic, text in self.kept.items() if topic.endswith("/config")]
        return {config["unique_id"]: config for config in configs}


@pytest.fixture
def bridge():
    return Bridge()


def test_a_source_is_a_device_with_its_lines_and_zones(bridge):
    bridge.sees(2, lines=LINES, zones=ZONES)
    bridge.after()
    topics = {
        "homeassistant/sensor/peoplecounter_source_door/people/config",
        "homeassistant/sensor/peoplecounter_source_door/line_front-door_in/config",
        "homeassistant/sensor/peoplecounter_source_door/line_front-door_out/config",
        "homeassistant/sensor/peoplecounter_source_door/zone_items_people/config",
        "homeassistant/binary_sensor/peoplecounter_source_door/problem/config",
    }
    assert (bridge.kept.keys(), bridge.states.keys()) == (topics, {DOOR})
    configs = bridge.configs()
    people = configs["peoplecounter_source_door.people"]
    assert people | {"device": {}, "origin": {}} == {
        "name": "People", "unique_id": "peoplecounter_source_door.people", "device": {}, "origin": {},
        "state_topic": DOOR, "value_template": "{{ value_json['people'] }}", "availability_topic": STATUS,
        "expire_after": EXPIRE_S, "icon": "mdi:account-group", "state_class": "measurement",
        "unit_of_measurement": "people",
    }  # fmt: skip
    assert {one["device"]["identifiers"][0] for one in configs.values()} == {"peoplecounter_source_door"}
    assert people["device"]["name"] == "door"
    ins = configs["peoplecounter_source_door.line_front-door_in"]
    assert (ins["name"], ins["state_class"]) == ("In at front-door", "total_increasing")
    problem = configs["peoplecounter_source_door.problem"]
    assert (problem["device_class"], problem["json_attributes_topic"]) == ("problem", DOOR)
    assert bridge.state() == {
        "people": 2, "problem": "OFF", "line_front-door_in": 3, "line_front-door_out": 1, "zone_items_people": 2,
        "why": {"source_state": "online", "detail": "", "warning": ""},
    }  # fmt: skip


def test_an_area_is_a_device_and_nobody_sees_less_than_0(bridge):
    bridge.area(-3, 4, 7)
    bridge.after()
    assert bridge.state("peoplecounter/state/area/shop") == {"occupancy": 0, "in": 4, "out": 7}
    assert bridge.configs().keys() == {f"peoplecounter_area_shop.{key}" for key in ("occupancy", "in", "out")}
    bridge.area(5, 9, 4)
    bridge.after()
    assert bridge.state("peoplecounter/state/area/shop")["occupancy"] == 5


def test_sources_zones_and_areas_of_any_name_have_ids_of_their_own(bridge):
    bridge.status(name="a", zones={"b": ZONES["items"], "b_people": ZONES["items"]})
    bridge.status(name="a_zone_b", lines={"in": LINES["front-door"]})
    bridge.status(name="shop", zones={})
    bridge.area(0)
    bridge.after()
    assert len(bridge.configs()) == 4 + 4 + 2 + 3


def test_events_count_at_once(bridge):
    bridge.sees(2, lines=LINES, zones=ZONES)
    bridge.hears("crossings", line="front-door", totals={"in": 4, "out": 1})
    bridge.hears("zones", zone="items", people=3)
    bridge.hears("crossings", line="removed", totals={"in": 9, "out": 9})
    bridge.after()
    assert (bridge.state()["line_front-door_in"], bridge.state()["zone_items_people"]) == (4, 3)
    assert "line_removed_in" not in bridge.state()


def test_a_state_is_published_when_it_changes_and_every_few_seconds(bridge):
    bridge.status()
    bridge.count(1)
    assert DOOR in dict(bridge.after())
    bridge.after(ROUND_S)
    sent = []
    for people in range(100):
        bridge.count(people)
        sent += bridge.after(0.01)
    assert [topic for topic, _ in sent] == [DOOR] * len(sent) and len(sent) <= 1 / TICK_S
    bridge.after()
    assert bridge.state()["people"] == 99
    bridge.count(99)
    assert not [topic for topic, _ in bridge.after() if topic == DOOR]  # nothing has changed
    sent = bridge.passes(REFRESH_S * 4, "door", people=99)
    assert 3 <= [topic for topic, _ in sent].count(DOOR) <= 5
    assert EXPIRE_S >= 2 * REFRESH_S  # in Home Assistant, it does not expire in between


def test_an_incomplete_count_is_not_shown(bridge):
    bridge.status()
    bridge.count(0, complete=False)
    bridge.after()
    assert bridge.state()["people"] is None
    bridge.count(2)
    bridge.count(0, complete=False)
    bridge.after()
    assert bridge.state()["people"] == 2


def test_a_source_without_complete_counts_is_a_problem(bridge):
    bridge.sees(2, zones=ZONES)
    assert bridge.after() and bridge.state()["zone_items_people"] == 2
    for _ in range(EXPIRE_S + 1):
        bridge.status(zones=ZONES)
        bridge.count(0, complete=False)
        bridge.after(1)
    assert (bridge.state()["people"], bridge.state()["zone_items_people"]) == (None, None)
    assert bridge.state()["problem"] == "ON"


@pytest.mark.parametrize("state", ["waiting", "opening", "stale", "reconnecting", "ended"])
def test_a_source_that_is_offline_has_no_people_not_0(bridge, state):
    bridge.sees(2, lines=LINES, zones=ZONES)
    bridge.after()
    empty = {"items": ZONES["items"] | {"people": 0}}  # its tracks have ended
    bridge.status(state, lines=LINES, zones=empty)
    bridge.count(2)  # of the pictures before
    bridge.after()
    shown = bridge.state()
    assert (shown["people"], shown["zone_items_people"], shown["problem"]) == (None, None, "ON")
    assert (shown["line_front-door_in"], shown["why"]["source_state"]) == (3, state)
    bridge.status(lines=LINES, zones=empty)
    bridge.after()
    shown = bridge.state()
    assert (shown["people"], shown["zone_items_people"]) == (None, None)  # nobody has looked yet
    bridge.count(0)
    bridge.after()
    shown = bridge.state()
    assert (shown["people"], shown["zone_items_people"], shown["problem"]) == (0, None, "OFF")
    bridge.status(lines=LINES, zones=empty)
    bridge.after()
    assert bridge.state()["zone_items_people"] == 0


def test_a_warning_is_a_problem(bridge):
    bridge.status(lines=LINES, warning="only 2.0 frames/s are counted: lines and zones need 5")
    bridge.count(2)
    bridge.after()
    assert (bridge.state()["people"], bridge.state()["problem"]) == (2, "ON")
    assert bridge.state()["why"]["warning"].startswith("only 2.0 frames/s")


def test_a_group_that_is_silent_has_no_numbers_but_keeps_its_devices(bridge):
    bridge.status(lines=LINES, zones=ZONES)
    bridge.area(5)
    bridge.count(2)
    bridge.after()
    configs = bridge.configs()
    for _ in range(60):
        bridge.after(1)
    assert {value for key, value in bridge.state().items() if key != "why"} == {None, "ON"}
    assert set(bridge.state("peoplecounter/state/area/shop").values()) == {None}
    bridge.hears("service", "fusion.0", state="up")  # it is back, and tells of its sources within a second
    bridge.after()
    assert (bridge.state()["people"], bridge.state()["problem"]) == (None, "ON")
    bridge.status(lines=LINES, zones=ZONES)
    bridge.count(1)
    bridge.after()
    assert (bridge.state()["people"], bridge.state()["problem"]) == (1, "OFF")
    assert bridge.configs() == configs


def test_a_line_that_was_removed_is_removed(bridge):
    bridge.status(lines=LINES, zones=ZONES)
    bridge.after()
    bridge.after(ROUND_S)
    bridge.status(zones=ZONES)
    sent = bridge.after()
    gone = [f"homeassistant/sensor/peoplecounter_source_door/line_front-door_{way}/config" for way in ("in", "out")]
    assert [(topic, text) for topic, text in sent if not text] == [(topic, "") for topic in gone]
    assert [topic for topic, _ in sent] == [*gone, DOOR]  # no template looks for what the state lacks
    assert bridge.after() == []


def test_a_source_that_was_removed_is_removed(bridge):
    for name in ("door", "yard"):
        bridge.status(name=name, lines=LINES)
    bridge.after()
    described = {topic for topic in bridge.kept if "source_door" in topic}
    bridge.passes(GONE_S - 1, "yard")
    assert described <= bridge.kept.keys()
    sent = bridge.passes(2, "yard")
    assert {topic for topic, text in sent if not text} == described
    assert not described & bridge.kept.keys() and bridge.configs()
    bridge.count(2)  # a last one, on its way
    assert not [topic for topic, _ in bridge.passes(2 * REFRESH_S) if "door" in topic.replace("front-door", "")]


def test_the_bridge_is_online_behind_the_first_states(bridge):
    bridge.after(60)
    assert bridge.kept == {}  # it knows nothing yet: its last will still says offline
    bridge.hears("service", "fusion.0", state="up")
    bridge.after()
    bridge.status()
    bridge.count(0)
    bridge.after()
    assert STATUS not in bridge.kept
    assert bridge.after(ROUND_S)[-1] == (STATUS, "online")
    assert bridge.kept[STATUS] == "online"
    assert bridge.after() == []


@pytest.mark.parametrize(
    "topic, payload, anew",
    [
        ("homeassistant/status", b"online", True),
        ("homeassistant/status", b"offline", False),
        ("homeassistant/status", b"\xff", False),
        (STATUS, b"offline", True),  # an old connection was given up after the new one was made
        (STATUS, b"online", False),
    ],
)
def test_everything_is_published_again_when_home_assistant_starts(bridge, topic, payload, anew):
    bridge.sees(2, lines=LINES, zones=ZONES)
    bridge.area(1)
    bridge.after()
    bridge.after(ROUND_S)
    bridge.shown.hear(topic, payload)
    sent = bridge.after()
    assert dict(sent) == (bridge.kept | bridge.states if anew else {})
    assert not anew or sent[-1] == (STATUS, "online")


def test_everything_is_published_again_now_and_then(bridge):
    """Another group may have removed a source that has moved here."""
    bridge.status()
    bridge.after()
    sent = bridge.passes(ANEW_S + 1, "door", people=1)
    assert [text for topic, text in sent if topic.endswith("people/config")] == [
        bridge.kept["homeassistant/sensor/peoplecounter_source_door/people/config"]
    ]
    assert SILENT_S < GONE_S < ANEW_S
