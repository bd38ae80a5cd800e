"""CURVE keys, for what leaves this machine: a file holds a secret key, the public one of it is what others are told."""

import os
from pathlib import Path

import zmq

from peoplecounter.common.errors import NO_INPUT, Refused

CHARACTERS = 40  # of a key, in Z85


def key_pair(path: Path, make: bool = False) -> tuple[bytes, bytes]:
    """(public, secret) key of a file that only its owner can read; `make`: create it when it is new."""
    try:
        secret = path.read_bytes().strip()
    except FileNotFoundError:
        if not make:
            raise Refused(f"The key file {path} does not exist: peoplecounter keys {path}", NO_INPUT) from None
        secret = _new(path)
    except OSError as error:
        raise Refused(f"The key file {path} cannot be read: {error.strerror}.", NO_INPUT) from None
    if path.stat().st_mode & 0o077:
        raise Refused(f"The key file {path} can be read by others: chmod 600 it.")
    try:
        return zmq.curve_public(secret), secret
    except (zmq.ZMQError, ValueError):
        raise Refused(f"The key file {path} holds no secret CURVE key of {CHARACTERS} characters.") from None


def public_keys(path: Path) -> dict[bytes, str]:
    """Public key -> what stands behind it, of a file with one `KEY NAME` a line; "# " begins a line for people."""
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is no text"
        raise Refused(f"The list of public keys {path} cannot be read: {why}.", NO_INPUT) from None
    keys = {}
    for number, line in enumerate(lines, 1):
        key, _, name = line.strip().partition(" ")
        if not key or key.startswith("# ") or key == "#":
            continue
        if len(key) != CHARACTERS or not key.isascii():
            raise Refused(f"Line {number} of {path} begins with no public key of {CHARACTERS} characters.")
        keys[key.encode()] = name.strip()
    return keys


def _new(path: Path) -> bytes:
    _, secret = zmq.curve_keypair()
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(secret + b"\n")
    except OSError as error:
        raise Refused(f"The key file {path} cannot be written: {error.strerror}.", NO_INPUT) from None
    return secret
