"""The part of a client id that nobody can guess.

A broker keeps messages under a client id, and most brokers give them to whoever connects with it, whatever his name: so
he could empty a session, or throw its owner off. Of an id with 128 random bits in it he knows too little.
"""

import base64
import fcntl
import hashlib
import hmac
import os
import re
import secrets
from pathlib import Path

from edge_agent.base import durable
from edge_agent.base.log import get_logger

BYTES = 16
_KEPT = re.compile(r"[a-z2-7]{26}\n?\Z")

log = get_logger()


def new() -> str:
    """Return 128 random bits, in 26 characters that every broker takes: a-z and 2-7."""
    return _written(secrets.token_bytes(BYTES))


def derived(secret: str, role: str) -> str:
    """Return what belongs to one connection of several; neither the secret nor another role's follows from it."""
    return _written(hmac.digest(secret.encode(), role.encode(), hashlib.sha256)[:BYTES])


def kept(file: Path) -> str:
    """Return what a file holds that only its owner can read; it is made when there is none.

    What holds anything else is replaced, as if there were none: a power cut may have left it. Raises OSError.
    """
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return _made(file)
    with os.fdopen(descriptor, encoding="ascii", errors="replace") as opened:
        if os.fstat(descriptor).st_mode & 0o077:
            os.fchmod(descriptor, 0o600)
        found = opened.read(64)
    if not _KEPT.match(found):
        log.warning("session.unreadable", file=str(file), next="another one is made")
        return _made(file)
    return found.strip()


def claim(file: Path) -> int:
    """Return a descriptor that keeps a file of `kept` for whoever holds it open, until it is closed.

    Two with one client id would throw each other off for ever. Raises BlockingIOError when somebody holds it, OSError.
    """
    descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _made(file: Path) -> str:
    secret = new()
    durable.write(file, secret + "\n", mode=0o600)
    return secret


def _written(bits: bytes) -> str:
    return base64.b32encode(bits).decode().rstrip("=").lower()
