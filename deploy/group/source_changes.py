"""Adds and removes sources of a running group: the change is recorded, then a decoder starts or ends."""

import threading
import time
from collections.abc import Callable

from peoplecounter.common.errors import NO_INPUT, SOFTWARE, AppError
from peoplecounter.common.ipc.messages import Stop
from peoplecounter.common.settings import SourceSettings
from peoplecounter.common.sources import known_sources, write_change
from peoplecounter.deploy.group import client, scaling
from peoplecounter.deploy.group.client import RunningGroup
from peoplecounter.deploy.group.subscribe import messages

LISTEN_S = 1.5  # every source's status is published once a second
PENDING = ("waiting", "opening")
OPENED_S = 15.0  # until a new source is online or has failed
ENDED_S = 15.0  # until the last frames of a removed source are counted


def add(group: RunningGroup, name: str, source: SourceSettings) -> str:
    """Adds a source; returns its state. Raises AppError when it exists already or cannot be counted."""
    decoders = scaling.running(group, "decoder")
    if name in decoders:
        raise AppError(f"The source {name!r} exists already: remove it first, or choose another name.")
    scaling.check_supervisor(group)
    write_change(group.settings, name, source)
    scaling.set_instances(group, "decoder", [*decoders, name])
    statuses = listen(group, lambda heard: heard.get(name, {}).get("state", "waiting") not in PENDING, OPENED_S)
    status = statuses.get(name)
    if status is None:
        raise AppError(f"The source {name!r} was added but does not report: see 'peoplecounter ps'.", SOFTWARE)
    if status["state"] == "ended" and status["detail"]:  # why it cannot be played
        write_change(group.settings, name, None)
        raise AppError(status["detail"], NO_INPUT)
    return f"{name} is {status['state']}" + (f": {status['detail']}" if status["detail"] else "")


def remove(group: RunningGroup, name: str) -> str:
    """Removes a source; returns when its decoder has ended. Raises AppError when there is no such source."""
    decoders = scaling.running(group, "decoder")
    if name not in decoders and name not in known_sources(group.settings):
        raise AppError(f"The source {name!r} does not exist: see 'peoplecounter source list'.", NO_INPUT)
    write_change(group.settings, name, None)
    if name in decoders:
        client.ask(group, [f"decoder.{name}"], Stop())
        client.wait_until(
            lambda: name not in scaling.running(group, "decoder"),
            ENDED_S,
            f"The decoder of {name!r} does not end: try 'peoplecounter restart decoder.{name}'.",
        )
        if client.supervisor(group):
            scaling.set_instances(group, "decoder", [other for other in decoders if other != name])
    return f"{name} was removed"


def source_rows(group: RunningGroup) -> list[dict]:
    """One row per source: its published status, and the URL that its decoder plays."""
    decoders = {row["service"].partition(".")[2]: row for row in client.process_rows(group) if "about" in row}
    rows = []
    for name, status in sorted(listen(group, lambda heard: False, LISTEN_S).items()):
        rows.append({**status, "url": decoders.get(name, {}).get("about", "")})
    return rows


def listen(group: RunningGroup, enough: Callable[[dict], bool], for_s: float) -> dict[str, dict]:
    """Source -> its last published status, until `enough(statuses)` or for this long."""
    statuses: dict[str, dict] = {}
    until_s = time.monotonic() + for_s
    for message in messages(group.settings.publish, ("status",), threading.Event()):
        if message is not None:
            statuses[message[1]] = message[2]
        if enough(statuses) or time.monotonic() > until_s:
            break
    return statuses
