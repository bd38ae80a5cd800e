"""Shares one list of cameras between many groups. Each group computes its own share, without a coordinator.

A camera belongs to the running group whose hash with the camera's name is highest (rendezvous hashing): when a group
comes or goes, only its own cameras move. `group = N` in a camera's table pins it to a group.
"""

import socket
import sys
import threading
import time
import tomllib
from collections.abc import Callable
from pathlib import Path

from pydantic import ValidationError

from peoplecounter.common.counting import check_name
from peoplecounter.common.errors import NO_INPUT, AppError
from peoplecounter.common.ipc.messages import Stop
from peoplecounter.common.process.gpus import weight
from peoplecounter.common.settings import SourceSettings
from peoplecounter.common.sources import known_sources, write_change
from peoplecounter.deploy.group import client
from peoplecounter.deploy.group.client import RunningGroup

INTERVAL_S = 10.0
GONE_S = 60.0  # a group that is restarted or moved keeps its cameras for this long


class SharedCamera(SourceSettings):
    """A camera of the list."""

    group: int | None = None
    """Number of the group that it is pinned to"""


class GroupDirectory:
    """Numbers of the running groups: those whose host name resolves, or did so less than GONE_S ago."""

    def __init__(
        self, host: str, own: int, groups_max: int, resolve: Callable[[str], object], now_s: Callable[[], float]
    ):
        self.host, self.own, self.groups_max, self.resolve, self.now_s = host, own, groups_max, resolve, now_s
        self.seen_s: dict[int, float] = {}

    def find(self) -> set[int]:
        """Resolves all host names; returns the numbers."""
        for number in range(self.groups_max):
            try:
                self.resolve(self.host.format(number))
                self.seen_s[number] = self.now_s()
            except OSError:
                pass
        return {self.own} | {n for n, at_s in self.seen_s.items() if self.now_s() - at_s <= GONE_S}


def owner(name: str, camera: SharedCamera, members: set[int]) -> int:
    """The group that counts a camera: the one it is pinned to, running or not; otherwise the highest hash."""
    if camera.group is not None:
        return camera.group
    return max(members, key=lambda number: weight(number, name))


def read_cameras(file: Path) -> dict[str, SharedCamera]:
    """The cameras in the [NAME] tables of a TOML file. Raises AppError for an invalid file."""
    try:
        tables = tomllib.loads(file.read_text())
        cameras = {name: SharedCamera.model_validate(table) for name, table in tables.items()}
    except OSError as error:
        raise AppError(f"The list of cameras {file} cannot be read: {error.strerror}.", NO_INPUT) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise AppError(f"The list of cameras {file} is not valid TOML: {error}.") from None
    except ValidationError as error:  # pydantic's text would show the URL
        place = ".".join(str(part) for part in error.errors()[0]["loc"]) or "a table"
        raise AppError(f"The list of cameras {file} is invalid at {place}: {error.errors()[0]['msg']}.") from None
    for name in cameras:
        check_name(name, "camera")
    return cameras


def apply(group: RunningGroup, cameras: dict[str, SharedCamera], members: set[int], own: int) -> list[str]:
    """Makes the group count its own cameras and no others; returns a line for each change."""
    wanted = {name: _source(c) for name, c in cameras.items() if owner(name, c, members) == own}
    current = {name: change.source for name, change in known_sources(group.settings).items()}
    lines = []
    for name in sorted(current.keys() | wanted.keys()):
        if current.get(name) == wanted.get(name):
            continue
        write_change(group.settings, name, wanted.get(name))
        if name in current and f"decoder.{name}" in client.owners(group.run_dir):
            client.ask(group, [f"decoder.{name}"], Stop())
        lines.append(f"{name}: {'counted by this group' if name in wanted else 'no longer counted by this group'}")
    return lines


def share(group: RunningGroup, file: Path, host: str, own: int, groups_max: int, stop: threading.Event) -> None:
    """Applies the list and the running groups every INTERVAL_S, until `stop`; an invalid list changes nothing."""
    groups = GroupDirectory(host, own, groups_max, lambda name: socket.getaddrinfo(name, None), time.monotonic)
    reported = ""  # the last error
    while not stop.is_set():
        try:
            for line in apply(group, read_cameras(file), groups.find(), own):
                print(f"share: {line}", flush=True)
            reported = ""
        except AppError as error:
            if str(error) != reported:
                reported = str(error)
                print(f"share: {reported}", file=sys.stderr, flush=True)
        stop.wait(INTERVAL_S)


def _source(camera: SharedCamera) -> SourceSettings:
    return SourceSettings.model_validate(camera.model_dump(exclude={"group"}))
