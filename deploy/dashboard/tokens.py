"""Who may use the dashboard: a file of names, roles and hashes of tokens. One `NAME ROLE SALT HASH` a line."""

import hashlib
import logging
import os
import re
import secrets
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from peoplecounter.common.counting import check_name
from peoplecounter.common.errors import NO_INPUT, AppError
from peoplecounter.common.files import write_file

Role = Literal["view", "edit"]  # who may edit may view
SCRYPT = {"n": 1 << 14, "r": 8, "p": 1}  # 16 MB and about 50 ms
FILE_MAX = 1 << 16  # bytes
HEX = re.compile(r"([0-9a-f]{2}){16,64}")
TOKEN_MAX = 256  # characters
SESSION_S = 12 * 3600.0
SESSIONS_MAX = 1000
TRIES, TRY_S = 5, 60.0  # so many wrong tokens from an address within this time, and ten times as many from all


LOG = logging.getLogger("dashboard.tokens")


@dataclass(frozen=True)
class User:
    """A line of the file."""

    name: str
    role: Role
    salt: str
    digest: str


def read_users(path: Path) -> dict[str, User]:
    """The users by name. Raises AppError for a file that is missing, can be read by others, or has another format."""
    try:
        if path.stat().st_mode & 0o077:
            raise AppError(f"The token file {path} is readable by other users: run chmod 600 {path}")
        with path.open("rb") as file:
            lines = file.read(FILE_MAX).decode().splitlines()
    except OSError as error:
        raise AppError(
            f"The token file {path} cannot be read: {error.strerror}. "
            f"'peoplecounter dashboard token NAME --file {path}' creates one.",
            NO_INPUT,
        ) from None
    except UnicodeDecodeError:
        raise AppError(f"The token file {path} is not a text file.") from None
    users = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        words = line.split()
        if len(words) != 4 or words[1] not in get_args(Role) or not all(map(HEX.fullmatch, words[2:])):
            raise AppError(f"Line {number} of {path} is not NAME ROLE SALT HASH: make it with 'dashboard token'.")
        users[words[0]] = User(words[0], "edit" if words[1] == "edit" else "view", words[2], words[3])
    return users


def add_user(path: Path, name: str, role: str) -> str:
    """Adds a user to the file, or gives one a new token and role; returns the token, which is stored nowhere.

    Raises AppError.
    """
    check_name(name, "user")
    if role not in get_args(Role):
        raise AppError(f"Unknown role {role!r}: choose {' or '.join(get_args(Role))}.")
    users = read_users(path) if path.exists() else {}
    token, salt = secrets.token_urlsafe(24), secrets.token_hex(16)
    users[name] = User(name, "edit" if role == "edit" else "view", salt, hashed(token, salt))
    text = "".join(f"{user.name} {user.role} {user.salt} {user.digest}\n" for user in users.values())
    owner = path.stat() if path.exists() else None
    write_file(path, text.encode(), 0o600)
    if owner is not None and os.getuid() == 0:
        os.chown(path, owner.st_uid, owner.st_gid)
    return token


def hashed(token: str, salt: str) -> str:
    """The scrypt hash of a token, in hex."""
    return hashlib.scrypt(token.encode(), salt=bytes.fromhex(salt), dklen=32, **SCRYPT).hex()


class TooManyTries(Exception):
    """Wrong tokens came too often: wait a minute."""


class Doorkeeper:
    """Checks tokens and remembers sessions. Without a file everybody may edit. Threads may share it.

    A user who is taken out of the file loses his sessions with the next request.
    """

    def __init__(self, path: Path | None):
        self.path, self._lock, self._hashing = path, threading.RLock(), threading.Lock()
        self._users: dict[str, User] = read_users(path) if path else {}
        self._read_ns = path.stat().st_mtime_ns if path else 0
        self._sessions: dict[str, tuple[User, float]] = {}  # SHA-256 of a cookie -> who, until when
        self._bearers: dict[str, User] = {}  # SHA-256 of a token that was right -> whose it is
        self._failures: dict[str, list[float]] = {}  # address -> when; empty: all addresses

    @property
    def open(self) -> bool:
        """True when nobody has to log in."""
        return self.path is None

    def log_in(self, token: str, address: str) -> tuple[str, Role] | None:
        """(cookie, role) for a right token; None for a wrong one. Raises TooManyTries."""
        user = self.user_of(token, address)
        if user is None:
            return None
        cookie, now_s = secrets.token_urlsafe(32), time.monotonic()
        with self._lock:
            for key in [key for key, (_, until_s) in self._sessions.items() if until_s < now_s]:
                del self._sessions[key]
            while len(self._sessions) >= SESSIONS_MAX:
                del self._sessions[next(iter(self._sessions))]
            self._sessions[_key(cookie)] = user, now_s + SESSION_S
        return cookie, user.role

    def user_of(self, token: str, address: str) -> User | None:
        """Whose token this is. It takes its time for one that is not known. Raises TooManyTries."""
        with self._lock:
            self._refresh()
            if known := self._bearers.get(_key(token)):
                return known
            self._count_tries(address)
            users = list(self._users.values())
        with self._hashing:  # one at a time: each takes 16 MB
            found = next((user for user in users if _is_of(token, user)), None)
        with self._lock:
            if found is not None and self._users.get(found.name) == found:
                self._bearers[_key(token)] = found
                return found
            now_s = time.monotonic()
            for who in (address, ""):
                self._failures.setdefault(who, []).append(now_s)
        LOG.warning("a wrong token from %s", address or "an unknown address")
        return None

    def role_of_token(self, token: str) -> Role | None:
        """What the owner of a token may do that was right before; None: it is not known yet."""
        with self._lock:
            self._refresh()
            user = self._bearers.get(_key(token))
        return user.role if user else None

    def role_of_cookie(self, cookie: str) -> Role | None:
        """What the owner of a session may do; None: the session has ended."""
        with self._lock:
            self._refresh()
            user, until_s = self._sessions.get(_key(cookie), (None, 0.0))
            return user.role if user is not None and time.monotonic() < until_s else None

    def log_out(self, cookie: str) -> None:
        with self._lock:
            self._sessions.pop(_key(cookie), None)

    def _count_tries(self, address: str) -> None:
        since_s = time.monotonic() - TRY_S
        self._failures = {
            who: recent for who, times in self._failures.items() if (recent := [t for t in times if t > since_s])
        }
        if len(self._failures.get(address, [])) >= TRIES or len(self._failures.get("", [])) >= 10 * TRIES:
            raise TooManyTries

    def _refresh(self) -> None:
        """Reads the file again when it has changed. While it cannot be read, nobody is let in."""
        if self.path is None:
            return
        try:
            written_ns = self.path.stat().st_mtime_ns
            if written_ns == self._read_ns:
                return
            self._users, self._read_ns = read_users(self.path), written_ns
        except (OSError, AppError):
            self._users, self._read_ns = {}, 0
        self._bearers = {key: user for key, user in self._bearers.items() if self._users.get(user.name) == user}
        self._sessions = {
            key: (user, until_s) for key, (user, until_s) in self._sessions.items()
            if self._users.get(user.name) == user
        }  # fmt: skip


def _is_of(token: str, user: User) -> bool:
    return len(token) <= TOKEN_MAX and secrets.compare_digest(hashed(token, user.salt), user.digest)


def _key(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
