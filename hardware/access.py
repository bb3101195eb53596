"""Whether we may open a device file, and the command that would let us."""

import grp
import os
import pwd
import stat
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from hardware.machine import Accelerator

GROUP_READS_AND_WRITES = stat.S_IRGRP | stat.S_IWGRP


@dataclass(frozen=True, slots=True)
class Opener:
    """Who wants to open device files.

    user: the account's name.
    may_open: whether it may read and write a file.
    group: the name of a file's group, or its number when it has no name here.
    groups: the groups that the account's next session will be in.
    """

    user: str
    may_open: Callable[[Path], bool]
    group: Callable[[Path], str]
    groups: Callable[[], frozenset[str]]


def ourselves() -> Opener:
    """Return this process as an opener."""
    return Opener(user=_user(), may_open=_may_open, group=_group, groups=_groups)


def with_access(root: Path, found: Accelerator, opener: Opener) -> Accelerator:
    """Return an accelerator with what is known of its access: whether its node may be opened, else what to do."""
    if found.node is None:
        return replace(found, usable=False)
    path = root / found.node.removeprefix("/")
    try:
        mode = path.stat().st_mode
        if opener.may_open(path):
            return replace(found, usable=True)
        return replace(found, usable=False, mend=_mend(root, found.node, mode=mode, opener=opener))
    except FileNotFoundError:
        return replace(found, usable=False, mend=f"docker run --device={found.node}" if _in_container(root) else None)
    except OSError:
        return found


def _mend(root: Path, node: str, *, mode: int, opener: Opener) -> str | None:
    """Return the command.

    Sources: docs.openvino.ai, "Configurations for Intel NPU" (chown, chmod, usermod) and "Configurations for Intel
    GPU"; intel.com, "Install Intel GPU Drivers" (newgrp); docs.docker.com, `docker run` (--device, --group-add).
    """
    group = opener.group(root / node.removeprefix("/"))
    if mode & GROUP_READS_AND_WRITES == GROUP_READS_AND_WRITES and group != "root":
        if _in_container(root):
            return f"docker run --device={node} --group-add={group}"
        if group in opener.groups():
            return f"newgrp {group}"
        return f"sudo usermod -aG {group} {opener.user}"
    if node.startswith("/dev/accel/") and not _in_container(root):
        return f"sudo chown root:render {node} && sudo chmod g+rw {node} && sudo usermod -aG render {opener.user}"
    return None


def _in_container(root: Path) -> bool:
    """Look for the marks that Docker and Podman leave."""
    return any((root / mark).exists() for mark in (".dockerenv", "run/.containerenv"))


def _user() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:  # a container's user need not have a name
        return "$USER"


def _may_open(path: Path) -> bool:
    return os.access(path, os.R_OK | os.W_OK)


def _group(path: Path) -> str:
    number = path.stat().st_gid
    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return str(number)


def _groups() -> frozenset[str]:
    user = _user()
    return frozenset(group.gr_name for group in grp.getgrall() if user in group.gr_mem)
