"""Cameras of many groups: each group takes its share of one list, by a rule that needs nobody to decide it.

A camera belongs to the group, of those that are there, whose hash with the camera's name is highest (rendezvous
hashing): when a group comes or goes, only cameras that it takes, or had, move. `group = N` in its table pins one there.
"""

import hashlib
import socket
import sys
import threading
import time
import tomllib
from collections.abc import Callable
from pathlib import Path

from pydantic import ValidationError

from peoplecounter.common import sources
from peoplecounter.common.errors import NO_INPUT, Refused
from peoplecounter.common.ipc.messages import Stop
from peoplecounter.common.settings import Source, check_name
from peoplecounter.deploy.group import client
from peoplecounter.deploy.group.client import Group

LOOK_S = 10.0
GONE_S = 60.0  # a group that is started again, or moved, keeps its cameras for so long


class Camera(Source):
    """A source of the list."""

    group: int | None = None
    """Pinned there"""


class Members:
    """Numbers of the groups that are there: those whose host has an address, or had one GONE_S ago."""

    def __init__(self, host: str, own: int, most: int, resolve: Callable[[str], object], now: Callable[[], float]):
        self.host, self.own, self.most, self.resolve, self.now = host, own, most, resolve, now
        self.seen_s: dict[int, float] = {}

    def look(self) -> set[int]:
        for number in range(self.most):
            try:
                self.resolve(self.host.format(number))
                self.seen_s[number] = self.now()
            except OSError:
                pass
        return {self.own} | {n for n, at_s in self.seen_s.items() if self.now() - at_s <= GONE_S}


def owner(name: str, camera: Camera, members: set[int]) -> int:
    """The group that counts a camera: its pin, whether or not that is there; else the highest hash."""
    if camera.group is not None:
        return camera.group
    return max(members, key=lambda number: hashlib.sha256(f"{number}/{name}".encode()).digest())


def read(file: Path) -> dict[str, Camera]:
    """[NAME] tables of a TOML file. Raises Refused for anything else."""
    try:
        tables = tomllib.loads(file.read_text())
        cameras = {name: Camera.model_validate(table) for name, table in tables.items()}
    except OSError as error:
        raise Refused(f"The list of cameras {file} cannot be read: {error.strerror}.", NO_INPUT) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise Refused(f"The list of cameras {file} is not valid TOML: {error}.") from None
    except ValidationError as error:  # its own text would show the URL
        place = ".".join(str(part) for part in error.errors()[0]["loc"]) or "a table"
        raise Refused(f"The list of cameras {file} is wrong at {place}: {error.errors()[0]['msg']}.") from None
    for name in cameras:
        check_name(name, "a camera")
    return cameras


def apply(group: Group, cameras: dict[str, Camera], members: set[int], own: int) -> list[str]:
    """Makes the group's sources those that are its own; says what changed, and ends decoders of the others."""
    wanted = {name: _source(c) for name, c in cameras.items() if owner(name, c, members) == own}
    have = {name: change.source for name, change in sources.known(group.settings).items()}
    said = []
    for name in sorted(have.keys() | wanted.keys()):
        if have.get(name) == wanted.get(name):
            continue
        sources.write(group.settings, name, wanted.get(name))
        if name in have and f"decoder.{name}" in client.owners(group.run_dir):
            client.ask(group, [f"decoder.{name}"], Stop())
        said.append(f"{name}: {'counted here' if name in wanted else 'no longer counted here'}")
    return said


def share(group: Group, file: Path, host: str, own: int, most: int, stop: threading.Event) -> None:
    """Looks at the list and at who is there every LOOK_S, until `stop`; a list that is wrong changes nothing."""
    members, complained = Members(host, own, most, lambda name: socket.getaddrinfo(name, None), time.monotonic), ""
    while not stop.is_set():
        try:
            for sentence in apply(group, read(file), members.look(), own):
                print(f"share: {sentence}", flush=True)
            complained = ""
        except Refused as refusal:
            if str(refusal) != complained:
                complained = str(refusal)
                print(f"share: {complained}", file=sys.stderr, flush=True)
        stop.wait(LOOK_S)


def _source(camera: Camera) -> Source:
    return Source.model_validate(camera.model_dump(exclude={"group"}))
