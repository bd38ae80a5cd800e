"""fusion: results of all branches -> one count a frame, published. The ledger of every source is kept here.

results of all services --> join by (source, seq) --> merge --> PUB counts, detections, dropped, status, service
"""

import os
import secrets
from dataclasses import dataclass, field

import numpy as np

from peoplecounter.common import sources
from peoplecounter.common.budgets import Window
from peoplecounter.common.errors import Refused
from peoplecounter.common.ipc.messages import DROP_REASONS, Confirmed, Detections, Dropped, Report, Status
from peoplecounter.common.ipc.results import Receiver
from peoplecounter.common.process.control import sources_to_decode
from peoplecounter.common.process.journal import Journal
from peoplecounter.common.process.runtime import Runtime, serve
from peoplecounter.services.fusion.join import Ended, Frame, Gap, Join, Settled
from peoplecounter.services.fusion.merge import believe, merge
from peoplecounter.services.fusion.publish import Publisher, Totals, timings, utc_now

STATUS_NS = 1_000_000_000
LOOK_NS = 100_000_000  # how often a source nobody knows makes us look for it, at most
STALE_NS = 3_000_000_000  # a decoder that says nothing for this long is stale


@dataclass
class Source:
    """What fusion remembers of one source; `totals` survive it in the journal."""

    journal: Journal
    totals: Totals
    change: str  # by which it came, see common.sources: another one of the same name begins anew
    state: str  # as its decoder says; "waiting": it has none yet
    detail: str = ""
    told_ns: int = 0  # when its decoder last spoke
    frame_ns: int = 0  # when a frame of it was last counted
    people: int | None = None  # in the last complete frame
    persons: np.ndarray = field(default_factory=lambda: np.zeros((0, 5), np.float32))  # of the last complete frame

    def shown(self, now: int) -> str:
        """The state that is published: a decoder that says nothing makes it stale."""
        silent = self.state not in ("waiting", "ended") and now - self.told_ns > STALE_NS
        return "stale" if silent else self.state


@dataclass
class Service:
    """What fusion knows of one process."""

    state: str = "up"  # or "silent", "down", "ended"
    since_ns: int = 0
    told: dict = field(default_factory=dict)  # its last report
    gauges: dict[str, int] = field(default_factory=dict)


