"""Shows a group in Home Assistant by MQTT discovery: sources and areas become devices there, by themselves. Pure.

Home Assistant reads what a device has from `homeassistant/…/config`, one retained topic for each value, and all values
of the device from one JSON, `peoplecounter/state/KIND/NAME`. See https://www.home-assistant.io/integrations/mqtt/.

A number is shown only while it is known. Otherwise its value is null, which Home Assistant shows as unknown: an error
is never a count of 0, and never the last number. A bridge that is gone says so by its last will, and values expire.
States are not retained: after a power failure a broker would tell how many people were there before it.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from peoplecounter.common import __version__

BIRTH = "homeassistant/status"  # where Home Assistant says that it has started
ONLINE, OFFLINE = "online", "offline"
TICK_S = 0.5  # between two states of a device, at least
REFRESH_S = 5.0  # and at most
EXPIRE_S = 15  # a value that is older is not shown
SILENT_S = 5.0  # fusion, which publishes twice a second, is away
GONE_S = 10.0  # fusion tells nothing of a source or area: it was removed
ROUND_S = 1.5  # in which fusion tells of every source and area
ANEW_S = 60.0  # everything is published again: a source that moves to another group is removed by the one that had it

PublishedText = tuple[str, str, bool]  # topic, payload, retained; an empty payload deletes what was retained


@dataclass(frozen=True)
class Entity:
    """One value of a device. `key` is its key in the state, too; that of its attributes is `attributes`."""

    key: str
    name: str
    more: dict[str, str]  # the rest of its configuration
    component: str = "sensor"
    attributes: str = ""


def _people(key: str, name: str, icon: str) -> Entity:
    """People now."""
    return Entity(key, name, {"icon": icon, "state_class": "measurement", "unit_of_measurement": "people"})


def _total(key: str, name: str, icon: str) -> Entity:
    """People who crossed a line: a sum that only grows, or begins anew."""
    return Entity(key, name, {"icon": icon, "state_class": "total_increasing", "unit_of_measurement": "people"})


PROBLEM = Entity(
    "problem", "Problem", {"device_class": "problem", "entity_category": "diagnostic"}, "binary_sensor", "why"
)
ENTER, LEAVE = "mdi:location-enter", "mdi:location-exit"


@dataclass
class ShownSource:
    """A source, as its messages tell it."""

    heard_s: float  # when fusion last told of it
    counted_s: float = 0.0  # when its last complete frame was counted, or when waiting for it began
    people: int | None = None
    state: str = ""
    detail: str = ""
    warning: str = ""
    lines: dict[str, dict] = field(default_factory=dict)  # name -> {"in": …, "out": …}
    zones: dict[str, int | None] = field(default_factory=dict)  # name -> people

    def begin(self, now_s: float) -> None:
        """What was seen until now says nothing of the people who are there."""
        self.heard_s, self.counted_s, self.people, self.state = now_s, now_s, None, ""

    def add(self, kind: str, content: dict, now_s: float) -> None:
        if kind == "status":
            if content["state"] != self.state:
                self.begin(now_s)
            self.state, self.detail = content["state"], content["detail"]
            self.warning = content.get("warning", "")
            self.lines = dict(content.get("lines", {}))
            looked = self.people is not None  # before that, zones are as they were when the last picture was seen
            self.zones = {name: zone["people"] if looked else None for name, zone in content.get("zones", {}).items()}
        elif kind == "counts" and content["complete"]:
            self.people, self.counted_s = content["count"], now_s
        elif kind == "crossings" and content["line"] in self.lines:
            self.lines[content["line"]] = content["totals"]
        elif kind == "zones" and content["zone"] in self.zones and self.people is not None:
            self.zones[content["zone"]] = content["people"]

    def entities(self) -> list[Entity]:
        entities = [_people("people", "People", "mdi:account-group"), PROBLEM]
        for name in self.lines:
            entities.append(_total(f"line_{name}_in", f"In at {name}", ENTER))
            entities.append(_total(f"line_{name}_out", f"Out at {name}", LEAVE))
        return entities + [
            _people(f"zone_{name}_people", f"People in {name}", "mdi:account-group-outline") for name in self.zones
        ]

    def values(self, now_s: float, silent: bool) -> dict:
        """The state; `silent`: fusion is away. What lines have counted stays true without pictures, people do not."""
        fresh = not silent and self.state == ONLINE and now_s - self.counted_s <= EXPIRE_S
        people = self.people if fresh else None
        values: dict = {"people": people, "problem": "ON" if self.warning or not fresh else "OFF"}
        for name, line in self.lines.items():
            values |= {f"line_{name}_{way}": None if silent else line[way] for way in ("in", "out")}
        for name, inside in self.zones.items():
            values[f"zone_{name}_people"] = None if people is None else inside
        state = "" if silent else self.state
        return values | {"why": {"source_state": state, "detail": self.detail, "warning": self.warning}}


@dataclass
class ShownArea:
    """An area, as its messages tell it."""

    heard_s: float
    content: dict = field(default_factory=dict)

    def begin(self, now_s: float) -> None:
        self.heard_s = now_s

    def add(self, kind: str, content: dict, now_s: float) -> None:
        self.content = content

    def entities(self) -> list[Entity]:
        occupancy = _people("occupancy", "Occupancy", "mdi:home-account")
        return [occupancy, _total("in", "In", ENTER), _total("out", "Out", LEAVE)]

    def values(self, now_s: float, silent: bool) -> dict:
        """The state. Lines miss people now and then, so an occupancy may be below 0: it is shown as 0."""
        if silent:
            return {"occupancy": None, "in": None, "out": None}
        content = self.content
        return {"occupancy": max(0, content["occupancy"]), "in": content["in"], "out": content["out"]}


class HomeAssistant:
    """From a group's messages to what is published for Home Assistant. `bridge` is the name of this bridge."""

    def __init__(self, bridge: str):
        self.status = f"peoplecounter/bridge/{bridge}/status"  # whether this bridge is there
        self.listens = (BIRTH, self.status)
        self._devices: dict[tuple[str, str], ShownSource | ShownArea] = {}  # kind, name
        self._heard_s, self._ready_s, self._due_s = -math.inf, math.inf, -math.inf
        self._anew, self._anew_s = True, 0.0
        self._configs: dict[str, str] = {}  # topic -> what is published
        self._states: dict[str, tuple[str, float]] = {}  # topic -> what is published, when
        self._online = False

    def again(self) -> None:
        """Everything is published again, from any thread: another broker, or one that has forgotten it."""
        self._anew = True

    def hear(self, topic: str, payload: bytes) -> None:
        """A message of the broker: Home Assistant has started; or an old connection of this bridge is reported dead."""
        if (topic, payload) in ((BIRTH, ONLINE.encode()), (self.status, OFFLINE.encode())):
            self.again()

    def add(self, kind: str, name: str, content: dict, now_s: float) -> None:
        """A message of the group."""
        if self._is_silent(now_s):
            self._ready_s = min(self._ready_s, now_s + ROUND_S)
            for known in self._devices.values():
                known.begin(now_s)
        self._heard_s = now_s
        key = ("area" if kind == "areas" else "source", name)
        if kind in ("status", "areas"):
            new = ShownArea(now_s) if kind == "areas" else ShownSource(now_s)
            self._devices.setdefault(key, new).heard_s = now_s
        if kind in ("status", "counts", "crossings", "zones", "areas") and key in self._devices:
            self._devices[key].add(kind, content, now_s)

    def due(self, now_s: float) -> list[PublishedText]:
        """What is to be published now, in this order."""
        if now_s < self._due_s:
            return []
        self._due_s = now_s + TICK_S
        if anew := self._anew or now_s >= self._anew_s:
            self._anew, self._anew_s = False, now_s + ANEW_S
        self._forget(now_s)
        messages = [*self._due_configs(anew), *self._due_states(now_s, anew)]
        if now_s >= self._ready_s and (anew or not self._online):  # behind the states: no old one is shown
            self._online = True
            messages.append((self.status, ONLINE, True))
        return messages

    def _is_silent(self, now_s: float) -> bool:
        return now_s - self._heard_s > SILENT_S

    def _forget(self, now_s: float) -> None:
        """Forgets devices of which fusion does not tell any more, although it tells of others."""
        if not self._is_silent(now_s):
            self._devices = {key: one for key, one in self._devices.items() if now_s - one.heard_s <= GONE_S}

    def _due_configs(self, anew: bool) -> Iterator[PublishedText]:
        configs = {
            topic: text
            for (kind, name), device in self._devices.items()
            for topic, text in self._describe(kind, name, device.entities()).items()
        }
        before, self._configs = self._configs, configs
        yield from ((topic, "", True) for topic in before if topic not in configs)
        yield from ((topic, text, True) for topic, text in configs.items() if anew or before.get(topic) != text)

    def _due_states(self, now_s: float, anew: bool) -> Iterator[PublishedText]:
        before, self._states = self._states, {}
        for (kind, name), device in self._devices.items():
            topic, text = _state_topic(kind, name), json.dumps(device.values(now_s, self._is_silent(now_s)))
            published = before.get(topic)
            if anew or published is None or text != published[0] or now_s - published[1] >= REFRESH_S:
                published = (text, now_s)
                yield topic, text, False
            self._states[topic] = published

    def _describe(self, kind: str, name: str, entities: list[Entity]) -> dict[str, str]:
        """Topic -> configuration of each entity of a device."""
        identity, state_topic = f"peoplecounter_{kind}_{name}", _state_topic(kind, name)
        device = {
            "identifiers": [identity], "name": name, "manufacturer": "peoplecounter", "model": kind,
            "sw_version": __version__,
        }  # fmt: skip
        configs = {}
        for entity in entities:
            config = {
                "name": entity.name, "unique_id": f"{identity}.{entity.key}", "device": device,
                "origin": {"name": "peoplecounter", "sw_version": __version__},
                "availability_topic": self.status, "expire_after": EXPIRE_S, "state_topic": state_topic,
                "value_template": _template(entity.key), **entity.more,
            }  # fmt: skip
            if entity.attributes:
                config["json_attributes_topic"] = state_topic
                config["json_attributes_template"] = _template(entity.attributes, " | tojson")
            configs[f"homeassistant/{entity.component}/{identity}/{entity.key}/config"] = json.dumps(config)
        return configs


def _template(key: str, then: str = "") -> str:
    """In brackets: names may contain a hyphen, or be one of Jinja's words."""
    return f"{{{{ value_json['{key}']{then} }}}}"


def _state_topic(kind: str, name: str) -> str:
    return f"peoplecounter/state/{kind}/{name}"
