"""The sources of a group: those of the settings, and those that were added or removed while it runs.

Each change is one file in a private directory: NAME.json holds the source, or null for one that was removed.
"""

import contextlib
import os
import re
import secrets
import shutil
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from peoplecounter.common.counting import Section, check_name
from peoplecounter.common.errors import NO_INPUT, AppError
from peoplecounter.common.files import write_file
from peoplecounter.common.settings import Settings, SourceSettings

FOLDER = "sources"  # in the run directory
# keys of parameters that some cameras take in the path
SECRETS = r"(?i)/?[^/=]*(?:user|login|pass|pwd|psw|token|auth|key|secret|session|sid)[^/=]*="


Change = TypeVar("Change", bound=Section)


class SourceChange(Section):
    """The content of NAME.json."""

    id: str
    """Of this change: a file that is added again is played from its start"""
    source: SourceSettings | None
    """None: it was removed"""


def folder(settings: Settings) -> Path:
    """Where the changes are stored."""
    return Path(settings.sources_dir) if settings.sources_dir else settings.run_dir / FOLDER


def link_folder(run_dir: Path, name: str, stored: Path) -> None:
    """Links a folder of the run directory to where its files are: a command may know only the run directory."""
    if stored != run_dir / name:
        with contextlib.suppress(FileExistsError):
            (run_dir / name).symlink_to(stored)


def forget_folder(run_dir: Path, name: str) -> None:
    """Removes a folder of the run directory, or the link to where its files are, which stay."""
    path = run_dir / name
    if path.is_symlink():
        path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)


def known_sources(settings: Settings) -> dict[str, SourceChange]:
    """The current sources by name, with the change they came from (its id is empty for sources of the settings).

    Raises AppError for a file that is not a change.
    """
    changes = {name: SourceChange(id="", source=source) for name, source in settings.sources.items()}
    paths = sorted(folder(settings).glob("*.json"))
    changes |= {path.stem: read_change(path, SourceChange, "source") for path in paths}
    return {name: change for name, change in changes.items() if change.source is not None}


def write_change(settings: Settings, name: str, source: SourceSettings | None) -> None:
    """Adds a source, or removes it with None; the file belongs to the group's user. Raises AppError when it cannot."""
    check_name(name, "source")
    change = SourceChange(id=secrets.token_hex(8), source=source)
    write_in_group(folder(settings), f"{name}.json", change.model_dump_json().encode())


def write_in_group(directory: Path, name: str, data: bytes) -> None:
    """Writes a private file of the group's user, and its folder if it does not exist. Raises AppError."""
    directory = directory.resolve()
    with contextlib.suppress(FileExistsError):
        try:
            directory.mkdir(mode=0o700)
        except FileNotFoundError:
            raise AppError(f"No group runs in {directory.parent}: use --config or --run-dir.", NO_INPUT) from None
        except PermissionError:
            raise AppError(f"{directory} cannot be written: run this as the group's user or as root.") from None
    path, parent = directory / name, directory.parent.stat()
    write_file(path, data, 0o600)
    if os.getuid() == 0:
        for created in (directory, path):
            os.chown(created, parent.st_uid, parent.st_gid)


def absolute_url(url: str, folder: Path) -> str:
    """The URL, or the path of a file as seen from `folder`; "-" is this process' standard input."""
    if url == "-":
        return f"/proc/{os.getpid()}/fd/0"
    return url if "://" in url else str(folder.absolute() / url)


def is_missing(source: SourceSettings) -> bool:
    """True for a file that does not exist; not for USB cameras and image sequences, which may come later."""
    url = source.url
    return "://" not in url and not source.network and "%" not in url and not Path(url).exists()


def redacted(url: str) -> str:
    """The URL without whatever may be secret: user name, password, query, and the path from the first of SECRETS on."""
    scheme, separator, rest = url.partition("://")
    if not separator or scheme.lower() == "file":
        return url
    return scheme + separator + re.split(SECRETS, re.split("[?#;]", rest)[0].rpartition("@")[2])[0]


def read_change(path: Path, kind: type[Change], what: str) -> Change:
    """The content of a file of changes; `what` it is, for errors. Raises AppError for a file that is not one."""
    try:
        return kind.model_validate_json(path.read_bytes())
    except OSError as error:
        raise AppError(f"{path} cannot be read: {error.strerror}.", NO_INPUT) from None
    except ValidationError:
        raise AppError(f"{path} is not a {what}: remove the file, or add the {what} again.") from None
