"""NATS by nats-py: at most once, as NATS has it; with JetStream on its side, streams may keep the subjects."""

import asyncio
import threading
from collections.abc import Callable
from urllib.parse import urlsplit

import nats
from nats.errors import OutboundBufferLimitError

from peoplecounter.common.errors import Refused
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
            self.say(f"{self.where}: {_words(error)}")

        async def gone() -> None:
            self.say(f"{self.where} is gone: it is tried again")

        async def back() -> None:
            self.say(f"connected to {self.where} again")

        await self.client.connect(
            url, max_reconnect_attempts=-1, reconnect_time_wait=1, pending_size=bridge.HELD * 1024,
            error_cb=failed, disconnected_cb=gone, reconnected_cb=back,
        )  # fmt: skip
        self.say(f"connected to {self.where}")

    def send(self, levels: tuple[str, ...], body: bytes, keep: bool) -> bool:
        if not self.connecting.done():
            return False
        if hopeless := self.connecting.exception():
            raise Refused(f"{self.where}: {_words(hopeless)}")
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
        ended = asyncio.run_coroutine_threadsafe(asyncio.wait_for(end(), bridge.LAST_S), self.loop)
        ended.exception(bridge.LAST_S + 1)
        self.loop.call_soon_threadsafe(self.loop.stop)


def _words(error: BaseException) -> str:
    """What it says; some say nothing."""
    return str(error) or type(error).__name__


connect = Nats
