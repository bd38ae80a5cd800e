"""Fusion: receives results, joins them, merges each frame's boxes, keeps the ledger, publishes counts."""

import secrets
import time
from collections.abc import Callable

import numpy as np

from peoplecounter.common import cores
from peoplecounter.common.errors import AppError
from peoplecounter.common.files import Lock, make_private_folder
from peoplecounter.common.ipc.loop import ANY_MS
from peoplecounter.common.ipc.messages import (
    DROP_REASONS,
    ROW_VALUES,
    Confirmed,
    Detections,
    Dropped,
    FrameHeader,
    Report,
    Status,
)
from peoplecounter.common.ipc.results import Body, Receipt, ResultReceiver, counted_by
from peoplecounter.common.process.runtime import Runtime
from peoplecounter.services.fusion.flow import Event, SeenFrame
from peoplecounter.services.fusion.group import HEARD, Group
from peoplecounter.services.fusion.join import Ended, Gap, Join, PendingFrame, Settled
from peoplecounter.services.fusion.merge import hysteresis, merge
from peoplecounter.services.fusion.publish import Forwarder, Publisher, utc
from peoplecounter.services.fusion.state import SourceState, SourceStates
from peoplecounter.services.fusion.timings import timings

STATUS_NS = 1_000_000_000
NOT_LOST = ("no_slot", "no_credit")  # drops that only thin out a live source: tracks expect them


