"""Results on their way to fusion: numbered, at most WINDOW unsettled at once, sent again when fusion restarts.

Every process has a ResultSender for each fusion, a fusion has the ResultReceiver. A result is settled when fusion's
ledger says that its frame was published or dropped, so a fusion that is killed loses nothing that its senders still
hold. Where a group has several, each counts sources of its own: counted_by() says which.
"""

import os
import zlib
from collections import deque
from collections.abc import Callable
from pathlib import Path

from peoplecounter.common.ipc.link import LinkClient, LinkServer, Peer, Timing
from peoplecounter.common.ipc.loop import Loop
from peoplecounter.common.ipc.messages import (
    Ack,
    Confirmed,
    Detections,
    Dropped,
    Hello,
    Message,
    Report,
    Result,
    Status,
    Welcome,
)
from peoplecounter.common.topology import RESULTS

ACK_NS = 10_000_000  # between two messages that tell a sender what is settled
WINDOW = 256  # results a sender may have unsettled
BACKLOG = 1024  # results that may wait behind the window before the oldest is given up

Body = Detections | Dropped | Confirmed | Status
Receipt = tuple[Peer, int]  # the sender and the number of a result: what is needed to acknowledge it


def counted_by(source: str, fusions: int) -> int:
    """The number of the fusion that counts a source, in a group with so many."""
    return zlib.crc32(source.encode()) % fusions


def may_be_lost(body: Body) -> bool:
    """True for a result of a live frame, and for a status that the next one replaces."""
    return body.state != "ended" if isinstance(body, Status) else body.header.live


class ResultSenders:
    """Sends each result to the fusion that counts its source; see ResultSender."""

    def __init__(self, loop: Loop, run_dir: Path, hello: Hello, timing: Timing, fusions: int):
        self._senders = [ResultSender(loop, run_dir, hello, timing, number) for number in range(fusions)]

    def full(self, source: str) -> bool:
        """True while the fusion of this source is behind, or away, by a whole window."""
        return self._of(source).full

    def away(self, source: str) -> bool:
        """True while the fusion of this source does not run, or does not answer."""
        return self._of(source).away

    def behind(self, source: str) -> bool:
        """True while the fusion of this source is full, but answers.

        One that is away must not hold up sources of the others: only the decoder of a file waits for it.
        """
        return self.full(source) and not self.away(source)

    @property
    def settled(self) -> bool:
        """True when everything that was sent is settled."""
        return all(sender.settled for sender in self._senders)

    def send(self, body: Body) -> None:
        self._of(body.source if isinstance(body, Status) else body.header.source).send(body)

    def report(self, holding: list[tuple[str, int]], gauges: dict[str, int]) -> None:
        """See ResultSender.report(); a fusion hears only of frames of its own sources."""
        for sender in self._senders:
            sender.report([held for held in holding if self._of(held[0]) is sender], gauges)

    def close(self, bye: bool = True) -> None:
        for sender in self._senders:
            sender.close(bye)

    def _of(self, source: str) -> "ResultSender":
        return self._senders[counted_by(source, len(self._senders))]


