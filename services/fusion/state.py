"""What fusion knows of the sources and of the group."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from peoplecounter.common.process.control import sources_to_decode
from peoplecounter.common.process.journal import Journal
from peoplecounter.common.settings import Settings
from peoplecounter.common.sources import SourceChange, known_sources
from peoplecounter.services.fusion.ledger import Ledger, Totals
from peoplecounter.services.fusion.members import Members

REFRESH_NS = 100_000_000  # a result of an unknown source makes fusion read the sources again, at most this often
STALE_NS = 3_000_000_000  # a source whose decoder says nothing for this long is stale


@dataclass
class SourceState:
    """One source. Its ledger survives a restart of fusion."""

    ledger: Ledger
    change: str  # SourceChange.id: a source of the same name that was added again starts anew
    state: str  # as its decoder says; "waiting": it has no decoder yet
    detail: str = ""
    live: bool = False  # it cannot be paused
    heard_ns: int = 0  # when its decoder last reported
    frame_ns: int = 0  # when a frame of it was last counted
    people: int | None = None  # in the last complete frame
    persons: np.ndarray = field(default_factory=lambda: np.zeros((0, 6), np.float32))  # of the last complete frame

    def published_state(self, now_ns: int) -> str:
        """The state that is published: "stale" when the decoder says nothing."""
        silent = self.state not in ("waiting", "ended") and now_ns - self.heard_ns > STALE_NS
        return "stale" if silent else self.state

    def public(self, name: str, now_ns: int) -> dict:
        """The state as subscribers get it."""
        return {
            "source": name,
            "state": self.published_state(now_ns),
            "detail": self.detail,
            "live": self.live,
            "seconds_since_frame": round((now_ns - self.frame_ns) / 1e9, 3),
            "totals": self.ledger.totals.public(),
        }


class SourceStates:
    """The sources of the group. `on_new(name, next_seq)` is called when fusion first learns of one."""

    def __init__(self, settings: Settings, now_ns: int, on_new: Callable[[str, int], None]):
        self._settings, self._on_new = settings, on_new
        self.states: dict[str, SourceState] = {}
        self.known: dict[str, SourceChange] = known_sources(settings)
        self._refreshed_ns = now_ns

    def get(self, name: str, now_ns: int) -> SourceState:
        """The state of a source, with the ledger of an earlier run of fusion if there was one."""
        if name not in self.states:
            journal = Journal(self._settings.run_dir / f"fusion.{name}.journal", Totals)
            change = self.known[name].id if name in self.known else ""
            state = "waiting" if name in sources_to_decode(self._settings) else "ended"
            self.states[name] = SourceState(Ledger(journal), change, state, frame_ns=now_ns)
            self._on_new(name, self.states[name].ledger.totals.next_seq)
        return self.states[name]

    def is_known(self, name: str, now_ns: int) -> bool:
        """True for a source of this group: one that was just added, or was removed and has not ended yet, too."""
        if name not in self.states and name not in self.known and now_ns - self._refreshed_ns > REFRESH_NS:
            self.refresh(now_ns)
        return name in self.states or name in self.known

    def refresh(self, now_ns: int) -> None:
        """Reads which sources exist: forgets those that were removed and have ended, restarts those added again.

        Raises AppError when a source cannot be read; nothing changes then.
        """
        self._refreshed_ns = now_ns
        self.known = known_sources(self._settings)
        for name, source in list(self.states.items()):
            if name not in self.known:
                if source.state == "ended" or now_ns - source.heard_ns > STALE_NS:
                    self.states.pop(name).ledger.close()
            elif source.change != self.known[name].id:
                source.change = self.known[name].id
                if source.state == "ended":
                    source.state, source.detail = "waiting", ""

    def names(self) -> set[str]:
        """All sources: those that exist, and those that have not ended yet."""
        return self.known.keys() | self.states.keys()

    def close(self) -> None:
        for source in self.states.values():
            source.ledger.close()


@dataclass
class GroupState:
    """Everything that metrics report."""

    sources: SourceStates
    members: Members
    now_ns: Callable[[], int]
    budgets: dict[str, dict] = field(default_factory=dict)  # see BudgetWindow.states
