"""The cgroups of this process and their parents: every one of them may set a limit, the smallest wins."""

from collections.abc import Iterator
from pathlib import Path

from hardware import files

MOUNT = "sys/fs/cgroup"


def limits(root: Path, name: str) -> Iterator[str]:
    """Yield the text of `cpu.max` or `memory.max` of our cgroup and of each of its parents.

    Systems with version 1 keep the same limits in other files; they are told in the form of version 2. A container
    sees its own cgroup as the top. A cgroup outside of what we see is named `/../…`: then only the top can be read.
    """
    controller = name.partition(".")[0]
    memberships = dict(_memberships(root))
    for folder in _upwards(root / MOUNT, memberships.get("")):
        if (limit := files.text(folder / name)) is not None:
            yield limit
    if controller in memberships:
        for folder in _upwards(root / MOUNT / controller, memberships[controller]):
            if (limit := _version_1(folder, controller)) is not None:
                yield limit


def _memberships(root: Path) -> Iterator[tuple[str, str]]:
    """Read /proc/self/cgroup: the path by controller; version 2's line, `0::/path`, has none."""
    for line in (files.text(root / "proc/self/cgroup") or "").splitlines():
        _, colon, rest = line.partition(":")
        controllers, second, path = rest.partition(":")
        if colon and second:
            yield from ((controller, path) for controller in controllers.split(","))


def _upwards(mount: Path, path: str | None) -> Iterator[Path]:
    parts = [] if path is None or ".." in path.split("/") else [part for part in path.split("/") if part]
    for depth in range(len(parts), -1, -1):
        yield mount.joinpath(*parts[:depth])


def _version_1(folder: Path, controller: str) -> str | None:
    if controller == "memory":
        return files.text(folder / "memory.limit_in_bytes")
    quota = files.text(folder / "cpu.cfs_quota_us")  # -1 is no limit
    period = files.text(folder / "cpu.cfs_period_us")
    return f"{quota} {period}" if quota and period else None