class ResultSender:
    """Sends results to one fusion without ever blocking; `full` says when to stop producing them."""

    def __init__(self, loop: Loop, run_dir: Path, hello: Hello, timing: Timing, fusion: int = 0):
        self._loop, self._hello = loop, hello
        self._waiting: deque[Body] = deque()
        self._unsettled: dict[int, Body] = {}
        self._number = 0
        self._link = LinkClient(
            loop, run_dir / f"{RESULTS}{fusion}.sock", hello, timing, self._on_welcome, self._on_message, lambda: None
        )

    @property
    def full(self) -> bool:
        """True while fusion is behind, or away, by a whole window."""
        return len(self._waiting) + len(self._unsettled) >= WINDOW

    @property
    def away(self) -> bool:
        """True while fusion does not run, or does not answer."""
        return not self._link.answers

    @property
    def settled(self) -> bool:
        """True when fusion has settled everything that was sent."""
        return not self._waiting and not self._unsettled

    def send(self, body: Body) -> None:
        """Queues one result. When the backlog is full, the oldest waiting one of a live frame is given up and counted.

        There are never many of frames that can wait: their rings would have to hold them all.
        """
        self._waiting.append(body)
        if len(self._waiting) > BACKLOG:
            oldest = next((index for index, waiting in enumerate(self._waiting) if may_be_lost(waiting)), None)
            if oldest is not None:
                del self._waiting[oldest]
                self._loop.counters["results_lost"] += 1
        self._flush()

    def report(self, holding: list[tuple[str, int]], gauges: dict[str, int]) -> None:
        """Sends this process' counters and gauges, unnumbered: a lost report is replaced by the next one."""
        if self._link.welcome:
            report = Report(self._hello.service, os.getpid(), dict(self._loop.counters), holding, gauges)
            self._link.send(Result(0, report))

    def close(self, bye: bool = True) -> None:
        """`bye=False`: this process fails, and fusion reports it as down."""
        self._link.close(bye)

    def _flush(self) -> None:
        while self._waiting and len(self._unsettled) < WINDOW and self._link.welcome:
            if not self._link.send(Result(self._number + 1, self._waiting[0])):
                return
            self._number += 1
            self._unsettled[self._number] = self._waiting.popleft()

    def _on_welcome(self, welcome: Welcome) -> None:
        self._waiting.extendleft(reversed(self._unsettled.values()))
        self._unsettled.clear()
        self._flush()

    def _on_message(self, message: Message) -> None:
        if not isinstance(message, Ack):
            self._loop.counters["messages_unexpected"] += 1
            return
        for number in message.numbers:
            self._unsettled.pop(number, None)
        self._flush()


class ResultReceiver:
    """Fusion's end: hands every result to `on_result(body, receipt)`; `settle(receipts)` acknowledges them.

    `on_change(process, state)`: a sender is "silent", "down" (its process has ended) or "ended" (it sent Bye).
    """

    def __init__(
        self,
        loop: Loop,
        run_dir: Path,
        epoch: str,
        timing: Timing,
        on_result: Callable[[Body | Report, Receipt], None],
        on_change: Callable[[str, str], None] = lambda process, state: None,
        fusion: int = 0,
    ):
        self._loop, self._epoch, self._on_result, self._on_change = loop, epoch, on_result, on_change
        self._settled: dict[bytes, tuple[Peer, list[int]]] = {}  # sender -> numbers that it was not told yet
        self._ack_due_ns = 0
        self._link = LinkServer(
            loop, run_dir, f"{RESULTS}{fusion}", timing, self._welcome, self._on_message, self._on_silent, self._on_gone
        )
        loop.every_tick(self._acknowledge)

    def settle(self, receipts: list[Receipt]) -> None:
        """Tells the senders that these results are settled, soon: one message for many costs both ends less."""
        for peer, number in receipts:
            self._settled.setdefault(peer.identity, (peer, []))[1].append(number)

    def close(self) -> None:
        self._ack_due_ns = 0
        self._acknowledge(self._loop.now_ns())
        self._loop.stop_calling(self._acknowledge)
        self._on_change = lambda process, state: None  # this process ends, not its peers
        self._link.close()

    def _acknowledge(self, now_ns: int) -> None:
        if self._settled and now_ns >= self._ack_due_ns:
            self._ack_due_ns = now_ns + ACK_NS
            for peer, numbers in self._settled.values():
                self._link.send(peer, Ack(numbers))
            self._settled.clear()

    def _welcome(self, hello: Hello) -> Welcome:
        return Welcome(self._epoch, os.getpid())

    def _on_silent(self, peer: Peer) -> None:
        self._tell(peer, "silent")

    def _on_gone(self, peer: Peer) -> None:
        self._tell(peer, "ended" if peer.left else "down")

    def _tell(self, peer: Peer, state: str) -> None:
        """Unless the peer has a successor, which is there already when the driver holds a process that ends."""
        name, others = peer.hello.service, self._link.peers.values()
        if not any(other.hello.service == name and other.number > peer.number for other in others):
            self._on_change(name, state)

    def _on_message(self, peer: Peer, message: Message) -> None:
        if isinstance(message, Result):
            self._on_result(message.body, (peer, message.number))
        else:
            self._loop.counters["messages_unexpected"] += 1
