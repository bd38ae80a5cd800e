"""Which results belong to one frame, and when to stop waiting for more of them. Pure: it is given the time.

Frames of a source are settled strictly in the order of their seq, each once: published with what is there, or dropped
with a reason. A frame is settled when

1. every part of it was answered or dropped, or the whole of it was dropped;
2. its deadline has passed (live sources);
3. more than `reorder_frames` later frames are complete: more than all rings together hold, so it was lost with a
   process;
4. for `idle_ns` nothing was heard of its source, nor did any ring still hold a frame of it (the last before a crash).

A seq nobody ever mentions, because it was lost with its decoder, is settled with the next one that is known.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from common.messages import Detections, Dropped, Header, Status
from common.ring import PartKey


@dataclass
class Frame:
    """What is known of one frame so far."""

    header: Header
    answers: dict[PartKey, Detections] = field(default_factory=dict)
    drops: dict[PartKey, str] = field(default_factory=dict)
    parts: int | None = None  # how many it has; None: not yet known
    dropped: str | None = None  # why the whole of it was
    receipts: list[object] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """True when nothing more is to come."""
        return self.dropped is not None or (
            self.parts is not None and len(self.answers.keys() | self.drops.keys()) >= self.parts
        )

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
    heard_ns: int
    frames: dict[int, Frame] = field(default_factory=dict)
    end: int | None = None
    end_receipts: list[object] = field(default_factory=list)


class Join:
    """Collects results by (source, seq)."""

    def __init__(self, reorder_frames: int, idle_ns: int):
        self._reorder, self._idle_ns = reorder_frames, idle_ns
        self._lanes: dict[str, _Lane] = {}

    def resume(self, source: str, next_seq: int, now_ns: int) -> None:
        """Frames of this source before `next_seq` were settled by an earlier run."""
        self._lanes[source] = _Lane(next_seq, now_ns)

    def knows(self, source: str) -> bool:
        return source in self._lanes

    def add(self, body: Detections | Dropped, receipt: object, now_ns: int) -> bool:
        """Takes one result of a source that was resumed; False when it is late or repeated: acknowledge it now."""
        header = body.header
        lane = self._lanes[header.source]
        lane.heard_ns = now_ns
        if header.seq < lane.next_seq:
            return False
        frame = lane.frames.setdefault(header.seq, Frame(header))
        part = body.part
        if part is not None:
            frame.parts = part.of
        if isinstance(body, Detections):
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
        if lane and seq >= lane.next_seq:
            lane.heard_ns = now_ns

    def end(self, status: Status, receipt: object, now_ns: int) -> None:
        """The source has ended: no seq of `status.frames` or above will come."""
        lane = self._lanes[status.source]
        lane.heard_ns, lane.end = now_ns, status.frames
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
            if not self._overdue(lane, frame, now_ns):
                return None
            due = Gap(source, lane.next_seq, known - lane.next_seq)
            lane.next_seq = known
            return due
        if frame.complete or self._overdue(lane, frame, now_ns):
            del lane.frames[known]
            lane.next_seq = known + 1
            return Settled(frame, self._blame(frame, now_ns))
        return None

    def _overdue(self, lane: _Lane, frame: Frame | None, now_ns: int) -> bool:
        """True when what comes before the end of `frame` is waited for in vain (None: the source has ended)."""
        if frame is not None and frame.header.deadline_ns and now_ns > frame.header.deadline_ns:
            return True
        if sum(f.complete and bool(f.answers) for f in lane.frames.values()) > self._reorder:
            return True
        return now_ns - lane.heard_ns > self._idle_ns

    @staticmethod
    def _blame(frame: Frame, now_ns: int) -> str:
        late = 0 < frame.header.deadline_ns < now_ns
        return frame.dropped or next(iter(frame.drops.values()), "deadline" if late else "stale")
