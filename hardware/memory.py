"""Memory, from /proc/meminfo and the cgroups."""

from pathlib import Path

from hardware import cgroup, files
from hardware.machine import Memory

KIB_BYTES = 1024
UNLIMITED_BYTES = 2**60
"""A limit beyond this is none: version 1 of the cgroups writes its largest number."""


def read(root: Path) -> Memory:
    """Read the memory of the machine whose files lie below `root`."""
    meminfo = files.fields(files.text(root / "proc/meminfo") or "")
    limits: list[int] = []
    rooms: list[int] = []
    for level in cgroup.levels(root, "memory"):
        limit = files.number(level.text("memory.max"))
        if limit is not None and limit < UNLIMITED_BYTES:
            limits.append(limit)
            rooms.append(max(0, limit - _held_bytes(level)))
    return Memory(
        total_bytes=_bytes(meminfo.get("MemTotal")),
        available_bytes=_bytes(meminfo.get("MemAvailable")),
        swap_bytes=_bytes(meminfo.get("SwapTotal")),
        limit_bytes=min(limits, default=None),
        room_bytes=min(rooms, default=None),
    )


def _held_bytes(level: cgroup.Level) -> int:
    """Return what a cgroup holds, but for file pages that the kernel takes back first."""
    stat = dict(line.partition(" ")[::2] for line in (level.text("memory.stat") or "").splitlines())
    inactive = files.number(stat.get("total_inactive_file", stat.get("inactive_file")))
    return max(0, (files.number(level.text("memory.current")) or 0) - (inactive or 0))


def _bytes(amount: str | None) -> int | None:
    """Turn `16302140 kB` into bytes."""
    kib = files.number((amount or "").removesuffix("kB").strip())
    return None if kib is None else kib * KIB_BYTES
