"""Reading the kernel's small files: what cannot be read or understood is None, and nothing raises."""

import re
from pathlib import Path

READ_CHARACTERS = 4 * 2**20
"""/proc/cpuinfo of a machine with a thousand processors has about 2 MB."""


def text(path: Path) -> str | None:
    """Return a file's text without the white space around it."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return file.read(READ_CHARACTERS).strip()
    except (OSError, ValueError):  # ValueError: the path itself is odd, as with a NUL in /proc/self/cgroup
        return None


def number(digits: str | None) -> int | None:
    """Return a decimal number; more than 18 digits are no size or count of any machine and not believed."""
    return int(digits) if digits is not None and re.fullmatch(r"[0-9]{1,18}", digits) else None


def fields(lines: str) -> dict[str, str]:
    """Return `key: value` lines by key; the first of equal keys counts."""
    found: dict[str, str] = {}
    for line in lines.splitlines():
        key, colon, value = line.partition(":")
        if colon:
            found.setdefault(key.strip(), value.strip())
    return found
