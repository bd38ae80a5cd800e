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
from peoplecounter.common.errors import SOFTWARE, AppError
from peoplecounter.common.events import LineTotals, Sums
from peoplecounter.common.ipc.link import Peer
from peoplecounter.common.ipc.messages import Correct, Corrected, Report
from peoplecounter.common.ipc.results import counted_by
from peoplecounter.common.process.runtime import Runtime
from peoplecounter.services.fusion.alerts import Alerts
from peoplecounter.services.fusion.areas import Area
from peoplecounter.services.fusion.ledger import Totals
from peoplecounter.services.fusion.members import Members
from peoplecounter.services.fusion.publish import Inbox, Publisher

HEARD = ("counts", "dropped", "status", "crossings", "zones")  # topics of a source that say something new
READ_TRIES = 5
SILENT_NS = 3_000_000_000  # the state of a source is published once a second


def nothing_yet() -> dict:
    """The status of a source of which nothing was published yet."""
    totals = Totals().public()
    return {"state": "waiting", "detail": "", "live": False, "totals": totals, "lines": {}, "zones": {}}


@dataclass
class SourceView:
    """A source, as it was published last."""

    frame_ns: int  # when a frame of it was last counted
    heard_ns: int = 0  # when its status was published; 0: not yet
    people: int | None = None  # in the last complete frame
    status: dict = field(default_factory=nothing_yet)  # brought up to date by what was published since

    def is_silent(self, now_ns: int) -> bool:
        """True when its fusion says nothing of it."""
        return now_ns - self.heard_ns > SILENT_NS

    def state(self, now_ns: int) -> str:
        """Its state: "stale" when its fusion says nothing."""
        state = self.status["state"]
        return "stale" if state != "ended" and self.is_silent(now_ns) else state


