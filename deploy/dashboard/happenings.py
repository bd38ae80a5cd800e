"""What happens at lines, zones and areas, and alerts: handed on to those who listen, as server-sent events."""

import asyncio
from collections.abc import AsyncIterator, Callable

LISTENERS_MAX = 32
WAITING_MAX = 200  # events that a slow listener has not read; then the oldest are lost
SILENT_S = 15.0  # then a comment keeps the connection open


class Happenings:
    def __init__(self) -> None:
        self._listeners: set[asyncio.Queue[bytes]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        """Called by the loop that serves the listeners."""
        self._loop = asyncio.get_running_loop()

    def publish(self, name: str, data: bytes) -> None:
        """An event. May be called from any thread."""
        if self._loop is not None and self._listeners:
            self._loop.call_soon_threadsafe(self._spread, b"event: " + name.encode() + b"\ndata: " + data + b"\n\n")

    def full(self) -> bool:
        return len(self._listeners) >= LISTENERS_MAX

    async def listen(self, is_allowed: Callable[[], bool]) -> AsyncIterator[bytes]:
        """The events from now on, while the listener may hear them."""
        queue: asyncio.Queue[bytes] = asyncio.Queue(WAITING_MAX)
        self._listeners.add(queue)
        try:
            yield b": connected\n\n"
            while is_allowed():
                try:
                    event = await asyncio.wait_for(queue.get(), SILENT_S)
                except TimeoutError:
                    event = b": nothing new\n\n"
                if is_allowed():
                    yield event
        finally:
            self._listeners.discard(queue)

    def _spread(self, event: bytes) -> None:
        for queue in self._listeners:
            if queue.full():
                queue.get_nowait()
            queue.put_nowait(event)
