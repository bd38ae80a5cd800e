"""Sources of a running group that come and go: the change is written down, then a decoder starts or ends."""

import threading
import time
from collections.abc import Callable

from peoplecounter.common import sources
from peoplecounter.common.errors import NO_INPUT, SOFTWARE, Refused
from peoplecounter.common.ipc.messages import Stop
from peoplecounter.common.settings import Source
from peoplecounter.deploy.group import client, scaling
from peoplecounter.deploy.group.client import Group
from peoplecounter.deploy.group.subscribe import messages

HEARD_S = 1.5  # every source's status is published once a second
PENDING = ("waiting", "opening")
OPENED_S = 15.0  # until a new one has said how it is
ENDED_S = 15.0  # until the last frames of a removed one are counted


def add(group: Group, name: str, source: Source) -> str:
    """Adds a source and says how it is. Raises Refused when it is there already, or cannot be counted."""
    kept = scaling.running(group, "decoder")
    if name in kept:
        raise Refused(f"The source {name!r} is there already: remove it first, or choose another name.")
    scaling.check(group)
    sources.write(group.settings, name, source)
    scaling.ensure(group, "decoder", [*kept, name])
    status = heard(group, lambda found: found.get(name, {}).get("state", "waiting") not in PENDING, OPENED_S).get(name)
    if status is None:
        raise Refused(f"The source {name!r} was added, but nothing is heard of it: see peoplecounter ps.", SOFTWARE)
    if status["state"] == "ended" and status["detail"]:  # why it cannot be played
        sources.write(group.settings, name, None)
        raise Refused(status["detail"], NO_INPUT)
    return f"{name} is {status['state']}" + (f": {status['detail']}" if status["detail"] else "")


def remove(group: Group, name: str) -> str:
    """Removes a source; returns when its decoder has ended. Raises Refused when there is no such source."""
    decoders = scaling.running(group, "decoder")
    if name not in decoders and name not in sources.known(group.settings):
        raise Refused(f"There is no source {name!r}: see peoplecounter source list.", NO_INPUT)
    sources.write(group.settings, name, None)
    if name in decoders:
        client.ask(group, [f"decoder.{name}"], Stop())
        client.wait_until(
            lambda: name not in scaling.running(group, "decoder"),
            ENDED_S,
            f"The decoder of {name!r} does not end: peoplecounter restart decoder.{name}",
        )
        if client.supervisor(group):
            scaling.ensure(group, "decoder", [other for other in decoders if other != name])
    return f"{name} was removed"


def table(group: Group) -> list[dict]:
    """A row for each source: its published status, and what its decoder plays."""
    decoders = {row["service"].partition(".")[2]: row for row in client.table(group) if "about" in row}
    rows = []
    for name, status in sorted(heard(group, lambda found: False, HEARD_S).items()):
        rows.append({**status, "url": decoders.get(name, {}).get("about", "")})
    return rows


def heard(group: Group, enough: Callable[[dict], bool], for_s: float) -> dict[str, dict]:
    """Source -> its last status, of those published until it is enough, or for so long."""
    found: dict[str, dict] = {}
    until_s = time.monotonic() + for_s
    for message in messages(group.settings.publish, ("status",), threading.Event()):
        if message is not None:
            found[message[1]] = message[2]
        if enough(found) or time.monotonic() > until_s:
            return found
    return found
