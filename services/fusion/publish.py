"""What subscribers read: JSON on a PUB socket, one topic per kind and source. See README.md for the messages."""

import logging
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import zmq
from zmq.auth.thread import ThreadAuthenticator

from peoplecounter.common.errors import AppError
from peoplecounter.common.ipc.link import BURST, RECONNECT_MS
from peoplecounter.common.ipc.loop import Loop
from peoplecounter.common.ipc.messages import MAX_BYTES
from peoplecounter.common.keys import key_pair, public_keys
from peoplecounter.common.settings import FusionSettings, Settings

_encode = msgspec.json.Encoder().encode
SUBSCRIPTION_BYTES_MAX = 1024  # of a topic that a client subscribes to


class Publisher:
    """The PUB socket, bound in the run directory and, if the settings say so, on TCP. It never blocks."""

    def __init__(self, context: zmq.Context, settings: Settings):
        self._path = Path(settings.publish.removeprefix("ipc://"))
        self._path.unlink(missing_ok=True)  # this process holds the lock of results.fusion.0
        self._authenticator: ThreadAuthenticator | None = None
        self._socket = context.socket(zmq.PUB)
        self._socket.setsockopt(zmq.LINGER, 500)
        self._socket.bind(settings.publish)
        if settings.fusion.publish:
            self._bind_tcp(context, settings.fusion)

    def send(self, kind: str, name: str, content: dict) -> None:
        """Publishes one message on the topic `<kind>.<name>`."""
        self.pass_on(f"{kind}.{name}".encode(), _encode(content))

    def pass_on(self, topic: bytes, body: bytes) -> None:
        """Publishes a message as it is."""
        self._socket.send_multipart([topic, body])

    def close(self) -> None:
        self._socket.close()
        if self._authenticator:
            self._authenticator.stop()
        self._path.unlink(missing_ok=True)

    def _bind_tcp(self, context: zmq.Context, settings: FusionSettings) -> None:
        """Options set here apply to this endpoint only, not to the private one that is bound already."""
        self._socket.setsockopt(zmq.IPV6, "[" in settings.publish)
        self._socket.setsockopt(zmq.MAXMSGSIZE, SUBSCRIPTION_BYTES_MAX)
        if settings.key:
            _, secret = key_pair(Path(settings.key))
            subscribers = SubscriberKeys(Path(settings.subscribers))
            self._authenticator = ThreadAuthenticator(context, log=logging.getLogger("fusion.zap"))
            self._authenticator.start()
            self._authenticator.configure_curve_callback("*", subscribers)
            self._socket.curve_server, self._socket.curve_secretkey = True, secret
        try:
            self._socket.bind(settings.publish)
        except zmq.ZMQError as error:
            self.close()
            raise AppError(
                f"Counts cannot be published on {settings.publish}: {error.strerror}. Set fusion.publish."
            ) from None


class Forwarder:
    """Publishes for a fusion that is not the first one: the first one gets its messages, in its Inbox. It never blocks.

    Messages wait while the first one starts. When it is away for long, some are lost: subscribers have nothing to read
    then, either.
    """

    def __init__(self, context: zmq.Context, settings: Settings, counters: Counter[str]):
        self._counters = counters
        self._socket = context.socket(zmq.PUSH)
        self._socket.setsockopt(zmq.LINGER, 500)
        self._socket.setsockopt(zmq.RECONNECT_IVL, RECONNECT_MS)
        self._socket.connect(_inbox(settings))

    def send(self, kind: str, name: str, content: dict) -> None:
        """Publishes one message on the topic `<kind>.<name>`."""
        try:
            self._socket.send_multipart([f"{kind}.{name}".encode(), _encode(content)], zmq.NOBLOCK)
        except zmq.Again:
            self._counters["messages_unpublished"] += 1

    def close(self) -> None:
        self._socket.close()


class Inbox:
    """Gets what the other fusions publish, see Forwarder: `on_message(topic, body)`. Anything else is only counted."""

    def __init__(self, loop: Loop, settings: Settings, on_message: Callable[[bytes, bytes], None]):
        self._on_message, self._counters = on_message, loop.counters
        self._path = Path(_inbox(settings).removeprefix("ipc://"))
        self._path.unlink(missing_ok=True)  # this process holds the lock of results.fusion.0
        self._socket = loop.context.socket(zmq.PULL)
        self._socket.setsockopt(zmq.MAXMSGSIZE, MAX_BYTES)
        self._socket.bind(_inbox(settings))
        loop.watch(self._socket, self._receive)

    def close(self) -> None:
        self._socket.close()
        self._path.unlink(missing_ok=True)

    def _receive(self) -> None:
        for _ in range(BURST):
            try:
                topic, body = self._socket.recv_multipart(zmq.NOBLOCK)
                self._on_message(topic, body)
            except zmq.Again:
                return
            except ValueError:
                self._counters["messages_malformed"] += 1


def _inbox(settings: Settings) -> str:
    return f"ipc://{settings.run_dir}/publish.sock"


class SubscriberKeys:
    """The public keys that may subscribe on TCP, in a file that is read again for each connection.

    Raises AppError when the file is missing or invalid at the start.
    """

    def __init__(self, path: Path):
        self._path, self._log = path, logging.getLogger("fusion.subscribers")
        public_keys(path)

    def callback(self, domain: str, key: bytes) -> bool:
        """pyzmq's CURVE callback: True for a key that may subscribe."""
        try:
            keys = public_keys(self._path)
        except AppError as error:
            self._log.warning("new subscribers are rejected: %s", error)
            return False
        if key not in keys:
            self._log.warning("rejected a subscriber with the key %s", key.decode(errors="replace"))
        return key in keys


def utc(seconds: float) -> str:
    """A time in seconds since 1970, e.g. as 2026-11-26T13:37:00.123Z."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
