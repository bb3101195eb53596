"""What one look found."""

from dataclasses import dataclass
from enum import StrEnum


class Severity(StrEnum):
    """How bad it is: `failed` keeps the agent from its work, `warning` may soon, `unknown` could not be looked at."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Finding:
    """What was looked at, what was found, and the line that mends it where there is something to mend."""

    about: str
    level: Severity
    said: str
    mend: str | None = None


def ok(about: str, said: str) -> Finding:
    """Return a finding that nothing is wrong."""
    return Finding(about, Severity.OK, said)


def warning(about: str, said: str, mend: str) -> Finding:
    """Return a finding that something may go wrong."""
    return Finding(about, Severity.WARNING, said, mend)


def failed(about: str, said: str, mend: str) -> Finding:
    """Return a finding that something is wrong."""
    return Finding(about, Severity.FAILED, said, mend)


def unknown(about: str, said: str) -> Finding:
    """Return a finding that could not be made."""
    return Finding(about, Severity.UNKNOWN, said)
