"""A source's ledger: every frame before `next_seq` was counted or dropped with a reason, exactly once."""

import msgspec

from peoplecounter.common.process.journal import Journal
from peoplecounter.services.fusion.flow import SeenFrame


class Totals(msgspec.Struct):
    """The sums of a source's ledger."""

    next_seq: int = 0
    counted: int = 0
    incomplete: int = 0  # of the counted frames
    dropped: dict[str, int] = {}  # reason -> frames
    untracked: SeenFrame | None = None  # the last counted frame, until `flow` contains it
    flow: bytes = (
        b""  # FlowRecord: people's tracks, and what is counted at lines; with `untracked` in the record before
    )

    def public(self) -> dict:
        """The totals as subscribers get them."""
        return {
            "frames": self.next_seq,
            "counted": self.counted,
            "incomplete": self.incomplete,
            "dropped": self.dropped,
        }


class Ledger:
    """The totals of one source, in a journal: a restarted fusion continues with them.

    They are written before a frame is published, so that no seq is ever published twice. A counted frame is written
    twice: as it is seen, which is short, so that its count is published soon; then with what moved in it.
    """

    def __init__(self, journal: Journal[Totals]):
        self._journal = journal
        newest, *before = journal.read_all() or [Totals()]
        if newest.untracked:  # killed between the two
            newest.flow = next((totals.flow for totals in before), b"")
        self.totals = newest

    def count(self, frame: SeenFrame) -> None:
        """A frame is counted; what moves in it is not known yet: `followed()` must come next."""
        self.totals.next_seq = frame.header.seq + 1
        self.totals.counted += 1
        self.totals.incomplete += not frame.complete
        self._journal.write(msgspec.structs.replace(self.totals, untracked=frame, flow=b""))

    def followed(self, flow: bytes) -> None:
        """What moves is known, up to the last counted frame."""
        self.totals.untracked, self.totals.flow = None, flow
        self._journal.write(self.totals)

    def drop(self, first: int, frames: int, reason: str, flow: bytes) -> None:
        """`frames` frames from `first` on are dropped."""
        self.totals.flow = flow
        self.totals.next_seq = first + frames
        self.totals.dropped[reason] = self.totals.dropped.get(reason, 0) + frames
        self._journal.write(self.totals)

    def close(self) -> None:
        self._journal.close()
