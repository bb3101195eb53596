"""What the agent needs as a unit of systemd: which files, with what in them. Decided here, done by who asks."""

import sys
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import edge_agent
from hardware.machine import Accelerator

UNIT = "edge-agent.service"
UNIT_FILE = Path("/etc/systemd/system") / UNIT
SETTINGS_FILE = Path("/etc/edge-agent/edge-agent.toml")
PROGRAM_SHIPPED = "/opt/edge-agent/.venv/bin/edge-agent"
"""What the shipped unit starts."""

HIDDEN = ("/home", "/root", "/run/user", "/tmp", "/var/tmp")  # noqa: S108 - named because they are no place
"""What the unit's program does not see: ProtectHome=yes and PrivateTmp=yes, systemd.exec(5)."""

NODES = {"/dev/dri/": "dri", "/dev/accel/": "accel", "/dev/nvidia": "nvidia"}
"""Where a device's node lies, and the drop-in that opens it."""


@dataclass(frozen=True, slots=True)
class File:
    """A file to install and what for; one that is `theirs` is left alone once it is there."""

    path: Path
    text: str
    about: str
    theirs: bool = False


@dataclass(frozen=True, slots=True)
class SetupCommand:
    """What to run once the files are there."""

    words: tuple[str, ...]
    about: str


def program() -> Path:
    """Return where the program of this Python is."""
    return Path(sysconfig.get_path("scripts")) / "edge-agent"


def shipped() -> Path:
    """Return the folder of the files as shipped: in the package, in a checkout beside it."""
    inside = Path(edge_agent.__file__).with_name("systemd")
    return inside if inside.is_dir() else Path(edge_agent.__file__).parents[1] / "systemd"


def hidden(paths: Iterable[Path]) -> str:
    """Return why the unit could not run a program that needs these files (pure but for their rights); else nothing."""
    for path in paths:
        place = next((each for each in HIDDEN if path.is_relative_to(each)), None)
        if place is not None:
            return f"{path} lies in {place}, which the unit hides from its program"
        closed = next((each for each in (path, *path.parents) if each.exists() and not _everybody_may(each)), None)
        if closed is not None:
            return f"{closed} is closed to the unit's user"
    return ""


def needed() -> tuple[Path, ...]:
    """Return what the unit's program is made of: itself, its Python, its packages."""
    return program(), Path(sys.executable).resolve(), Path(edge_agent.__file__)


def files(accelerators: Iterable[Accelerator], *, start: Path) -> Iterator[File]:
    """Return what to install for a machine with these accelerators (pure but for the shipped files)."""
    folder = shipped()
    unit = (folder / UNIT).read_text(encoding="utf-8").replace(PROGRAM_SHIPPED, str(start))
    yield File(UNIT_FILE, unit, f"starts {start}")
    wanted = drop_ins(accelerators)
    for name, opened in wanted.items():
        text = (folder / f"{UNIT}.d/{name}.conf").read_text(encoding="utf-8")
        yield File(UNIT_FILE.with_name(f"{UNIT}.d") / f"{name}.conf", text, f"opens {', '.join(opened)}")
    if "accel" in wanted:
        rules = "70-edge-agent-accel.rules"
        about = "gives NPUs to the group render"
        yield File(Path("/etc/udev/rules.d") / rules, (folder / rules).read_text(encoding="utf-8"), about)
    users = (folder / "edge-agent.sysusers").read_text(encoding="utf-8")
    yield File(Path("/etc/sysusers.d/edge-agent.conf"), users, "the user edge-agent, whom you may give files")
    example = (folder / "edge-agent.toml.example").read_text(encoding="utf-8")
    yield File(SETTINGS_FILE, example, "the settings, with their defaults", theirs=True)


def ours() -> Iterator[Path]:
    """Return every file that may have been installed, but for those that are theirs."""
    yield UNIT_FILE
    yield from (UNIT_FILE.with_name(f"{UNIT}.d") / f"{name}.conf" for name in NODES.values())
    yield Path("/etc/udev/rules.d/70-edge-agent-accel.rules")
    yield Path("/etc/sysusers.d/edge-agent.conf")


def drop_ins(accelerators: Iterable[Accelerator]) -> dict[str, list[str]]:
    """Return which drop-ins a machine needs, each with the nodes it opens."""
    found: dict[str, list[str]] = {}
    for node in (each.node for each in accelerators if each.node):
        for place, name in NODES.items():
            if node.startswith(place):
                found.setdefault(name, []).append(node)
    return found


def closed(accelerators: Iterable[Accelerator]) -> list[Accelerator]:
    """Return the accelerators that no drop-in opens: they have no driver, or nodes of other names."""
    return [each for each in accelerators if not (each.node or "").startswith(tuple(NODES))]


def commands(installed: Iterable[File]) -> Iterator[SetupCommand]:
    """Return what makes systemd use these files."""
    names = {each.path.name for each in installed}
    yield SetupCommand(("systemd-sysusers", "edge-agent.conf"), "make the user")
    if "70-edge-agent-accel.rules" in names:
        yield SetupCommand(("udevadm", "control", "--reload"), "read the new rule")
        yield SetupCommand(("udevadm", "trigger", "--subsystem-match=accel"), "apply it")
    yield SetupCommand(("systemctl", "daemon-reload"), "read the unit")


def _everybody_may(path: Path) -> bool:
    """Return whether everybody may go through a folder, or read a file."""
    return bool(path.stat().st_mode & (0o001 if path.is_dir() else 0o004))