class Fusion:
    """Receives, joins, merges, publishes."""

    def __init__(self, rt: Runtime):
        settings = rt.settings
        self.rt, self.settings = rt, settings.fusion
        self.join = Join(settings.fusion.reorder_frames, int(settings.fusion.idle_s * 1e9))
        self.receiver = rt.closing(
            Receiver(rt.loop, settings.run_dir, secrets.token_hex(8), rt.timing, self.on_result, self.on_change)
        )
        self.publisher = rt.closing(Publisher(rt.loop.context, settings))
        self.known = sources.known(settings)
        self.known_ns = rt.loop.now_ns()
        self.sources: dict[str, Source] = {}
        rt.closing(self)
        self.services: dict[str, Service] = {}
        self.own = Service()
        self.status_ns = 0
        self.window, self.budgets = Window(rt.settings.budgets), {}
        self.metrics = self._make_metrics() if rt.settings.telemetry.metrics else None

    def _make_metrics(self):
        from peoplecounter.services.fusion.metrics import Metrics  # an SDK and an HTTP server that few need

        return self.rt.closing(Metrics(self, self.rt.settings.telemetry))

    def close(self) -> None:
        for source in self.sources.values():
            source.journal.close()

    def source(self, name: str) -> Source:
        """The source's state, with the ledger of an earlier run of fusion if there was one."""
        if name not in self.sources:
            journal = Journal(self.rt.settings.run_dir / f"fusion.{name}.journal", Totals)
            change = self.known[name].id if name in self.known else ""
            state = "waiting" if name in sources_to_decode(self.rt.settings) else "ended"
            now = self.rt.loop.now_ns()
            self.sources[name] = Source(journal, journal.read() or Totals(), change, state, frame_ns=now)
            self.join.resume(name, self.sources[name].totals.next_seq)
        return self.sources[name]

    def on_result(self, body: Detections | Dropped | Confirmed | Status | Report, receipt: object) -> None:
        now = self.rt.loop.now_ns()
        if isinstance(body, Report):
            self.on_change(body.service, "up", {"pid": body.pid, "counters": body.counters})
            self.services[body.service].gauges = body.gauges
            for source, seq in body.holding:
                self.join.held(source, seq, now)
        elif not self.acceptable(body, receipt[0].hello.service):
            self.rt.count["results_refused"] += 1
            self.receiver.settle([receipt])
        elif isinstance(body, Status):
            self.on_status(body, receipt, now)
        else:
            self.source(body.header.source)
            if not self.join.add(body, receipt, now):
                self.rt.count["results_late"] += 1
                self.receiver.settle([receipt])

    def on_change(self, name: str, state: str, told: dict | None = None) -> None:
        """A process goes on (and reports), has gone silent or is gone."""
        now = self.rt.loop.now_ns()
        service = self.services.setdefault(name, Service(since_ns=now))
        service.told = told or service.told
        if service.state != state:
            was, service.state, service.since_ns = service.state, state, now
            if {was, state} & {"silent", "down"}:
                self.rt.log.warning("%s is %s", name, f"{state} again" if state == "up" else state)
        self.publish_service(name, now)
        if state == "ended":  # by intent: nobody is to miss it
            del self.services[name]

    def is_known(self, name: str) -> bool:
        """True for a source of this group: one just added is looked for, one just removed may end first."""
        now = self.rt.loop.now_ns()
        there = name in self.sources or name in self.known
        if not there and now - self.known_ns > LOOK_NS:
            self.look(now)
        return there or name in self.known

    def look(self, now: int) -> None:
        """Which sources are there now; what was removed and has ended is forgotten, what was added again waits."""
        self.known_ns = now
        try:
            self.known = sources.known(self.rt.settings)
        except Refused as refusal:
            self.rt.log.error("%s", refusal)
            return
        for name, source in list(self.sources.items()):
            if name not in self.known and (source.state == "ended" or now - source.told_ns > STALE_NS):
                self.sources.pop(name).journal.close()
            elif name in self.known and source.change != self.known[name].id:
                source.change = self.known[name].id
                if source.state == "ended":
                    source.state, source.detail = "waiting", ""

    def acceptable(self, body: Detections | Dropped | Confirmed | Status, sender: str) -> bool:
        """False for a source that is not in the settings, boxes or parts that are none, a reason nobody gives."""
        if isinstance(body, Status):
            return sender == f"decoder.{body.source}" and self.is_known(body.source)
        if not self.is_known(body.header.source) or (body.part is not None and not body.part.known):
            return False
        if isinstance(body, Confirmed):
            return sender == f"decoder.{body.header.source}"
        return body.rows() is not None if isinstance(body, Detections) else body.reason in DROP_REASONS

    def on_status(self, body: Status, receipt: object, now: int) -> None:
        source = self.source(body.source)
        source.told_ns = now
        if body.state == "ended":
            source.detail = body.detail
            self.join.end(body, receipt, now)
            return
        changed = source.state != body.state
        source.state, source.detail = body.state, body.detail
        if changed:
            self.publish_status(body.source, now)
        self.receiver.settle([receipt])

    def settle(self) -> None:
        """Publishes or drops every frame that is due."""
        for due in self.join.settle(self.rt.loop.now_ns()):
            if isinstance(due, Settled):
                self.finish(due.frame, due.reason)
                self.receiver.settle(due.frame.receipts)
            elif isinstance(due, Gap):
                self.drop(due.source, due.first, "stale", due.count)
            else:
                self.end(due)

    def finish(self, frame: Frame, reason: str) -> None:
        if frame.dropped or not frame.answers or not frame.real:
            self.drop(frame.header.source, frame.header.seq, reason)
        else:
            self.count(frame, reason)

    def count(self, frame: Frame, reason: str) -> None:
        began_ns = self.rt.loop.now_ns()
        header, missing = frame.header, frame.missing(reason)
        rows = np.vstack([answer.rows() for answer in frame.answers.values()])
        source = self.source(header.source)
        try:
            persons = merge(rows, self.settings.same_iou, self.settings.same_ios)
            persons = believe(persons, source.persons, self.settings.new_score)
        except Exception:
            self.rt.log.exception("merging failed on %s %d", header.source, header.seq)
            return self.drop(header.source, header.seq, "engine_error")
        if not missing:
            source.persons, source.people = persons, len(persons)
        source.totals.next_seq = header.seq + 1
        source.totals.counted += 1
        source.totals.incomplete += bool(missing)
        source.journal.write(source.totals)  # before anybody hears of it: no seq is ever published twice
        ended_ns = source.frame_ns = self.rt.loop.now_ns()
        stages_ms, hops_ms = timings(header, frame, began_ns, ended_ns)
        end_to_end_ms = round((ended_ns - header.captured_ns) / 1e6, 3)
        named = {"source": header.source, "seq": header.seq, "pts_s": round(header.pts_s, 6), "time": utc_now()}
        content = {
            **named,
            "count": len(persons),
            "complete": not missing,
            "missing": missing,
            "end_to_end_ms": end_to_end_ms,
            "stages_ms": stages_ms,
            "hops_ms": hops_ms,
            "totals": source.totals.public(),
        }
        self.publisher.send("counts", header.source, content)
        boxes = [[*(round(float(v), 1) for v in p[:4]), round(float(p[4]), 3)] for p in persons]
        self.publisher.send("detections", header.source, {**named, "boxes": boxes})
        self.rt.count["frames_counted"] += 1
        self.rt.tracer.record(
            "fusion", header, began_ns, self.rt.loop.now_ns(), people=len(persons), complete=not missing
        )
        if header.deadline_ns:  # a lossless file waits in its queue for as long as that takes
            self.window.add(ended_ns, {**stages_ms, **hops_ms, "end_to_end": end_to_end_ms})
        if self.metrics:
            self.metrics.record(header.source, stages_ms, hops_ms, end_to_end_ms)

    def drop(self, name: str, first: int, reason: str, frames: int = 1) -> None:
        source = self.source(name)
        source.totals.next_seq = first + frames
        source.totals.drop(reason, frames)
        source.journal.write(source.totals)
        self.rt.count[f"dropped_{reason}"] += frames
        content = {"source": name, "seq": first, "frames": frames, "reason": reason, "totals": source.totals.public()}
        self.publisher.send("dropped", name, content)

    def end(self, due: Ended) -> None:
        source = self.source(due.source)
        source.state = "ended"
        self.publish_status(due.source, self.rt.loop.now_ns())
        self.receiver.settle(due.receipts)

    def publish_statuses(self) -> None:
        """Every source's state once a second: a late subscriber, and one who waits in vain, learn where they are."""
        now = self.rt.loop.now_ns()
        if now >= self.status_ns:
            self.status_ns = now + STATUS_NS
            self.look(now)
            for name in self.known.keys() | self.sources.keys():
                self.publish_status(name, now)
            for name, service in self.services.items():
                if service.state != "up":  # the others have just said so
                    self.publish_service(name, now)
            before, self.budgets = self.budgets, self.window.states(now)
            if self.budgets or before:  # in the end, that there are none any more
                self.publisher.send("budgets", "group", self.budgets)
            self.own.told = {"pid": os.getpid(), "counters": dict(self.rt.count)}
            if self.metrics:
                self.own.gauges = self.rt.gauges()
            self.publisher.send("service", self.rt.name, {"state": "up", "seconds": 0, **self.own.told})

    def publish_service(self, name: str, now: int) -> None:
        service = self.services[name]
        seconds = round((now - service.since_ns) / 1e9, 3)
        self.publisher.send("service", name, {"state": service.state, "seconds": seconds, **service.told})

    def publish_status(self, name: str, now: int) -> None:
        source = self.source(name)
        content = {
            "source": name,
            "state": source.shown(now),
            "detail": source.detail,
            "seconds_since_frame": round((now - source.frame_ns) / 1e9, 3),
            "totals": source.totals.public(),
        }
        self.publisher.send("status", name, content)


def run(rt: Runtime) -> None:
    fusion = Fusion(rt)
    rt.ready()
    while rt.running:
        rt.tick()
        fusion.settle()
        fusion.publish_statuses()


if __name__ == "__main__":
    serve("fusion", run)
