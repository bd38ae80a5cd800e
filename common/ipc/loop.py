"""One poller for every socket of a process, with a clock that tests can replace. Every wait is bounded."""

import time
from collections import Counter
from collections.abc import Callable

import zmq

ANY_MS = 1000  # longer than any wait
SLEEP_NS = 1_000_000_000  # a gap this long between ticks: this process slept (frozen, suspended), not its peers


class Loop:
    """Calls a handler for each readable socket or descriptor, then every per-tick callback with the time."""

    def __init__(self, clock_ns: Callable[[], int] = time.monotonic_ns):
        self.now_ns = clock_ns
        self.counters: Counter[str] = Counter()
        self.context = zmq.Context()
        self.woke_ns = clock_ns()  # when this process last woke from a sleep: silence of peers counts from here
        self._last_ns = clock_ns()
        self._poller = zmq.Poller()
        self._handlers: dict[zmq.Socket | int, Callable[[], None]] = {}
        self._patience: list[Callable[[int], int]] = []
        self._callbacks: dict[Callable[[int], None], None] = {}  # a dict keeps their order and finds them by hash

    def watch(self, readable: zmq.Socket | int, handler: Callable[[], None]) -> None:
        """Calls `handler()` in tick() whenever the socket or file descriptor is readable."""
        self._poller.register(readable, zmq.POLLIN)
        self._handlers[readable] = handler

    def unwatch(self, readable: zmq.Socket | int) -> None:
        """Stops watching a socket or descriptor; does nothing for one that is not watched."""
        if self._handlers.pop(readable, None):
            self._poller.unregister(readable)

    def every_tick(self, callback: Callable[[int], None]) -> None:
        """Calls `callback(now_ns)` at the end of every tick."""
        self._callbacks[callback] = None

    def stop_calling(self, callback: Callable[[int], None]) -> None:
        """Undoes every_tick()."""
        del self._callbacks[callback]

    def sleep_at_most(self, patience_ms: Callable[[int], int]) -> None:
        """Before each wait, `patience_ms(now_ns)` says how long it may last, or ANY_MS: 0 polls, as waking
        up takes 0.1 ms."""
        self._patience.append(patience_ms)

    def tick(self, timeout_ms: int = 50) -> None:
        """Waits at most `timeout_ms` for something to read, handles it, then calls the per-tick callbacks."""
        for patience_ms in self._patience:
            timeout_ms = min(timeout_ms, patience_ms(self.now_ns()))
        readables = self._poller.poll(timeout_ms)
        now_ns = self.now_ns()
        if now_ns - self._last_ns > SLEEP_NS + timeout_ms * 1_000_000:
            self.woke_ns = now_ns
        for readable, _ in readables:
            handler = self._handlers.get(readable)
            if handler:  # an earlier handler of this tick may have closed it
                handler()
        self._last_ns = now_ns = self.now_ns()
        for callback in list(self._callbacks):
            if callback in self._callbacks:  # an earlier one may have removed it
                callback(now_ns)

    def close(self) -> None:
        self._handlers.clear()
        self._callbacks.clear()
        self.context.destroy(linger=200)
