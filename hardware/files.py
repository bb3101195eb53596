"""Reading the kernel's small files: what cannot be read or understood is None, and nothing raises."""

import os
import re
import stat
from itertools import islice
from pathlib import Path

READ_BYTES = 4 * 2**20
"""/proc/cpuinfo of a machine with a thousand processors has about 2 MB."""

PIECE_BYTES = 64 * 2**10

LINE_CHARACTERS = 256
"""The longest name, version or kind that is believed."""

STRINGS_MAX = 32
"""Strings of a device tree's property; a board's `compatible` has a handful."""

NAMES_MAX = 4096
"""Names of a folder that are looked at; /sys/bus/pci/devices of a large server has some hundred."""


def text(path: Path) -> str | None:
    """Return a file's text without the white space around it; never waits, not even for the writer of a FIFO.

    Only regular files are opened: opening a device can do something to it.
    """
    try:
        return _read(path).decode(errors="replace").strip()
    except (OSError, ValueError):  # ValueError: the path itself is odd, as with a NUL in /proc/self/cgroup
        return None


def _read(path: Path) -> bytes:
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError("no regular file")
    # The system's own calls: to Python's files a sensor's EAGAIN is a TypeError, and in Go it is a wait for ever
    # (https://github.com/prometheus/node_exporter/issues/3071).
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        content = bytearray()
        while len(content) < READ_BYTES and (piece := os.read(handle, PIECE_BYTES)):
            content += piece
        return bytes(content)
    finally:
        os.close(handle)


def line(path: Path) -> str | None:
    """Return what a file says in one line of at most `LINE_CHARACTERS`; a longer or empty one is no name."""
    return _line(text(path) or "")


def strings(path: Path) -> tuple[str, ...]:
    """Return the strings of a device tree's property, each ended by a NUL; the first `STRINGS_MAX` of them."""
    parts = (text(path) or "").split("\0", STRINGS_MAX)[:STRINGS_MAX]
    return tuple(found for part in parts if (found := _line(part)))


def _line(said: str) -> str | None:
    said = said.strip()
    return said if said.isprintable() and 0 < len(said) <= LINE_CHARACTERS else None


def target(link: Path) -> str | None:
    """Return the last part of where a symbolic link points: of `driver`, the driver's name."""
    try:
        return link.readlink().name or None
    except (OSError, ValueError):
        return None


def names(folder: Path) -> list[str]:
    """Return the sorted names of what is in a folder, at most `NAMES_MAX` of them; none when it cannot be read."""
    try:
        with os.scandir(folder) as found:
            return sorted(each.name for each in islice(found, NAMES_MAX))
    except (OSError, ValueError):
        return []


def numbered(folder: Path, prefix: str) -> list[Path]:
    """Return `prefix0`, `prefix1`, … of a folder by number; a name that goes on (`card0-DP-1`) is none of them."""
    found = ((number(name.removeprefix(prefix)), name) for name in names(folder) if name.startswith(prefix))
    return [folder / name for index, name in sorted((index, name) for index, name in found if index is not None)]


def amount(path: Path, *, per: int = 1, low: float = 0, high: float = 10**18) -> float | None:
    """Return the whole number in a file divided by `per`; outside of `low` … `high` it is not believed."""
    digits = text(path)
    if digits is None or not re.fullmatch(r"-?[0-9]{1,18}", digits):
        return None
    value = int(digits) / per
    return value if low <= value <= high else None


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
