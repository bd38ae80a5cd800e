"""Forwards what fusion publishes to an existing broker, MQTT or NATS.

Topics are peoplecounter/counts/SOURCE (MQTT) and peoplecounter.counts.SOURCE (NATS); bodies are fusion's own JSON.
"""

import json
import platform
import re
import sys
import threading
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from peoplecounter.common.errors import AppError
from peoplecounter.deploy.bridge.home_assistant import HomeAssistant
from peoplecounter.deploy.group.subscribe import PublishedMessage, messages

BROKERS = {"mqtt": ("mqtt", "mqtts"), "nats": ("nats", "tls")}  # kind -> schemes of its URLs
KEPT = ("status", "service", "areas", "alerts")  # what late subscribers get
KINDS = ("counts", "dropped", "crossings", "zones", *KEPT)
QUEUE_MAX = 10_000  # messages that wait while the broker is away
REPORT_EVERY = 1000  # lost messages
DRAIN_S = 3.0  # at most, for messages that still wait at the end


class Broker(Protocol):
    """A connection that reconnects by itself."""

    def send(self, levels: tuple[str, ...], body: bytes, keep: bool) -> bool:
        """Queues a message; False when the queue is full and the message is lost. `keep`: retained for late
        subscribers."""

    def show(self, topic: str, text: str, keep: bool) -> None:
        """Sends a message for Home Assistant, which is lost while the broker is away. Only MQTT has this."""

    def close(self) -> None:
        """Sends the waiting messages, for DRAIN_S at most."""


def connect(kind: str, url: str, say: Callable[[str], None], shown: HomeAssistant | None = None) -> Broker:
    """Connects to a broker. Raises AppError for an invalid URL, or when the library is not installed."""
    if kind not in BROKERS:
        raise AppError(f"Unknown broker {kind!r}: use {' or '.join(BROKERS)}.")
    if shown and kind != "mqtt":
        raise AppError(f"--home-assistant needs mqtt: Home Assistant does not read {kind}.")
    if url.partition("://")[0] not in BROKERS[kind]:
        raise AppError(f"Invalid broker URL: the URL of {kind} starts with {':// or '.join(BROKERS[kind])}://.")
    if not _names_host(url):
        raise AppError(f"Invalid broker URL: use {BROKERS[kind][0]}://HOST or {BROKERS[kind][0]}://HOST:PORT.")
    try:
        module = import_module(f"peoplecounter.deploy.bridge.{kind}")
    except ModuleNotFoundError as error:
        raise AppError(f"{error.name} is not installed: pip install 'peoplecounter[{kind}]'.") from None
    return module.connect(url, say, shown) if shown else module.connect(url, say)


def bridge(
    endpoint: str,
    kind: str,
    url: str,
    stop: threading.Event,
    detections: bool = False,
    home_assistant: bool = False,
) -> None:
    """Forwards messages until `stop`, and reports lost ones. `home_assistant`: the group is shown there, too."""
    shown = HomeAssistant(_name(endpoint)) if home_assistant else None
    broker, lost = connect(kind, url, say, shown), 0
    try:
        for message in messages(endpoint, (*KINDS, "detections") if detections else KINDS, stop):
            if message is not None:
                topic, name, content = message
                if not broker.send(("peoplecounter", topic, name), json.dumps(content).encode(), topic in KEPT):
                    lost += 1
                    if lost % REPORT_EVERY == 1:
                        say(f"the broker does not accept messages: {lost} are lost so far")
            if shown:
                _show(shown, message, broker)
    finally:
        broker.close()
        if lost:
            say(f"{lost} messages were lost")


def _show(shown: HomeAssistant, message: PublishedMessage | None, broker: Broker) -> None:
    now_s = time.monotonic()
    if message is not None:
        shown.add(*message, now_s)
    for topic, text, keep in shown.due(now_s):
        broker.show(topic, text, keep)


def _name(endpoint: str) -> str:
    """A name for the bridge of a group that no other group has, and that stays: its host and run directory."""
    return re.sub("[^A-Za-z0-9_-]", "-", f"{platform.node()}-{Path(endpoint).parent.name}")


def _names_host(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return bool(parts.hostname) and parts.port != 0
    except ValueError:  # an invalid port or address
        return False


def say(line: str) -> None:
    print(f"bridge: {line}", file=sys.stderr, flush=True)