class Fusion:
    """The loop of fusion calls settle() and publish_statuses() after every tick. The first fusion has the `group`."""

    def __init__(self, rt: Runtime):
        settings, now_ns, number = rt.settings, rt.loop.now_ns(), int(rt.instance)
        self.rt, self.settings = rt, settings.fusion
        self.join = Join(settings.fusion.reorder_frames, int(settings.fusion.idle_s * 1e9))
        epoch, on_change = secrets.token_hex(8), self.on_process_change
        self.receiver = rt.closing(
            ResultReceiver(rt.loop, settings.run_dir, epoch, rt.timing, self.on_result, on_change, number)
        )
        self.publisher: Publisher | Forwarder = rt.closing(
            Forwarder(rt.loop.context, settings, rt.counters) if number else Publisher(rt.loop.context, settings)
        )
        make_private_folder(settings.data, "data_dir")
        rt.closing(Lock(settings.data / lock_of(number), f"the data_dir {settings.data}", "data_dir"))
        self.group: Group | None = None
        self.sources = rt.closing(
            SourceStates(
                settings, now_ns, self.join.resume, self.publish_events,
                lambda name: counted_by(name, settings.workers.fusion) == number,
            )
        )  # fmt: skip
        for name in self.sources.known:
            self.source(name)  # what an earlier run has not logged is logged before areas read it
        if isinstance(self.publisher, Publisher):
            self.group = Group(rt, self.publisher, lambda: self.sources.names() | self.sources.others)
        if cores.poll(settings):
            rt.loop.sleep_at_most(lambda now_ns: 0 if self.join.awaits(now_ns) else ANY_MS)
        self.status_due_ns = 0
        self.warned: set[str] = set()  # sources of which a warning was logged, and is still so

    def source(self, name: str) -> SourceState:
        return self.sources.get(name, self.rt.loop.now_ns())

    def on_result(self, body: Body | Report, receipt: Receipt) -> None:
        """A process sends a result or a report."""
        now_ns, peer = self.rt.loop.now_ns(), receipt[0]
        if isinstance(body, Report):
            self.on_report(body, now_ns)
        elif not is_acceptable(body, peer.hello.service, lambda name: self.is_known(name, now_ns)):
            self.rt.counters["results_refused"] += 1
            self.receiver.settle([receipt])
        elif isinstance(body, Status):
            self.on_status(body, receipt, now_ns)
        else:
            self.source(body.header.source)
            if not self.join.add(body, receipt, now_ns):
                self.rt.counters["results_late"] += 1
                self.receiver.settle([receipt])

    def on_report(self, report: Report, now_ns: int) -> None:
        """A process sends its counters, and which frames its ring holds."""
        if self.group:
            self.group.report(report)
        for source, seq in report.holding:
            self.join.held(source, seq, now_ns)

    def on_process_change(self, name: str, state: str) -> None:
        """A process is silent, down or ended."""
        if self.group:
            self.group.change(name, state)

    def on_status(self, status: Status, receipt: Receipt, now_ns: int) -> None:
        """A decoder sends the state of its source. Its end is settled behind its last frame."""
        source = self.source(status.source)
        source.heard_ns, source.detail, source.live = now_ns, status.detail, status.live
        if status.state == "ended":
            self.join.end(status, receipt, now_ns)
            return
        changed = source.state != status.state
        source.state = status.state
        if changed:
            if status.state == "reconnecting":
                events = source.flow.cut()
                source.keep()
                self.publish_events(status.source, events)
            self.publish_status(status.source, now_ns)
        self.receiver.settle([receipt])

    def is_known(self, name: str, now_ns: int) -> bool:
        """True for a source of this group."""
        try:
            return self.sources.is_known(name, now_ns)
        except AppError as error:
            self.rt.log.error("sources cannot be read: %s", error)
            return False

    def settle(self) -> None:
        """Publishes or drops every frame that is due."""
        for due in self.join.settle(self.rt.loop.now_ns()):
            if isinstance(due, Settled):
                frame = due.frame
                if frame.dropped or not frame.answers or not frame.decoded:
                    self.drop(frame.header.source, frame.header.seq, due.reason)
                else:
                    self.count(frame, due.reason)
                self.receiver.settle(frame.receipts)
            elif isinstance(due, Gap):
                self.drop(due.source, due.first, "stale", due.count)
            else:
                self.end(due)

    def count(self, frame: PendingFrame, reason: str) -> None:
        """Merges the frame's boxes, commits it to the ledger, then publishes it."""
        began_ns, header = self.rt.loop.now_ns(), frame.shown
        source, missing = self.source(header.source), frame.missing(reason)
        if header.doubtful:
            missing["decoder"] = "decode_error"
        captured_s = time.time() - (began_ns - header.captured_ns) / 1e9
        try:
            merged, sure, counted = self.merge(frame, source)
        except Exception:
            self.rt.log.exception("merging failed on %s %d", header.source, header.seq)
            return self.drop(header.source, header.seq, "engine_error")
        persons = merged[counted]
        if not missing:
            source.persons = persons
        seen = SeenFrame(
            header, merged.tobytes(), sure.tobytes(), counted.tobytes(), not missing, captured_s, source.start_s
        )
        source.ledger.count(seen)
        ended_ns = source.frame_ns = self.rt.loop.now_ns()
        stages_ms, hops_ms = timings(frame, began_ns, ended_ns)
        end_to_end_ms = round((ended_ns - header.captured_ns) / 1e6, 3)
        self.publish_count(frame, len(persons), missing, end_to_end_ms, stages_ms, hops_ms)
        tracks, events = source.follow(seen)
        detections = {**stored_boxes(header, persons), "ids": [track or None for track in tracks]}
        self.send("detections", header.source, {**identity(header), **detections})
        self.publish_events(header.source, events)
        self.rt.counters["frames_counted"] += 1
        self.rt.tracer.record(
            "fusion", header, began_ns, self.rt.loop.now_ns(), people=len(persons), complete=not missing
        )

    def merge(self, frame: PendingFrame, source: SourceState) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The persons of a frame, see merge(), float32 [n, 6]; which are sure, and which are counted, bool [n]."""
        boxes = b"".join(answer.boxes for answer in frame.answers.values())  # is_acceptable() has checked them
        rows = np.frombuffer(boxes, "<f4").reshape(-1, ROW_VALUES)
        persons = merge(rows, self.settings.same_iou, self.settings.same_ios)
        return persons, *hysteresis(persons, source.persons, self.settings.new_score)

    def drop(self, name: str, first: int, reason: str, frames: int = 1) -> None:
        """Commits dropped frames to the ledger, then publishes them."""
        source = self.source(name)
        if reason not in NOT_LOST:
            source.flow.interrupt()
        source.ledger.drop(first, frames, reason, source.flow.keep())
        self.rt.counters[f"dropped_{reason}"] += frames
        totals = source.ledger.totals.public()
        content = {"source": name, "seq": first, "frames": frames, "reason": reason, "totals": totals}
        self.send("dropped", name, content)

    def end(self, due: Ended) -> None:
        """All frames of a source are settled: its tracks end, and its last minute."""
        source = self.source(due.source)
        source.state = "ended"
        events = source.flow.cut()
        source.flow.end_minute()
        source.keep()
        self.publish_events(due.source, events)
        self.publish_status(due.source, self.rt.loop.now_ns())
        self.receiver.settle(due.receipts)

    def publish_count(
        self,
        frame: PendingFrame,
        people: int,
        missing: dict[str, str],
        end_to_end_ms: float,
        stages_ms: dict[str, float],
        hops_ms: dict[str, float],
    ) -> None:
        header = frame.shown
        content = {
            **identity(header),
            "count": people,
            "complete": not missing,
            "missing": missing,
            "end_to_end_ms": end_to_end_ms,
            "stages_ms": stages_ms,
            "hops_ms": hops_ms,
            "totals": self.source(header.source).ledger.totals.public(),
        }
        self.send("counts", header.source, content)

    def publish_events(self, name: str, events: list[Event]) -> None:
        """Publishes what happened at a source; it is in the journal and in the log already."""
        for kind, content in events:
            self.send(kind, name, content)
        if self.group and events:
            self.group.update()

    def send(self, kind: str, name: str, content: dict) -> None:
        """Publishes a message of a source, and tells the group."""
        self.publisher.send(kind, name, content)
        if self.group and kind in HEARD:
            self.group.hear(kind, name, content)

    def keep_time(self) -> None:
        """What time alone changes: minutes end."""
        now_s = time.time()
        if lost := sum(state.flow.events_lost for state in self.sources.states.values()):
            self.rt.counters["events_lost"] = lost
        for state in self.sources.states.values():
            if state.live and state.start_s is None and state.flow.tick(now_s):
                state.keep()

    def publish_statuses(self) -> None:
        """Publishes every source's state once a second, for late subscribers and for sources without frames."""
        now_ns = self.rt.loop.now_ns()
        self.sources.follow_shapes(now_ns)
        if now_ns < self.status_due_ns:
            return
        self.status_due_ns = now_ns + STATUS_NS
        try:
            self.sources.refresh(now_ns)
        except AppError as error:
            self.rt.log.error("sources cannot be read: %s", error)
        for name in self.sources.names():
            self.publish_status(name, now_ns)
        self.keep_time()
        if self.group:
            self.group.tell()

    def publish_status(self, name: str, now_ns: int) -> None:
        content = self.source(name).public(name, now_ns)
        warning = content.get("warning")
        if warning and name not in self.warned:
            self.rt.log.warning("%s: %s", name, warning)
        (self.warned.add if warning else self.warned.discard)(name)
        self.send("status", name, content)


