"""Which results belong to one frame, and when to stop waiting for more of them. Pure: the time is passed in.

Frames of a source are settled strictly in the order of their seq, each once: published with the answers so far, or
dropped with a reason. A frame is settled when

1. every part of it was answered or dropped (and it was confirmed, if it was offered early), or the whole was dropped;
2. its deadline has passed (live sources);
3. it was lost with a process: no ring has held it and no part of it was answered for `idle_ns`, or for a fifth of that
   when more than `reorder_frames` later frames are complete. A slow worker's frame is held by a ring, so it is awaited.

A seq without any result, because it was lost with its decoder, is settled together with the next known one.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from peoplecounter.common.ipc.messages import Confirmed, Detections, Dropped, FrameHeader, Status
from peoplecounter.common.ipc.results import Receipt
from peoplecounter.common.ipc.slots import PartKey
from peoplecounter.common.topology import GLOBAL, TILES

OVERTAKEN = 5  # an overtaken frame is given up this many times sooner
SOON_NS = 20_000_000  # after its last result, a frame's next one is expected within
LOOK_NS = 20_000_000  # how often all sources are looked at, for frames whose time is up


@dataclass
class PendingFrame:
    """What is known of one frame so far."""

    header: FrameHeader
    answers: dict[PartKey, Detections] = field(default_factory=dict)
    drops: dict[PartKey, str] = field(default_factory=dict)
    parts: int | None = None  # how many it has; None: not known yet
    dropped: str | None = None  # why the whole frame was dropped
    confirmed: FrameHeader | None = None  # of a frame that was offered early and has been decoded
    receipts: list[Receipt] = field(default_factory=list)  # of the results, to acknowledge them
    first_ns: int = 0  # when the first result came
    heard_ns: int = 0  # when a result last came, or a ring last held the frame

    @property
    def complete(self) -> bool:
        """True when no more results will come."""
        answered = self.parts is not None and len(self.answers.keys() | self.drops.keys()) >= self.parts
        return self.dropped is not None or (answered and self.decoded)

    @property
    def decoded(self) -> bool:
        """False for a frame that was offered early and has not been confirmed by its decoder."""
        return not self.header.early or self.confirmed is not None

    @property
    def shown(self) -> FrameHeader:
        """Its header, as its decoder knows it once the picture is decoded."""
        return self.confirmed or self.header

    def missing(self, reason: str) -> dict[str, str]:
        """Part without an answer -> why, e.g. {"tiles.1": "deadline"}; `reason` if the part was not dropped."""
        tiles = [(TILES, i) for i in range((self.parts or 1) - 1)]
        absent = [key for key in [(GLOBAL, 0), *tiles] if key not in self.answers]
        return {f"{name}.{i}": self.drops.get((name, i), reason) for name, i in absent}


@dataclass(frozen=True)
class Settled:
    """A frame to publish or to drop; `reason` applies if it is dropped, and to its missing parts."""

    frame: PendingFrame
    reason: str


@dataclass(frozen=True)
class Gap:
    """`count` frames from `first` on, without any result."""

    source: str
    first: int
    count: int


@dataclass(frozen=True)
class Ended:
    """All frames of a source are settled, and no more will come."""

    source: str
    frames: int
    receipts: list[Receipt]


@dataclass
class _SourceQueue:
    next_seq: int
    frames: dict[int, PendingFrame] = field(default_factory=dict)
    held_ns: dict[int, int] = field(default_factory=dict)  # seq without a result -> when a ring last held it
    end: int | None = None  # no seq of this or above will come
    end_ns: int = 0
    end_receipts: list[Receipt] = field(default_factory=list)


class Join:
    """Collects results by (source, seq)."""

    def __init__(self, reorder_frames: int, idle_ns: int):
        self._reorder, self._idle_ns = reorder_frames, idle_ns
        self._sources: dict[str, _SourceQueue] = {}
        self._heard: set[str] = set()  # sources of which something has come since the last settle()
        self._all_due_ns = 0

    def resume(self, source: str, next_seq: int) -> None:
        """Adds a source. Its frames before `next_seq` were settled by an earlier run."""
        self._sources[source] = _SourceQueue(next_seq)

    def add(self, body: Detections | Dropped | Confirmed, receipt: Receipt, now_ns: int) -> bool:
        """Adds a result of a source that was resumed; False when it is late or repeated: acknowledge it at once."""
        header = body.header
        queue = self._sources[header.source]
        if header.seq < queue.next_seq:
            return False
        self._heard.add(header.source)
        frame = queue.frames.setdefault(header.seq, PendingFrame(header, first_ns=now_ns))
        frame.heard_ns = now_ns
        part = body.part
        if part is not None:
            frame.parts = part.of
        if isinstance(body, Confirmed):
            frame.confirmed = header
        elif isinstance(body, Detections):
            if body.part.key in frame.answers:
                return False
            frame.answers[body.part.key] = body
            frame.header = header
        elif body.part is None:
            frame.dropped = frame.dropped or body.reason
        else:
            frame.drops.setdefault(body.part.key, body.reason)
        frame.receipts.append(receipt)
        return True

    def awaits(self, now_ns: int) -> bool:
        """True while the last results of a frame are about to come."""
        return any(
            now_ns - frame.heard_ns < SOON_NS and not frame.complete
            for queue in self._sources.values()
            for frame in queue.frames.values()
        )

    def held(self, source: str, seq: int, now_ns: int) -> None:
        """A ring still holds this frame: it may be slow, but is not lost."""
        queue = self._sources.get(source)
        if queue is None or seq < queue.next_seq:
            return
        if seq in queue.frames:
            queue.frames[seq].heard_ns = now_ns
        else:
            queue.held_ns[seq] = now_ns

    def end(self, status: Status, receipt: Receipt, now_ns: int) -> None:
        """The source has ended: no seq of `status.frames` or above will come."""
        self._heard.add(status.source)
        queue = self._sources[status.source]
        queue.end, queue.end_ns = status.frames, now_ns
        queue.end_receipts.append(receipt)

    def settle(self, now_ns: int) -> Iterator[Settled | Gap | Ended]:
        """Everything that is due, each source in the order of its frames; at most LOOK_NS after its time is up."""
        heard, self._heard = self._heard, set()
        if now_ns >= self._all_due_ns:
            self._all_due_ns, heard = now_ns + LOOK_NS, set(self._sources)
        for source in sorted(heard):
            queue = self._sources[source]
            while (due := self._head(source, queue, now_ns)) is not None:
                yield due

    def _head(self, source: str, queue: _SourceQueue, now_ns: int) -> Settled | Gap | Ended | None:
        if queue.end is not None and queue.next_seq >= queue.end:
            ended = Ended(source, queue.end, queue.end_receipts)
            queue.end, queue.end_receipts = None, []
            return ended
        known = min(queue.frames, default=queue.end)
        if known is None:
            return None
        frame = queue.frames.get(known)
        if known > queue.next_seq:
            since = frame.first_ns if frame else queue.end_ns
            heard_ns = max([since, *(ns for seq, ns in queue.held_ns.items() if seq < known)])
            if not self._overdue(queue, frame, heard_ns, now_ns):
                return None
            gap = Gap(source, queue.next_seq, known - queue.next_seq)
            self._advance(queue, known)
            return gap
        assert frame is not None  # only the end of a source has no frame, and it was handled above
        if frame.complete or self._overdue(queue, frame, frame.heard_ns, now_ns):
            del queue.frames[known]
            self._advance(queue, known + 1)
            return Settled(frame, self._reason(frame, now_ns))
        return None

    def _overdue(self, queue: _SourceQueue, frame: PendingFrame | None, heard_ns: int, now_ns: int) -> bool:
        """True when no more results are expected up to and including `frame` (None: up to the source's end)."""
        if frame is not None and frame.header.deadline_ns and now_ns > frame.header.deadline_ns:
            return True
        overtaken = sum(f.complete and bool(f.answers) for f in queue.frames.values()) > self._reorder
        return now_ns - heard_ns > (self._idle_ns // OVERTAKEN if overtaken else self._idle_ns)

    @staticmethod
    def _advance(queue: _SourceQueue, next_seq: int) -> None:
        queue.next_seq = next_seq
        queue.held_ns = {seq: ns for seq, ns in queue.held_ns.items() if seq >= next_seq}

    @staticmethod
    def _reason(frame: PendingFrame, now_ns: int) -> str:
        late = 0 < frame.header.deadline_ns < now_ns
        return frame.dropped or next(iter(frame.drops.values()), "deadline" if late else "stale")