class Group:
    """All sources and processes of the group. `known()` gives the names of the sources that exist.

    hear() takes what is published of a source, update() and tell() publish what it means for the group.
    """

    def __init__(self, rt: Runtime, publisher: Publisher, known: Callable[[], set[str]]):
        settings = rt.settings
        self._rt, self._settings, self._publisher, self._known = rt, settings, publisher, known
        self.now_ns = rt.loop.now_ns
        self._complete_since_ns = self.now_ns()  # when all fusions should run
        self.sources: dict[str, SourceView] = {}
        self.members = Members()
        self._lines: dict[str, LineTotals] = {}  # SOURCE.LINE -> its totals
        self._logged: dict[str, Sums] = {}  # source -> what its log said, before anything was published
        self.areas = {
            name: Area(settings.data, name, area, settings.timezone, self.line_totals)
            for name, area in settings.areas.items()
        }
        self.alerts = rt.closing(Alerts(settings, self.alert_value, self._is_missing))
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
            if process.startswith("fusion."):
                self._complete_since_ns = self.now_ns()

    def hear(self, kind: str, name: str, content: dict) -> None:
        """A message of one of the topics HEARD was published."""
        now_ns = self.now_ns()
        source = self.sources.get(name)
        if source is None:
            source = self.sources[name] = SourceView(now_ns)
        if kind == "crossings":
            line = f"{name}.{content['line']}"
            source.status["lines"][content["line"]] = content["totals"]
            self._set_line(line, content["totals"])
            self.alerts.crossed(line, now_ns / 1e9)
            self._crossed.add(line)
            self._changed = True
        elif kind == "zones":
            source.status["zones"][content["zone"]] = {"people": content["people"], **content["totals"]}
            self._changed = True
        else:
            source.status["totals"] = {**content["totals"]}
        if kind == "counts":
            self._count(name, source, content, now_ns)
        elif kind == "status":
            source.heard_ns, source.status = now_ns, {"lines": {}, "zones": {}, **content}
            source.frame_ns = now_ns - int(content["seconds_since_frame"] * 1e9)
            for line, totals in source.status["lines"].items():
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
            if name not in known and source.is_silent(now_ns):
                del self.sources[name]
        if now_ns - self._complete_since_ns > SILENT_NS:
            self._tell_of_silent(known, now_ns)
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
            self._logged[source] = self._read_sums(source)
        return self._logged[source].lines.get(name) or LineTotals()

    def _read_sums(self, source: str) -> Sums:
        """What the log of a source adds up to. Its fusion may be renaming a file of it right now."""
        problem = None
        for _ in range(READ_TRIES):
            try:
                return events.sums_of(self._settings.data, source) or Sums()
            except OSError as error:
                problem = error.strerror
                time.sleep(0.01)
        raise AppError(f"The event log of {source} cannot be read: {problem}.", SOFTWARE)

    def alert_value(self, kind: str, name: str) -> float | None:
        """What an alert watches: people in an area, or in a zone; 0 for a line; None: there is none of this name."""
        if kind == "area":
            return self.areas[name].occupancy()
        source, _, shape = name.partition(".")
        view = self.sources.get(source)
        if view is None or shape not in view.status[f"{kind}s"]:
            return None
        return view.status["zones"][shape]["people"] if kind == "zone" else 0

    def _tell_of_silent(self, known: set[str], now_ns: int) -> None:
        """Publishes what is known of fusions that do not run, and of their sources: nobody counts these."""
        fusions = self._settings.workers.fusion
        for number in range(1, fusions):
            if (process := f"fusion.{number}") not in self.members.processes:
                self.change(process, "down")
        for name in known:
            number, source = counted_by(name, fusions), self.sources.get(name) or SourceView(self._complete_since_ns)
            if number and source.is_silent(now_ns):
                seconds, state = round((now_ns - source.frame_ns) / 1e9, 3), source.state(now_ns)
                content = {**source.status, "source": name, "state": state, "seconds_since_frame": seconds}
                if state == "stale":
                    content["detail"] = f"fusion.{number} does not answer"
                self._publisher.send("status", name, content)

    def _count(self, name: str, source: SourceView, content: dict, now_ns: int) -> None:
        source.frame_ns = now_ns
        if content["complete"]:
            source.people = content["count"]
        stages_ms, hops_ms, all_ms = content["stages_ms"], content["hops_ms"], content["end_to_end_ms"]
        if source.status["live"]:  # a lossless file waits in its own queue: its times say nothing about the budgets
            self._window.add(now_ns, {**stages_ms, **hops_ms, "end_to_end": all_ms})
        if self.metrics:
            self.metrics.record(name, stages_ms, hops_ms, all_ms)

    def _set_line(self, line: str, totals: dict[str, int]) -> None:
        self._lines[line] = LineTotals(totals["in"], totals["out"])

    def _is_missing(self, kind: str, name: str) -> bool:
        """True when a "line" or "zone", SOURCE.NAME, does not exist; False also while that is not known."""
        name, _, shape = name.partition(".")
        source = self.sources.get(name)
        if source is None or not source.heard_ns:
            return name not in self._known()
        return shape not in source.status[f"{kind}s"]

    def _publish_areas(self, crossed: set[str] | None = None) -> None:
        """Publishes the areas; `crossed`: only those with one of these lines."""
        for name, area in self.areas.items():
            if crossed is None or crossed & set(area.lines):
                missing = [line for line in area.lines if self._is_missing("line", line)]
                if missing and name not in self._warned:
                    self._rt.log.warning("the area %s has lines that do not exist: %s", name, ", ".join(missing))
                (self._warned.add if missing else self._warned.discard)(name)
                content = area.public(time.time()) | ({"missing": missing} if missing else {})
                self._publisher.send("areas", name, content)

    def _check_alerts(self) -> None:
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
        """Publishes what another fusion has sent. Raises ValueError for what no fusion sends."""
        kind, _, name = topic.decode().partition(".")
        if kind in HEARD:
            try:
                self.hear(kind, name, msgspec.json.decode(body))
            except (AttributeError, LookupError, TypeError, msgspec.MsgspecError) as error:
                raise ValueError(topic) from error
        self._publisher.pass_on(topic, body)
        self.update()