def lock_of(number: int) -> str:
    """The file in data_dir that a fusion keeps locked, because it is the only one that writes its sources' logs."""
    return f"fusion.{number}.lock"


def identity(header: FrameHeader) -> dict:
    """Which frame a message is about, and when it was published."""
    return {
        "source": header.source,
        "seq": header.seq,
        "pts_s": None if header.pts_s is None else round(header.pts_s, 6),
        "time": utc(time.time()),
    }


def stored_boxes(header: FrameHeader, persons: np.ndarray) -> dict:
    """The boxes [k, 5 or more] of a frame in its stored pixels, with its size and the aspect of these pixels."""
    aspect = header.aspect
    scale_x, scale_y = 1 / max(aspect, 1.0), min(aspect, 1.0)  # the surface was stretched in one direction
    scaled = persons[:, :5].astype(float) * [scale_x, scale_y, scale_x, scale_y, 1]
    return {
        "width": round(header.width * scale_x),
        "height": round(header.height * scale_y),
        "pixel_aspect": round(aspect, 4),
        "boxes": np.hstack([scaled[:, :4].round(1), scaled[:, 4:].round(3)]).tolist(),
    }


def is_acceptable(
    body: Detections | Dropped | Confirmed | Status, sender: str, is_known: Callable[[str], bool]
) -> bool:
    """False for results of an unknown source, from the wrong process, or with an invalid part, box or reason."""
    if isinstance(body, Status):
        return sender == f"decoder.{body.source}" and is_known(body.source)
    if not is_known(body.header.source) or (body.part is not None and not body.part.is_of_tensors):
        return False
    if isinstance(body, Confirmed):
        return sender == f"decoder.{body.header.source}"
    return body.rows() is not None if isinstance(body, Detections) else body.reason in DROP_REASONS
