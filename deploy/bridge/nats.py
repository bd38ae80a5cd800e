"""NATS by nats-py: at most once, as usual for NATS; JetStream streams on the server may keep the subjects."""

import asyncio
import threading
from collections.abc import Callable
from urllib.parse import urlsplit

import nats
from nats.errors import OutboundBufferLimitError

from peoplecounter.common.errors import AppError
from peoplecounter.deploy import bridge


class Nats:
    """A client whose event loop has a thread of its own."""

    def __init__(self, url: str, say: Callable[[str], None]):
        self.say, self.where = say, urlsplit(url).hostname
        self.loop = asyncio.new_event_loop()
        self.client = nats.NATS()
        threading.Thread(target=self.loop.run_forever, daemon=True, name="nats").start()
        self.connecting = asyncio.run_coroutine_threadsafe(self._connect(url), self.loop)

    async def _connect(self, url: str) -> None:
        async def failed(error: Exception) -> None:
            self.say(f"{self.where}: {_describe(error)}")

        async def disconnected() -> None:
            self.say(f"disconnected from {self.where}: retrying")

        async def reconnected() -> None:
            self.say(f"connected to {self.where} again")

        await self.client.connect(
            url, max_reconnect_attempts=-1, reconnect_time_wait=1, pending_size=bridge.QUEUE_MAX * 1024,
            error_cb=failed, disconnected_cb=disconnected, reconnected_cb=reconnected,
        )  # fmt: skip
        self.say(f"connected to {self.where}")

    def send(self, levels: tuple[str, ...], body: bytes, keep: bool) -> bool:
        if not self.connecting.done():
            return False
        if error := self.connecting.exception():
            raise AppError(f"{self.where}: {_describe(error)}")
        try:
            asyncio.run_coroutine_threadsafe(self.client.publish(".".join(levels), body), self.loop).result(5)
        except (OutboundBufferLimitError, TimeoutError):
            return False
        return True

    def close(self) -> None:
        async def end() -> None:
            if self.client.is_connected:
                await self.client.drain()

        self.connecting.cancel()
        ended = asyncio.run_coroutine_threadsafe(asyncio.wait_for(end(), bridge.DRAIN_S), self.loop)
        ended.exception(bridge.DRAIN_S + 1)
        self.loop.call_soon_threadsafe(self.loop.stop)


def _describe(error: BaseException) -> str:
    """The error's text, or its type if it has no text."""
    return str(error) or type(error).__name__


connect = Nats
