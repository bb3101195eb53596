"""Ids: of jobs and orders, as whoever asks makes them; of watch rules, as the requesters that they are."""

import time
import uuid


def job_id() -> str:
    """Return a new job id: time-ordered, as UUIDv7 (RFC 9562, section 5.7)."""
    milliseconds = time.time_ns() // 1_000_000
    random_bits = uuid.uuid4().int & ((1 << 74) - 1)
    high = milliseconds << 80 | 7 << 76 | (random_bits >> 62) << 64
    return str(uuid.UUID(int=high | 2 << 62 | random_bits & ((1 << 62) - 1)))


_WATCH = "watch:"
"""Begins the name of the client whose jobs a watch makes; no requester's name has a colon."""


def watch_client(name: str) -> str:
    """Return the client in whose name a rule's jobs are stored."""
    return _WATCH + name


def watch_of(client: str) -> str:
    """Return the rule in whose name a client's jobs are stored; empty for a requester."""
    return client.removeprefix(_WATCH) if client.startswith(_WATCH) else ""
