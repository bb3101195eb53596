"""Memory, from /proc/meminfo and the cgroups."""

from pathlib import Path

from hardware import cgroup, files
from hardware.machine import Memory

KIB_BYTES = 1024


def read(root: Path) -> Memory:
    """Read the memory of the machine whose files lie below `root`."""
    meminfo = files.fields(files.text(root / "proc/meminfo") or "")
    limits = [files.number(limit) for limit in cgroup.limits(root, "memory.max")]
    return Memory(
        total_bytes=_bytes(meminfo.get("MemTotal")),
        available_bytes=_bytes(meminfo.get("MemAvailable")),
        swap_bytes=_bytes(meminfo.get("SwapTotal")),
        limit_bytes=min((limit for limit in limits if limit is not None), default=None),
    )


def _bytes(amount: str | None) -> int | None:
    """Turn `16302140 kB` into bytes."""
    kib = files.number((amount or "").removesuffix("kB").strip())
    return None if kib is None else kib * KIB_BYTES
