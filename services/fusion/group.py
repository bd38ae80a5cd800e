"""What concerns the whole group: processes, areas, alerts, budgets, metrics. The first fusion does it.

It knows a source by what is published of it. Its own fusion tells it directly. In a group with several, it reads what
the others publish, and passes it on, so that subscribers need one address.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from peoplecounter.common import events
from peoplecounter.common.budgets import BudgetWindow
from peoplecounter.common.errors import AppError
from peoplecounter.common.events import LineTotals, Sums
from peoplecounter.common.ipc.link import Peer
from peoplecounter.common.ipc.messages import Correct, Corrected, Report
from peoplecounter.common.process.runtime import Runtime
from peoplecounter.services.fusion.alerts import Alerts
from peoplecounter.services.fusion.areas import Area
from peoplecounter.services.fusion.members import Members
from peoplecounter.services.fusion.publish import Inbox, Publisher

HEARD = ("counts", "dropped", "status", "crossings", "zones")  # topics of a source that say something new
SILENT_NS = 3_000_000_000  # the state of a source is published once a second


@dataclass
class SourceView:
    """A source, as it was published last."""

    frame_ns: int  # when a frame of it was last counted
    heard_ns: int = 0  # when its state was published; 0: not yet
    state: str = "waiting"
    live: bool = False  # it cannot be paused
    people: int | None = None  # in the last complete frame
    totals: dict = field(default_factory=lambda: {"frames": 0, "counted": 0, "incomplete": 0, "dropped": {}})
    lines: set[str] = field(default_factory=set)  # that it has now
    zones: dict[str, int] = field(default_factory=dict)  # people in each

    def state_at(self, now_ns: int) -> str:
        """Its state: "stale" when its fusion says nothing."""
        silent = self.state not in ("waiting", "ended") and now_ns - self.heard_ns > SILENT_NS
        return "stale" if silent else self.state


class Group:
    """All sources and processes of the group. `known()` gives the names of the sources that exist.

    hear() takes what is published of a source, update() and tell() publish what it means for the group.
    """

    def __init__(self, rt: Runtime, publisher: Publisher, known: Callable[[], set[str]]):
        settings = rt.settings
        self._rt, self._settings, self._publisher, self._known = rt, settings, publisher, known
        self.now_ns = rt.loop.now_ns
        self._began_ns = self.now_ns()
        self.sources: dict[str, SourceView] = {}
        self.members = Members()
        self._lines: dict[str, LineTotals] = {}  # SOURCE.LINE -> its totals
        self._logged: dict[str, Sums] = {}  # source -> what its log said, before anything was published
        self.areas = {
            name: Area(settings.data, name, area, settings.timezone, self.line_totals)
            for name, area in settings.areas.items()
        }
        self.alerts = rt.closing(Alerts(settings, self.alert_value))
        self._raised: dict[str, dict] = {}  # alerts, as published last
        self._window = BudgetWindow(settings.budgets)
        self.budgets: dict[str, dict] = {}  # see BudgetWindow.states
        self._crossed: set[str] = set()  # lines, SOURCE.LINE, since the last update()
        self._changed = False  # somebody has crossed a line or is in another zone since then
        self._warned: set[str] = set()  # areas with lines that do not exist
        rt.control.on(Correct, self._correct)
        self.metrics = None
        if settings.telemetry.metrics:
            from peoplecounter.services.fusion.metrics import Metrics  # an SDK and an HTTP server, if needed

            self.metrics = rt.closing(Metrics(self, rt.name, settings.telemetry))
        if settings.workers.fusion > 1:
            rt.closing(Inbox(rt.loop, settings, self._pass_on))

    def report(self, report: Report) -> None:
        """A process sends its counters."""
        self._log(self.members.report(report, self.now_ns()))
        self._publish_process(report.service)

    def change(self, process: str, state: str) -> None:
        """A process is silent, down or ended."""
        self._log(self.members.change(process, state, self.now_ns()))
        self._publish_process(process)
        if state == "ended":
            self.members.forget(process)

    def hear(self, kind: str, name: str, content: dict) -> None:
        """A message of one of the topics HEARD was published."""
        now_ns = self.now_ns()
        source = self.sources.setdefault(name, SourceView(now_ns))
        if kind == "crossings":
            line = f"{name}.{content['line']}"
            self._set_line(line, content["totals"])
            self.alerts.crossed(line, now_ns / 1e9)
            self._crossed.add(line)
            self._changed = True
        elif kind == "zones":
            source.zones[content["zone"]] = content["people"]
            self._changed = True
        else:
            source.totals = content["totals"]
        if kind == "counts":
            self._count(name, source, content, now_ns)
        elif kind == "status":
            source.heard_ns, source.state, source.live = now_ns, content["state"], content["live"]
            source.frame_ns = now_ns - int(content["seconds_since_frame"] * 1e9)
            source.lines = set(content.get("lines", ()))
            source.zones = {zone: totals["people"] for zone, totals in content.get("zones", {}).items()}
            for line, totals in content.get("lines", {}).items():
                self._set_line(f"{name}.{line}", totals)

    def update(self) -> None:
        """Publishes what the last messages have changed."""
        if self._changed:
            self._publish_areas(self._crossed)
            self._check_alerts()
            self._crossed, self._changed = set(), False

    def tell(self) -> None:
        """Publishes all of it, once a second; what time alone changes, too."""
        now_ns, now_s, known = self.now_ns(), time.time(), self._known()
        for name, source in list(self.sources.items()):
            if name not in known and now_ns - source.heard_ns > SILENT_NS:
                del self.sources[name]
        for number in range(1, self._settings.workers.fusion):
            if (name := f"fusion.{number}") not in self.members.processes and now_ns - self._began_ns > SILENT_NS:
                self.change(name, "down")  # it was not started, so nobody counts its sources
        for name, area in self.areas.items():
            try:
                if area.reset_if_due(now_s):
                    self._rt.log.info("the area %s was reset: %+d people had not been seen to leave", name, area.drift)
            except AppError as error:
                self._rt.log.error("%s", error)
        self._publish_areas()
        self._check_alerts()
        for name, process in self.members.processes.items():
            if process.state != "up":  # the others have just published their report
                self._publish_process(name)
        before, self.budgets = self.budgets, self._window.states(now_ns)
        if self.budgets or before:  # once more when there are none any more
            self._publisher.send("budgets", "group", self.budgets)
        raised, self._raised = self._raised, self.alerts.raised(now_ns / 1e9)
        if self._raised or raised:
            self._publisher.send("raised", "group", self._raised)

    def line_totals(self, line: str) -> LineTotals:
        """The sums of SOURCE.LINE, also of one that is not there any more."""
        if line in self._lines:
            return self._lines[line]
        source, _, name = line.partition(".")
        if source not in self._logged:
            self._logged[source] = events.sums_of(self._settings.data, source) or Sums()
        return self._logged[source].lines.get(name) or LineTotals()

    def alert_value(self, kind: str, name: str) -> float | None:
        """What an alert watches: people in an area, or in a zone; 0 for a line; None: there is none of this name."""
        if kind == "area":
            return self.areas[name].occupancy()
        source, _, shape = name.partition(".")
        view = self.sources.get(source)
        if view is None or kind == "zone":
            return view.zones.get(shape) if view else None
        return 0 if shape in view.lines else None

    def _count(self, name: str, source: SourceView, content: dict, now_ns: int) -> None:
        source.frame_ns = now_ns
        if content["complete"]:
            source.people = content["count"]
        stages_ms, hops_ms, all_ms = content["stages_ms"], content["hops_ms"], content["end_to_end_ms"]
        if source.live:  # a lossless file waits in its own queue: its times say nothing about the budgets
            self._window.add(now_ns, {**stages_ms, **hops_ms, "end_to_end": all_ms})
        if self.metrics:
            self.metrics.record(name, stages_ms, hops_ms, all_ms)

    def _set_line(self, line: str, totals: dict[str, int]) -> None:
        self._lines[line] = LineTotals(totals["in"], totals["out"])

    @property
    def _all_heard(self) -> bool:
        """False right after the start, while it is not known of each source which lines and zones it has."""
        if self.now_ns() - self._began_ns > SILENT_NS:
            return True
        return self._known() <= {name for name, source in self.sources.items() if source.heard_ns}

    def _publish_areas(self, crossed: set[str] | None = None) -> None:
        """Publishes the areas; `crossed`: only those with one of these lines."""
        for name, area in self.areas.items():
            if crossed is None or crossed & set(area.lines):
                missing = [line for line in area.lines if not self._exists(line)] if self._all_heard else []
                if missing and name not in self._warned:
                    self._rt.log.warning("the area %s has lines that do not exist: %s", name, ", ".join(missing))
                (self._warned.add if missing else self._warned.discard)(name)
                content = area.public(time.time()) | ({"missing": missing} if missing else {})
                self._publisher.send("areas", name, content)

    def _exists(self, line: str) -> bool:
        source, _, name = line.partition(".")
        return source in self.sources and name in self.sources[source].lines

    def _check_alerts(self) -> None:
        if self._all_heard:
            for name, content in self.alerts.update(self.now_ns() / 1e9):
                self._publisher.send("alerts", name, content)

    def _correct(self, peer: Peer, message: Correct) -> None:
        """Somebody has counted the people in an area."""
        area = self.areas.get(message.area)
        try:
            if area is None:
                raise AppError(f"There is no area {message.area!r}: the settings have no table [areas.{message.area}].")
            answer = Corrected(*area.correct(message.people, time.time(), message.note))
        except AppError as error:
            answer = Corrected(refusal=str(error))
        self._rt.control.send(peer, answer)
        self._publish_areas()
        self._check_alerts()

    def _publish_process(self, name: str) -> None:
        self._publisher.send("service", name, self.members.processes[name].public(self.now_ns()))

    def _log(self, line: str) -> None:
        if line:
            self._rt.log.warning("%s", line)

    def _pass_on(self, topic: bytes, body: bytes) -> None:
        """Publishes what another fusion has sent."""
        kind, _, name = topic.decode().partition(".")
        content = msgspec.json.decode(body) if kind in HEARD else {}
        self._publisher.pass_on(topic, body)
        if content:
            self.hear(kind, name, content)
