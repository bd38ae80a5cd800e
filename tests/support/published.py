"""Everything that a group has published, and waiting for more of it."""

import threading
import time
from collections.abc import Callable

from peoplecounter.deploy.group.subscribe import Follower

KINDS = (
    "counts", "detections", "dropped", "status", "service", "budgets", "crossings", "zones", "areas", "alerts",
)  # fmt: skip


class Published:
    """Follows a group's endpoint in a thread until close()."""

    kinds = KINDS

    def __init__(self, endpoint: str):
        self.messages: list[tuple[str, str, dict]] = []
        self.arrived = threading.Condition()
        self.follower = Follower(endpoint, self.kinds, self._on_message)

    def wait_for(self, condition: Callable[[], object], what: str, timeout_s: float = 30) -> float:
        """Seconds until the condition held; fails with tail() when it does not."""
        begin = time.monotonic()
        with self.arrived:
            while not condition():
                left = begin + timeout_s - time.monotonic()
                if left <= 0:
                    last = {kind: next((m for m in reversed(self.messages) if m[0] == kind), None) for kind in KINDS}
                    raise AssertionError(f"not within {timeout_s} s: {what}\n{last}\n{self.tail()}")
                self.arrived.wait(min(left, 0.1))
        return time.monotonic() - begin

    def wait_counts(self, more: int, timeout_s: float = 30, complete: bool = True) -> float:
        """Seconds until this many more frames were counted (completely)."""
        target = self.counted(complete) + more
        return self.wait_for(lambda: self.counted(complete) >= target, f"{more} more counts", timeout_s)

    def of(self, kind: str, source: str | None = None) -> list[dict]:
        return [content for k, name, content in self.messages if k == kind and source in (None, name)]

    def counted(self, complete: bool = False) -> int:
        return sum(content["complete"] or not complete for content in self.of("counts"))

    def ended(self, source: str = "cam") -> bool:
        return any(content["state"] == "ended" for content in self.of("status", source))

    def totals(self, source: str = "cam") -> dict:
        of_frames = ("counts", "dropped", "status")
        return next(c["totals"] for k, name, c in reversed(self.messages) if k in of_frames and name == source)

    def counters(self, name: str) -> dict:
        """The latest counters that a process reported."""
        return next((c["counters"] for k, n, c in reversed(self.messages) if k == "service" and n == name), {})

    def state(self, name: str) -> str:
        """The latest state that was published of a process."""
        return next((c["state"] for k, n, c in reversed(self.messages) if k == "service" and n == name), "")

    def check_books(self, source: str = "cam", unheard: int = 0) -> int:
        """Every frame was counted or dropped with a reason, none twice, in order; published, but for `unheard` at most.

        Returns of how many nothing was heard.
        """
        totals = self.totals(source)
        assert totals["frames"] == totals["counted"] + sum(totals["dropped"].values()), totals
        seqs = [content["seq"] for content in self.of("counts", source)]
        gone = [seq for c in self.of("dropped", source) for seq in range(c["seq"], c["seq"] + c["frames"])]
        assert len(set(seqs)) == len(seqs), "a seq was published twice"
        assert not set(seqs) & set(gone), "a seq was counted and dropped"
        assert seqs == sorted(seqs), "counts are out of order"
        silent = set(range(totals["frames"])) - set(seqs) - set(gone)
        assert len(silent) <= unheard, f"neither counted nor dropped: {sorted(silent)[:9]}"
        return len(silent)

    def tail(self) -> str:
        """The end of a log, where there is one."""
        return ""

    def close(self) -> None:
        self.follower.close()

    def _on_message(self, kind: str, name: str, content: dict) -> None:
        with self.arrived:
            self.messages.append((kind, name, content))
            self.arrived.notify_all()
