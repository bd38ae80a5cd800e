"""What subscribers read: JSON on a PUB socket, one topic a source and kind. No code of ours is needed to read it.

counts.<source>      one object for each counted frame, in the order of seq
detections.<source>  its boxes
dropped.<source>     frames that were not counted, and why
status.<source>      once a second and on every change: is the source online, stale, reconnecting, ended
service.<name>       once a second: counters of one process
"""

import json
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import zmq

from common.errors import Refused
from common.messages import Header
from services.fusion.join import Frame


class Totals(msgspec.Struct):
    """A source's ledger: every frame before `next_seq` was counted or dropped, exactly once."""

    next_seq: int = 0
    counted: int = 0
    incomplete: int = 0  # of the counted
    dropped: dict[str, int] = {}

    def drop(self, reason: str, frames: int = 1) -> None:
        self.dropped[reason] = self.dropped.get(reason, 0) + frames

    def public(self) -> dict:
        return {
            "frames": self.next_seq,
            "counted": self.counted,
            "incomplete": self.incomplete,
            "dropped": self.dropped,
        }


class Publisher:
    """The PUB socket. A slow subscriber loses messages; it never slows us."""

    def __init__(self, context: zmq.Context, endpoint: str):
        self._socket = context.socket(zmq.PUB)
        self._socket.setsockopt(zmq.LINGER, 500)
        self._path = Path(endpoint.removeprefix("ipc://")) if endpoint.startswith("ipc://") else None
        if self._path:
            self._path.unlink(missing_ok=True)  # we hold the lock of results.fusion
        try:
            self._socket.bind(endpoint)
        except zmq.ZMQError as error:
            raise Refused(f"Counts cannot be published on {endpoint}: {error.strerror}; set fusion.publish.") from None

    def send(self, kind: str, name: str, content: dict) -> None:
        self._socket.send_multipart([f"{kind}.{name}".encode(), json.dumps(content, separators=(",", ":")).encode()])

    def close(self) -> None:
        self._socket.close()
        if self._path:
            self._path.unlink(missing_ok=True)


def timings(header: Header, frame: Frame, began_ns: int, ended_ns: int) -> tuple[dict[str, float], dict[str, float]]:
    """(milliseconds of each stage's work, milliseconds between a stage and the one before it).

    A frame that was offered early passes preprocess while it is decoded: what is done in advance costs no hop.
    """
    spans = {**header.marks, **(frame.confirmed.marks if frame.confirmed else {})}
    gpu = {}
    for name in ("global", "tiles"):
        parts = [a for (part, _), a in frame.answers.items() if part == name]
        if parts:
            spans[f"infer_{name}"] = min(a.began_ns for a in parts), max(a.ended_ns for a in parts)
            if any(a.gpu_ns for a in parts):
                gpu[f"infer_{name}_gpu"] = _ms(sum(a.gpu_ns for a in parts))
    spans["fusion"] = began_ns, ended_ns
    stages = {stage: _ms(end - begin) for stage, (begin, end) in spans.items()}
    ready = {"copy": "decode", "preprocess": "copy", "infer_global": "preprocess", "infer_tiles": "preprocess"}
    if header.early:
        ready |= {"infer_global": "copy", "infer_tiles": "copy"}
    hops = {"packet>decode": _ms(spans["decode"][0] - header.captured_ns)} if "decode" in spans else {}
    hops |= {f"{b}>{a}": _ms(max(0, spans[a][0] - spans[b][1])) for a, b in ready.items() if {a, b} <= spans.keys()}
    last = max((s for s in spans if s.startswith("infer_")), key=lambda s: spans[s][1])
    hops[f"{last}>fusion"] = _ms(began_ns - spans[last][1])
    return stages | gpu, hops


def _ms(ns: int) -> float:
    return round(ns / 1e6, 3)


def utc_now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
