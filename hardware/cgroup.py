"""The cgroup v2 of this process and its parents: every one of them may set a limit, the smallest wins."""

from collections.abc import Iterator
from pathlib import Path

from hardware import files


def limits(root: Path, name: str) -> Iterator[str]:
    """Yield the text of the file `name` (`cpu.max`, `memory.max`) of our cgroup and of each of its parents.

    A container sees its own cgroup as the top. A cgroup outside of what we see is named `/../…`: then only
    the top can be read.
    """
    mount = root / "sys/fs/cgroup"
    path = _own_path(root)
    parts = [] if path is None or ".." in path.split("/") else [part for part in path.split("/") if part]
    for depth in range(len(parts), -1, -1):
        if (limit := files.text(mount.joinpath(*parts[:depth], name))) is not None:
            yield limit


def _own_path(root: Path) -> str | None:
    """Read the v2 line of /proc/self/cgroup, `0::/path`."""
    for line in (files.text(root / "proc/self/cgroup") or "").splitlines():
        if line.startswith("0::"):
            return line.removeprefix("0::")
    return None
