"""A source's ledger: every frame before `next_seq` was counted or dropped with a reason, exactly once."""

import msgspec

from peoplecounter.common.process.journal import Journal
from peoplecounter.services.fusion.flow import FlowRecord


class Totals(msgspec.Struct):
    """The sums of a source's ledger."""

    next_seq: int = 0
    counted: int = 0
    incomplete: int = 0  # of the counted frames
    dropped: dict[str, int] = {}  # reason -> frames
    flow: FlowRecord | None = None  # people's tracks, and what is counted at lines

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

    They are written before a frame is published, so that no seq is ever published twice.
    """

    def __init__(self, journal: Journal[Totals]):
        self._journal = journal
        self.totals = journal.read() or Totals()

    def count(self, seq: int, complete: bool) -> None:
        """Frame `seq` is counted."""
        self.totals.next_seq = seq + 1
        self.totals.counted += 1
        self.totals.incomplete += not complete
        self._journal.write(self.totals)

    def drop(self, first: int, frames: int, reason: str) -> None:
        """`frames` frames from `first` on are dropped."""
        self.totals.next_seq = first + frames
        self.totals.dropped[reason] = self.totals.dropped.get(reason, 0) + frames
        self._journal.write(self.totals)

    def keep(self) -> None:
        """Writes what has changed apart from a frame."""
        self._journal.write(self.totals)

    def close(self) -> None:
        self._journal.close()
