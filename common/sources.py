"""The sources of a group: those of the settings, and those that were added or removed while it runs.

Each change is one file in a private directory: NAME.json holds the source, or null for one that was removed.
"""

import contextlib
import os
import re
import secrets
import shutil
from pathlib import Path

from pydantic import ValidationError

from peoplecounter.common.errors import NO_INPUT, Refused
from peoplecounter.common.files import write_file
from peoplecounter.common.settings import Section, Settings, Source, check_name

FOLDER = "sources"  # in the run directory


class Change(Section):
    """What NAME.json holds."""

    id: str
    """Of this change: a file that is added again is played from its beginning"""
    source: Source | None
    """None: it was removed"""


def folder(settings: Settings) -> Path:
    """Where changes lie."""
    return Path(settings.sources_dir) if settings.sources_dir else settings.run_dir / FOLDER


def show(settings: Settings) -> None:
    """Makes the run directory lead to changes that lie elsewhere: commands may know nothing else of the group."""
    link = settings.run_dir / FOLDER
    if settings.sources_dir:
        with contextlib.suppress(FileExistsError):
            link.symlink_to(settings.sources_dir)


def forget(run_dir: Path) -> None:
    """Removes the changes that lie in the run directory, not those elsewhere that it leads to."""
    place = run_dir / FOLDER
    if place.is_symlink():
        place.unlink()
    else:
        shutil.rmtree(place, ignore_errors=True)


def known(settings: Settings) -> dict[str, Change]:
    """Every source there is now, and the change it came by: one without id for those of the settings.

    Raises Refused for a file that is none of ours.
    """
    found = {name: Change(id="", source=source) for name, source in settings.sources.items()}
    found |= {path.stem: _read(path) for path in sorted(folder(settings).glob("*.json"))}
    return {name: change for name, change in found.items() if change.source is not None}


def write(settings: Settings, name: str, source: Source | None) -> None:
    """Adds a source, or removes it with None, for whoever owns the directory. Raises Refused where that cannot be."""
    check_name(name, "a source")
    place = folder(settings).resolve()
    with contextlib.suppress(FileExistsError):
        try:
            place.mkdir(mode=0o700)
        except FileNotFoundError:
            raise Refused(f"No group runs in {place.parent}: name its --config or --run-dir.", NO_INPUT) from None
        except PermissionError:
            raise Refused(f"{place} cannot be written: become the user of the group, or root.") from None
    path, parent = place / f"{name}.json", place.parent.stat()
    write_file(path, Change(id=secrets.token_hex(8), source=source).model_dump_json().encode(), 0o600)
    if os.getuid() == 0:
        for one in (place, path):
            os.chown(one, parent.st_uid, parent.st_gid)


def redacted(url: str) -> str:
    """The URL without user name, password and query, for people to read."""
    return re.sub(r"//[^/]*@", "//", url).split("?")[0]


def _read(path: Path) -> Change:
    try:
        return Change.model_validate_json(path.read_bytes())
    except OSError as error:
        raise Refused(f"{path} cannot be read: {error.strerror}.", NO_INPUT) from None
    except ValidationError:
        raise Refused(f"{path} is no source: remove it, or add the source again.") from None
