"""What a fusion knows of the sources that it counts."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from peoplecounter.common import shape_changes
from peoplecounter.common.errors import AppError
from peoplecounter.common.events import EventLog
from peoplecounter.common.files import sha256
from peoplecounter.common.process.control import sources_to_decode
from peoplecounter.common.process.journal import Journal
from peoplecounter.common.settings import Settings
from peoplecounter.common.shape_changes import known_shapes
from peoplecounter.common.sources import SourceChange, known_sources
from peoplecounter.services.fusion.clock import start_of
from peoplecounter.services.fusion.flow import Event, Flow, SeenFrame
from peoplecounter.services.fusion.ledger import Ledger, Totals

REFRESH_NS = 100_000_000  # a result of an unknown source makes fusion read the sources again, at most this often
SHAPES_NS = 200_000_000  # how often fusion looks whether lines or zones have changed
STALE_NS = 3_000_000_000  # a source whose decoder says nothing for this long is stale
VOLATILE_LOG_BYTES = 16 << 20  # of a source's event log in the run directory, which is memory


@dataclass
class SourceState:
    """One source. Its ledger survives a restart of fusion."""

    ledger: Ledger
    flow: Flow
    change: str  # SourceChange.id: a source of the same name that was added again starts anew
    state: str  # as its decoder says; "waiting": it has no decoder yet
    detail: str = ""
    live: bool = False  # it cannot be paused
    heard_ns: int = 0  # when its decoder last reported
    frame_ns: int = 0  # when a frame of it was last counted
    start_s: float | None = None  # UTC at which a file begins, if its user said so
    persons: np.ndarray = field(default_factory=lambda: np.zeros((0, 6), np.float32))  # of the last complete frame

    def keep(self) -> None:
        """Writes what has changed apart from a frame, then logs it."""
        self.ledger.followed(self.flow.keep())
        self.flow.log()

    def follow(self, frame: SeenFrame) -> tuple[list[str], list[Event]]:
        """See Flow.frame(). A frame that cannot be followed is counted all the same."""
        try:
            found = self.flow.frame(frame)
        except Exception:
            logging.getLogger("fusion.flow").exception("following people failed on %s", frame.header)
            self.flow.forget_tracks()
            found = [""] * frame.people, []
        self.keep()
        return found

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
            **self.flow.public(),
        }

    def close(self) -> None:
        """What is known of the current minute is logged: nobody may come back for it."""
        self.flow.end_minute()
        self.keep()
        self.ledger.close()
        self.flow.close()


class SourceStates:
    """The sources that one fusion counts. `on_new(name, next_seq)` is called when it first learns of one,
    `on_events(name, events)` when something happens at one apart from a frame; `is_mine(name)`: it counts this one."""

    def __init__(
        self,
        settings: Settings,
        now_ns: int,
        on_new: Callable[[str, int], None],
        on_events: Callable[[str, list[Event]], None] = lambda name, events: None,
        is_mine: Callable[[str], bool] = lambda name: True,
    ):
        self._settings, self._on_new, self._on_events, self._is_mine = settings, on_new, on_events, is_mine
        self._told: set[str] = set()  # errors that were logged
        self.states: dict[str, SourceState] = {}
        self.known: dict[str, SourceChange] = {}
        self.others: set[str] = set()  # that other fusions count
        self._read()
        self._refreshed_ns = now_ns
        self._shapes_ns, self._shapes_due_ns = self._shapes_written_ns(), now_ns

    def get(self, name: str, now_ns: int) -> SourceState:
        """The state of a source, with the ledger of an earlier run of fusion if there was one."""
        if name not in self.states:
            ledger = Ledger(Journal(self._settings.run_dir / f"fusion.{name}.journal", Totals))
            change = self.known[name].id if name in self.known else ""
            state = "waiting" if name in sources_to_decode(self._settings) else "ended"
            limit_bytes = self._settings.history.log_mb << 20 if self._settings.data_dir else VOLATILE_LOG_BYTES
            log = EventLog(self._settings.data, name, limit_bytes)
            flow = Flow(name, log, ledger.totals.flow, played(self.known.get(name)))
            self.states[name] = SourceState(ledger, flow, change, state, frame_ns=now_ns)
            self._set_shapes(name)
            if ledger.totals.untracked:
                self.states[name].follow(ledger.totals.untracked)
            self._on_new(name, ledger.totals.next_seq)
        return self.states[name]

    def is_known(self, name: str, now_ns: int) -> bool:
        """True for a source that is counted here, also if it was just added, or was removed and has not ended yet."""
        if not self._is_mine(name):
            return False
        if name not in self.states and name not in self.known and now_ns - self._refreshed_ns > REFRESH_NS:
            self.refresh(now_ns)
        return name in self.states or name in self.known

    def refresh(self, now_ns: int) -> None:
        """Reads which sources exist: forgets those that were removed and have ended, restarts those added again.

        Raises AppError when a source cannot be read; nothing changes then.
        """
        self._refreshed_ns = now_ns
        self._read()
        for name, source in list(self.states.items()):
            if name not in self.known:
                if source.state == "ended" or now_ns - source.heard_ns > STALE_NS:
                    self.states.pop(name).close()
                continue
            if source.change != self.known[name].id:
                source.change = self.known[name].id
                found = source.flow.begin_anew(played(self.known[name]))
                source.keep()
                self._on_events(name, found)
                if source.state == "ended":
                    source.state, source.detail = "waiting", ""
            self._set_shapes(name)

    def _read(self) -> None:
        every = known_sources(self._settings)
        self.known = {name: change for name, change in every.items() if self._is_mine(name)}
        self.others = every.keys() - self.known.keys()

    def follow_shapes(self, now_ns: int) -> None:
        """Reads the lines and zones again soon after one of them has changed."""
        if now_ns < self._shapes_due_ns:
            return
        self._shapes_due_ns = now_ns + SHAPES_NS
        written_ns = self._shapes_written_ns()
        if written_ns != self._shapes_ns:
            self._shapes_ns = written_ns
            for name in self.states:
                self._set_shapes(name)

    def _shapes_written_ns(self) -> int:
        """When a file of lines or zones was written last."""
        try:
            return shape_changes.folder(self._settings).stat().st_mtime_ns
        except OSError:
            return 0

    def _set_shapes(self, name: str) -> None:
        """Reads the lines and zones of a source. A file of them that is damaged changes nothing."""
        source = self.known[name].source if name in self.known else None
        if source is None:
            return
        state = self.states[name]
        state.start_s = start_of(source.start_time, self._settings.timezone)
        try:
            shapes = known_shapes(self._settings, name, source)
        except AppError as error:
            if str(error) not in self._told:
                logging.getLogger("fusion.lines").error("%s", error)
                self._told.add(str(error))
            if state.flow.lines or state.flow.zones:
                return
            shapes = {**source.lines, **source.zones}
        changed = state.flow.set_shapes(shapes, time.time())
        if changed and not state.ledger.totals.untracked:  # otherwise follow() keeps both
            state.keep()

    def names(self) -> set[str]:
        """All sources that are counted here: those that exist, and those that have not ended yet."""
        return self.known.keys() | self.states.keys()

    def close(self) -> None:
        for source in self.states.values():
            source.close()


def played(change: SourceChange | None) -> str:
    """Names what a source plays: another file under the same name, or the same one added again, has another name."""
    if change is None or change.source is None:
        return ""
    return sha256(f"{change.id} {change.source.start_time} {change.source.url}".encode())[:16]
