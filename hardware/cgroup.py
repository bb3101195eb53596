"""The cgroups of this process and their parents: every one of them may set a limit, the smallest wins."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hardware import files

MOUNT = "sys/fs/cgroup"
_VERSION_1 = {"memory.max": "memory.limit_in_bytes", "memory.current": "memory.usage_in_bytes"}


@dataclass(frozen=True, slots=True)
class Level:
    """One cgroup for one controller. Version 1 is read under the names of version 2."""

    folder: Path
    version: int

    def text(self, name: str) -> str | None:
        """Return the text of a file, `cpu.max` or `memory.current`; None when there is none."""
        if self.version == 1 and name == "cpu.max":
            quota = files.text(self.folder / "cpu.cfs_quota_us")  # -1 is no limit
            period = files.text(self.folder / "cpu.cfs_period_us")
            return f"{quota} {period}" if quota and period else None
        return files.text(self.folder / (_VERSION_1.get(name, name) if self.version == 1 else name))


def levels(root: Path, controller: str) -> Iterator[Level]:
    """Yield our cgroup and each of its parents.

    A container sees its own cgroup as the top. A cgroup outside of what we see is named `/../…`: then only the top can
    be read.
    """
    memberships = dict(_memberships(root))
    for folder in _upwards(root / MOUNT, memberships.get("")):
        yield Level(folder, 2)
    if controller in memberships:
        for folder in _upwards(root / MOUNT / controller, memberships[controller]):
            yield Level(folder, 1)


def limits(root: Path, name: str) -> Iterator[str]:
    """Yield the text of a file such as `cpu.max`, `memory.max` of our cgroup and each of its parents that has it."""
    for level in levels(root, name.partition(".")[0]):
        if (limit := level.text(name)) is not None:
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
