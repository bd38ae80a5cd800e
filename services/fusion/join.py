"""Which results belong to one frame, and when to stop waiting for more of them. Pure: it is given the time.

Frames of a source are settled strictly in the order of their seq, each once: published with what is there, or dropped
with a reason. A frame is settled when

1. every part of it was answered or dropped (and it was confirmed, if it was offered early), or the whole was dropped;
2. its deadline has passed (live sources);
3. it was lost with a process: no ring has held it and no part of it was answered for `idle_ns`; for a fifth of that
   when more than `reorder_frames` later ones are complete already. A slow worker's frame is held, so it is waited for.

A seq nobody ever mentions, because it was lost with its decoder, is settled with the next one that is known.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from peoplecounter.common.ipc.messages import Confirmed, Detections, Dropped, Header, Status
from peoplecounter.common.ipc.slots import PartKey

OVERTAKEN = 5  # an overtaken frame is given up this many times sooner


@dataclass
class Frame:
    """What is known of one frame so far."""

    header: Header
    answers: dict[PartKey, Detections] = field(default_factory=dict)
    drops: dict[PartKey, str] = field(default_factory=dict)
    parts: int | None = None  # how many it has; None: not yet known
    dropped: str | None = None  # why the whole of it was
    confirmed: Header | None = None  # of a frame that was offered early: it was decoded
    receipts: list[object] = field(default_factory=list)
    first_ns: int = 0  # when something was first heard of it
    heard_ns: int = 0  # when it was last answered, or held by a ring

    @property
    def complete(self) -> bool:
        """True when nothing more is to come."""
        answered = self.parts is not None and len(self.answers.keys() | self.drops.keys()) >= self.parts
        return self.dropped is not None or (answered and self.real)

    @property
    def real(self) -> bool:
        """False for a frame that was offered early and of which its decoder has not said that it was decoded."""
        return not self.header.early or self.confirmed is not None

    def missing(self, reason: str) -> dict[str, str]:
        """Part without an answer -> why: {"tiles.1": "deadline"}; `reason` where nobody said."""
        tiles = [("tiles", i) for i in range((self.parts or 1) - 1)]
        absent = [key for key in [("global", 0), *tiles] if key not in self.answers]
        return {f"{name}.{i}": self.drops.get((name, i), reason) for name, i in absent}


@dataclass(frozen=True)
class Settled:
    """A frame to publish or to drop; `reason` is what to blame when it has no answer at all."""

    frame: Frame
    reason: str


@dataclass(frozen=True)
class Gap:
    """`count` frames from `first` on, of which nothing was ever heard."""

    source: str
    first: int
    count: int


@dataclass(frozen=True)
class Ended:
    """All frames of a source are settled and no more will come."""

    source: str
    frames: int
    receipts: list[object]


@dataclass
class _Lane:
    next_seq: int
    frames: dict[int, Frame] = field(default_factory=dict)
    held_ns: dict[int, int] = field(default_factory=dict)  # seq nothing else is known of -> when a ring last held it
    end: int | None = None
    end_ns: int = 0
    end_receipts: list[object] = field(default_factory=list)


class Join:
    """Collects results by (source, seq)."""

    def __init__(self, reorder_frames: int, idle_ns: int):
        self._reorder, self._idle_ns = reorder_frames, idle_ns
        self._lanes: dict[str, _Lane] = {}

    def resume(self, source: str, next_seq: int) -> None:
        """Frames of this source before `next_seq` were settled by an earlier run."""
        self._lanes[source] = _Lane(next_seq)

    def add(self, body: Detections | Dropped | Confirmed, receipt: object, now_ns: int) -> bool:
        """Takes one result of a source that was resumed; False when it is late or repeated: acknowledge it now."""
        header = body.header
        lane = self._lanes[header.source]
        if header.seq < lane.next_seq:
            return False
        frame = lane.frames.setdefault(header.seq, Frame(header, first_ns=now_ns))
        frame.heard_ns = now_ns
        part = body.part
        if part is not None:
            frame.parts = part.of
        if isinstance(body, Confirmed):
            frame.confirmed = header
        elif isinstance(body, Detections):
            if part.key in frame.answers:
                return False
            frame.answers[part.key] = body
            frame.header = header
        elif part is None:
            frame.dropped = frame.dropped or body.reason
        else:
            frame.drops.setdefault(part.key, body.reason)
        frame.receipts.append(receipt)
        return True

    def held(self, source: str, seq: int, now_ns: int) -> None:
        """A ring still holds this frame: it may be slow, but it is not lost."""
        lane = self._lanes.get(source)
        if lane is None or seq < lane.next_seq:
            return
        if seq in lane.frames:
            lane.frames[seq].heard_ns = now_ns
        else:
            lane.held_ns[seq] = now_ns

    def end(self, status: Status, receipt: object, now_ns: int) -> None:
        """The source has ended: no seq of `status.frames` or above will come."""
        lane = self._lanes[status.source]
        lane.end, lane.end_ns = status.frames, now_ns
        lane.end_receipts.append(receipt)

    def settle(self, now_ns: int) -> Iterator[Settled | Gap | Ended]:
        """Everything that is due, each source in order."""
        for source, lane in self._lanes.items():
            while (due := self._head(source, lane, now_ns)) is not None:
                yield due

    def _head(self, source: str, lane: _Lane, now_ns: int) -> Settled | Gap | Ended | None:
        if lane.end is not None and lane.next_seq >= lane.end:
            due = Ended(source, lane.end, lane.end_receipts)
            lane.end, lane.end_receipts = None, []
            return due
        known = min(lane.frames, default=lane.end)
        if known is None:
            return None
        frame = lane.frames.get(known)
        if known > lane.next_seq:
            since = frame.first_ns if frame else lane.end_ns
            heard_ns = max([since, *(ns for seq, ns in lane.held_ns.items() if seq < known)])
            if not self._overdue(lane, frame, heard_ns, now_ns):
                return None
            due = Gap(source, lane.next_seq, known - lane.next_seq)
            self._advance(lane, known)
            return due
        if frame.complete or self._overdue(lane, frame, frame.heard_ns, now_ns):
            del lane.frames[known]
            self._advance(lane, known + 1)
            return Settled(frame, self._blame(frame, now_ns))
        return None

    def _overdue(self, lane: _Lane, frame: Frame | None, heard_ns: int, now_ns: int) -> bool:
        """True when what comes before the end of `frame` is waited for in vain (None: the source has ended)."""
        if frame is not None and frame.header.deadline_ns and now_ns > frame.header.deadline_ns:
            return True
        overtaken = sum(f.complete and bool(f.answers) for f in lane.frames.values()) > self._reorder
        return now_ns - heard_ns > (self._idle_ns // OVERTAKEN if overtaken else self._idle_ns)

    @staticmethod
    def _advance(lane: _Lane, next_seq: int) -> None:
        lane.next_seq = next_seq
        lane.held_ns = {seq: ns for seq, ns in lane.held_ns.items() if seq >= next_seq}

    @staticmethod
    def _blame(frame: Frame, now_ns: int) -> str:
        late = 0 < frame.header.deadline_ns < now_ns
        return frame.dropped or next(iter(frame.drops.values()), "deadline" if late else "stale")
