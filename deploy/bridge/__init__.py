"""Counts leave the machine through a broker that is there already: what fusion publishes, handed on to MQTT or NATS.

Topics are peoplecounter/counts/SOURCE (MQTT) and peoplecounter.counts.SOURCE (NATS), bodies fusion's own JSON.
"""

import json
import sys
import threading
from collections.abc import Callable
from importlib import import_module
from typing import Protocol
from urllib.parse import urlsplit

from peoplecounter.common.errors import Refused
from peoplecounter.deploy.group.subscribe import messages

BROKERS = {"mqtt": ("mqtt", "mqtts"), "nats": ("nats", "tls")}  # and the schemes of their URLs
KINDS = ("counts", "dropped", "status", "service")
HELD = 10_000  # messages that wait for a broker that is away
SAY_EVERY = 1000  # lost messages
LAST_S = 3.0  # at most, for what still waits when it ends


class Broker(Protocol):
    """A connection that comes back by itself."""

    def send(self, levels: tuple[str, ...], body: bytes, keep: bool) -> bool:
        """False when it can hold no more: the message is lost. `keep`: late subscribers get the last one."""

    def close(self) -> None:
        """Hands over what still waits, for LAST_S at most."""


def connect(kind: str, url: str, say: Callable[[str], None]) -> Broker:
    """The broker behind a URL. Raises Refused for one of another kind, or when its library is not installed."""
    if kind not in BROKERS:
        raise Refused(f"{kind!r} is no broker: choose {' or '.join(BROKERS)}.")
    if url.partition("://")[0] not in BROKERS[kind]:
        raise Refused(f"The URL of a broker of {kind} begins with {'://, '.join(BROKERS[kind])}://.")
    if not _names_host(url):
        raise Refused("The URL of a broker names a host, and a port where it is not the usual one: mqtt://HOST:PORT.")
    try:
        module = import_module(f"peoplecounter.deploy.bridge.{kind}")
    except ModuleNotFoundError as error:
        raise Refused(f"{error.name} is not installed: pip install 'peoplecounter[{kind}]'.") from None
    return module.connect(url, say)


def bridge(endpoint: str, kind: str, url: str, stop: threading.Event, detections: bool = False) -> None:
    """Hands everything on until `stop`; what was lost is said."""
    broker, lost = connect(kind, url, say), 0
    try:
        for message in messages(endpoint, (*KINDS, "detections") if detections else KINDS, stop):
            if message is None:
                continue
            of, name, content = message
            if not broker.send(("peoplecounter", of, name), json.dumps(content).encode(), of in ("status", "service")):
                lost += 1
                if lost % SAY_EVERY == 1:
                    say(f"the broker takes nothing: {lost} messages are lost so far")
    finally:
        broker.close()
        if lost:
            say(f"{lost} messages were lost")


def _names_host(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return bool(parts.hostname) and parts.port != 0
    except ValueError:  # its port, or its address, is none
        return False


def say(sentence: str) -> None:
    print(f"bridge: {sentence}", file=sys.stderr, flush=True)
