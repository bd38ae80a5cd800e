"""The processes of the group, as their reports and their links tell."""

from dataclasses import dataclass, field

from peoplecounter.common.ipc.messages import Report


@dataclass
class ProcessState:
    """One process."""

    state: str = "up"  # or "silent", "down", "ended"
    since_ns: int = 0
    pid: int | None = None  # None: it has not reported yet
    counters: dict[str, int] = field(default_factory=dict)
    gauges: dict[str, int] = field(default_factory=dict)

    def public(self, now_ns: int) -> dict:
        """The state as subscribers get it."""
        content: dict = {"state": self.state, "seconds": round((now_ns - self.since_ns) / 1e9, 3)}
        if self.pid is not None:
            content |= {"pid": self.pid, "counters": self.counters}
        return content


class Members:
    """Every process that reports to fusion, fusion itself among them."""

    def __init__(self) -> None:
        self.processes: dict[str, ProcessState] = {}

    def report(self, report: Report, now_ns: int) -> str:
        """A process reports: it is up. Returns what to log, see change()."""
        line = self.change(report.service, "up", now_ns)
        process = self.processes[report.service]
        process.pid, process.counters, process.gauges = report.pid, report.counters, report.gauges
        return line

    def change(self, name: str, state: str, now_ns: int) -> str:
        """A process is "up", "silent", "down" or "ended". Returns what to log; empty: nothing."""
        process = self.processes.setdefault(name, ProcessState(since_ns=now_ns))
        if process.state == state:
            return ""
        before, process.state, process.since_ns = process.state, state, now_ns
        if not {before, state} & {"silent", "down"}:
            return ""
        return f"{name} is {state} again" if state == "up" else f"{name} is {state}"

    def forget(self, name: str) -> None:
        """The process ended as intended: it is no longer a member."""
        del self.processes[name]
