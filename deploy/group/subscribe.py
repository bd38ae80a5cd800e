"""Reads what a group publishes, and sums it up."""

import json
import threading
from collections import deque
from collections.abc import Callable, Iterator

import numpy as np
import zmq

from peoplecounter.common.budgets import budget_state
from peoplecounter.common.errors import BAD_DATA, SOFTWARE

POLL_S = 0.1
WAIT = "fusion_wait"  # the one hop that has a budget
FRAMES_KEPT = 100_000  # whose times are kept for percentiles

PublishedMessage = tuple[str, str, dict]  # kind, name of the source or process, content


def messages(
    endpoint: str, kinds: tuple[str, ...], stop: threading.Event, keys: tuple[bytes, bytes, bytes] | None = None
) -> Iterator[PublishedMessage | None]:
    """Every message of these kinds until `stop` is set; None whenever none came for POLL_S.

    `keys`, for an endpoint with CURVE: the server's public key, and the own public and secret key.
    """
    context = zmq.Context()
    socket = context.socket(zmq.SUB)
    socket.setsockopt(zmq.RCVHWM, 0)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.RECONNECT_IVL, 20)
    socket.setsockopt(zmq.IPV6, "[" in endpoint)
    if keys:
        socket.curve_serverkey, socket.curve_publickey, socket.curve_secretkey = keys
    for kind in kinds:
        socket.subscribe(f"{kind}.")
    socket.connect(endpoint)
    try:
        while not stop.is_set():
            if not socket.poll(int(POLL_S * 1000)):
                yield None
                continue
            topic, body = socket.recv_multipart()
            kind, _, name = topic.decode().partition(".")
            yield kind, name, json.loads(body)
    finally:
        context.destroy(linger=0)


class Tally:
    """The sums of a run, from its messages."""

    def __init__(self) -> None:
        self.totals: dict[str, dict] = {}  # source -> its last totals
        self.counts: dict[str, dict[int, int]] = {}  # source -> seq -> count
        self.lines: dict[str, dict] = {}  # SOURCE.LINE -> its last totals
        self.ended: set[str] = set()
        self._times: dict[tuple[str, str], deque[float]] = {}  # source, stage -> ms

    def add(self, kind: str, name: str, content: dict) -> None:
        """Adds one message."""
        if "totals" in content:
            self.totals[name] = content["totals"]
        self.lines |= {f"{name}.{line}": totals for line, totals in content.get("lines", {}).items()}
        if kind == "counts":
            counts = self.counts.setdefault(name, {})
            counts[content["seq"]] = content["count"]
            if len(counts) > FRAMES_KEPT:
                del counts[next(iter(counts))]
            waited = {key: ms for key, ms in content["hops_ms"].items() if key == WAIT}
            for key, ms in {**content["stages_ms"], **waited, "end_to_end": content["end_to_end_ms"]}.items():
                self._times.setdefault((name, key), deque(maxlen=FRAMES_KEPT)).append(ms)
        elif kind == "status" and content["state"] == "ended":
            self.ended.add(name)
        elif kind == "status":
            self.ended.discard(name)

    def budgets(self, budgets_ms: dict[str, float], live: set[str]) -> dict[str, dict]:
        """Budget -> its state over the whole run of the live sources, in the format of `budgets.group`."""
        states = {}
        for budget, ms in budgets_ms.items():
            times = [t for (source, key), of in self._times.items() if source in live and key == budget for t in of]
            if times:
                states[budget] = budget_state(ms, times)
        return states

    def lost(self, live: set[str]) -> tuple[str, int] | None:
        """(what an ended file has lost, exit code); None when nothing was lost.

        Damaged frames are not a loss, unless the file has no others. `live` sources may drop frames.
        """
        for name in sorted(self.ended & self.totals.keys() - live):
            totals = self.totals[name]
            lost = {reason: frames for reason, frames in totals["dropped"].items() if reason != "decode_error"}
            if sum(lost.values()):
                reasons = ", ".join(f"{frames} {reason}" for reason, frames in sorted(lost.items()) if frames)
                dropped = f"{sum(lost.values())} of {totals['frames']} frames were dropped ({reasons})"
                return f"{name} is not counted completely: {dropped}", SOFTWARE
            if totals["frames"] and not totals["counted"]:
                return f"{name} is not counted: none of its {totals['frames']} frames could be decoded", BAD_DATA
        return None

    def summary(self, truth: dict[int, int] | None = None) -> dict:
        """The run in numbers; with the true count of each frame also `mae` and `mean_truth`."""
        dropped: dict[str, int] = {}
        for totals in self.totals.values():
            for reason, frames in totals["dropped"].items():
                dropped[reason] = dropped.get(reason, 0) + frames
        stages: dict[str, list[float]] = {}
        for (_, key), times in self._times.items():
            if key != WAIT:
                stages.setdefault(key, []).extend(times)
        percentiles = {stage: np.percentile(ms, [50, 99]).round(3).tolist() for stage, ms in stages.items()}
        errors = [abs(n - truth[seq]) for c in self.counts.values() for seq, n in c.items() if truth and seq in truth]
        return {
            "frames": sum(t["frames"] for t in self.totals.values()),
            "counted": sum(t["counted"] for t in self.totals.values()),
            "incomplete": sum(t["incomplete"] for t in self.totals.values()),
            "dropped": dropped,
            "lines": self.lines,
            "mae": round(float(np.mean(errors)), 4) if errors else None,
            "mean_truth": round(float(np.mean(list(truth.values()))), 4) if truth else None,
            "stages_ms": {stage: {"p50": p50, "p99": p99} for stage, (p50, p99) in percentiles.items()},
        }


class Follower(threading.Thread):
    """Calls `on_message` for every message, in a thread of its own, until it raises; `error` is what it raised."""

    def __init__(
        self,
        endpoint: str,
        kinds: tuple[str, ...],
        on_message: Callable[[str, str, dict], None],
        on_error: Callable[[], None] = lambda: None,
    ):
        super().__init__(daemon=True, name="follower")
        self._done = threading.Event()
        self._endpoint, self._kinds = endpoint, kinds
        self._on_message, self._on_error = on_message, on_error
        self.error: Exception | None = None
        self.start()

    def run(self) -> None:
        try:
            for message in messages(self._endpoint, self._kinds, self._done):
                if message is not None:
                    self._on_message(*message)
        except Exception as error:
            self.error = error
            self._on_error()

    def close(self) -> None:
        self._done.set()
        self.join(timeout=2)
