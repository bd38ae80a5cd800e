"""One poller for every socket of a process, with a clock that tests can replace. Every wait is bounded."""

import time
from collections import Counter
from collections.abc import Callable

import zmq

NAP_NS = 1_000_000_000  # a gap this long between ticks means that we slept, not that the others did


class Loop:
    """Calls a handler for each readable socket or descriptor, then every housekeeper with the time."""

    def __init__(self, clock_ns: Callable[[], int] = time.monotonic_ns):
        self.now_ns = clock_ns
        self.counters: Counter[str] = Counter()
        self.context = zmq.Context()
        self.woke_ns = clock_ns()
        self._last_ns = clock_ns()
        self._poller = zmq.Poller()
        self._handlers: dict[object, Callable[[], None]] = {}
        self._housekeepers: dict[Callable[[int], None], None] = {}  # in order, and found by hash

    def watch(self, readable: zmq.Socket | int, handler: Callable[[], None]) -> None:
        """Calls `handler()` in tick() whenever the socket or file descriptor is readable."""
        self._poller.register(readable, zmq.POLLIN)
        self._handlers[readable] = handler

    def unwatch(self, readable: zmq.Socket | int) -> None:
        if self._handlers.pop(readable, None):
            self._poller.unregister(readable)

    def every_tick(self, housekeeper: Callable[[int], None]) -> None:
        """Calls `housekeeper(now_ns)` at the end of every tick."""
        self._housekeepers[housekeeper] = None

    def leave(self, housekeeper: Callable[[int], None]) -> None:
        """Stops calling a housekeeper."""
        del self._housekeepers[housekeeper]

    def tick(self, timeout_ms: int = 50) -> None:
        """Waits at most `timeout_ms` for something to read, handles it, and keeps house."""
        readables = self._poller.poll(timeout_ms)
        now = self.now_ns()
        if now - self._last_ns > NAP_NS + timeout_ms * 1_000_000:
            self.woke_ns = now  # silence is judged from here on: see link.py
        for readable, _ in readables:
            handler = self._handlers.get(readable)
            if handler:  # an earlier handler of this tick may have closed it
                handler()
        self._last_ns = now = self.now_ns()
        for housekeeper in list(self._housekeepers):
            if housekeeper in self._housekeepers:  # an earlier one may have sent it away
                housekeeper(now)

    def close(self) -> None:
        self._handlers.clear()
        self._housekeepers.clear()
        self.context.destroy(linger=200)
