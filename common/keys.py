"""CURVE keys for sockets beyond loopback: a file holds a secret key; its public key is given to the other side."""

import os
from pathlib import Path

import zmq

from peoplecounter.common.errors import NO_INPUT, AppError

CHARACTERS = 40  # of a key, in Z85


def key_pair(path: Path, make: bool = False) -> tuple[bytes, bytes]:
    """(public, secret) key of a file that only its owner can read. `make`: create the file if it does not exist.

    Raises AppError for a file that is missing, unreadable, readable by others, or not a key.
    """
    try:
        secret = path.read_bytes().strip()
    except FileNotFoundError:
        if not make:
            raise AppError(
                f"The key file {path} does not exist: create it with 'peoplecounter keys {path}'.", NO_INPUT
            ) from None
        secret = _new(path)
    except OSError as error:
        raise AppError(f"The key file {path} cannot be read: {error.strerror}.", NO_INPUT) from None
    if path.stat().st_mode & 0o077:
        raise AppError(f"The key file {path} is readable by other users: run chmod 600 {path}")
    try:
        return zmq.curve_public(secret), secret
    except (zmq.ZMQError, ValueError):
        raise AppError(f"The key file {path} does not contain a secret CURVE key of {CHARACTERS} characters.") from None


def public_keys(path: Path) -> dict[bytes, str]:
    """Public key -> name, from a file with one `KEY NAME` a line; lines that start with "# " are comments.

    Raises AppError for a file that cannot be read or has another format.
    """
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is not a text file"
        raise AppError(f"The list of public keys {path} cannot be read: {why}.", NO_INPUT) from None
    keys = {}
    for number, line in enumerate(lines, 1):
        key, _, name = line.strip().partition(" ")
        if not key or key.startswith("# ") or key == "#":
            continue
        if len(key) != CHARACTERS or not key.isascii():
            raise AppError(f"Line {number} of {path} does not start with a public key of {CHARACTERS} characters.")
        keys[key.encode()] = name.strip()
    return keys


def _new(path: Path) -> bytes:
    _, secret = zmq.curve_keypair()
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(secret + b"\n")
    except OSError as error:
        raise AppError(f"The key file {path} cannot be written: {error.strerror}.", NO_INPUT) from None
    return secret
