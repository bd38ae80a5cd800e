"""What subscribers read: JSON on a PUB socket, one topic a source and kind. No code of ours is needed to read it.

counts.<source>      one object for each counted frame, in the order of seq
detections.<source>  its boxes
dropped.<source>     frames that were not counted, and why
status.<source>      once a second and on every change: is the source online, stale, reconnecting, ended
service.<name>       once a second: counters of one process
budgets.group        once a second: p95 of the live frames' times beside their budgets
"""

import json
import logging
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import zmq
from zmq.auth.thread import ThreadAuthenticator

from peoplecounter.common.errors import Refused
from peoplecounter.common.ipc.messages import Header
from peoplecounter.common.keys import key_pair, public_keys
from peoplecounter.common.settings import Fusion, Settings
from peoplecounter.services.fusion.join import Frame


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


SUBSCRIPTION_BYTES_MAX = 1024  # of a topic that somebody subscribes to


class Publisher:
    """The PUB socket, bound in the run directory and, if the settings say so, on TCP. Nobody slow ever slows us."""

    def __init__(self, context: zmq.Context, settings: Settings):
        self._path = Path(settings.publish.removeprefix("ipc://"))
        self._path.unlink(missing_ok=True)  # we hold the lock of results.fusion
        self._guard: ThreadAuthenticator | None = None
        self._socket = context.socket(zmq.PUB)
        self._socket.setsockopt(zmq.LINGER, 500)
        self._socket.bind(settings.publish)
        if settings.fusion.publish:
            self._bind_tcp(context, settings.fusion)

    def send(self, kind: str, name: str, content: dict) -> None:
        self._socket.send_multipart([f"{kind}.{name}".encode(), json.dumps(content, separators=(",", ":")).encode()])

    def close(self) -> None:
        self._socket.close()
        if self._guard:
            self._guard.stop()
        self._path.unlink(missing_ok=True)

    def _bind_tcp(self, context: zmq.Context, settings: Fusion) -> None:
        """What is set here holds for this endpoint alone, not for the private one that is bound already."""
        self._socket.setsockopt(zmq.IPV6, "[" in settings.publish)
        self._socket.setsockopt(zmq.MAXMSGSIZE, SUBSCRIPTION_BYTES_MAX)
        if settings.key:
            _, secret = key_pair(Path(settings.key))
            subscribers = Subscribers(Path(settings.subscribers))
            self._guard = ThreadAuthenticator(context, log=logging.getLogger("fusion.zap"))
            self._guard.start()
            self._guard.configure_curve_callback("*", subscribers)
            self._socket.curve_server, self._socket.curve_secretkey = True, secret
        try:
            self._socket.bind(settings.publish)
        except zmq.ZMQError as error:
            self.close()
            raise Refused(
                f"Counts cannot be published on {settings.publish}: {error.strerror}; set fusion.publish."
            ) from None


class Subscribers:
    """Says who may subscribe on TCP: those whose public key stands in a file, which is read again for each."""

    def __init__(self, path: Path):
        self._path, self._log = path, logging.getLogger("fusion.subscribers")
        public_keys(path)  # a file that is missing or damaged is said at once

    def callback(self, domain: str, key: bytes) -> bool:
        try:
            known = public_keys(self._path)
        except Refused as refusal:
            self._log.warning("%s Nobody new may subscribe.", refusal)
            return False
        if key not in known:
            self._log.warning("a subscriber with the key %s was refused", key.decode(errors="replace"))
        return key in known


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
    if len(branches := [spans[s][1] for s in spans if s in ("infer_global", "infer_tiles")]) == 2:
        hops["fusion_wait"] = _ms(max(branches) - min(branches))
    return stages | gpu, hops


def _ms(ns: int) -> float:
    return round(ns / 1e6, 3)


def utc_now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
