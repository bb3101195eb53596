"""The machine under an agent: its folder, disk, clock, accelerators, and the unit that runs it."""

import configparser
import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from edge_agent import RELEASED
from edge_agent.base.errors import EdgeAgentError
from edge_agent.control.caller import ask_agent
from edge_agent.control.messages import AskState
from edge_agent.doctor.finding import Finding, failed, ok, unknown, warning
from edge_agent.health.snapshot import free_bytes
from edge_agent.models.build_store import in_words
from edge_agent.service.units import UNIT
from edge_agent.settings.load import Settings
from hardware.machine import Machine

UNITS = (
    Path("/etc/systemd/system"),
    Path("/run/systemd/system"),
    Path("/usr/local/lib/systemd/system"),
    Path("/usr/lib/systemd/system"),
)
"""Where systemd looks for units, first found first (systemd.unit(5))."""


def agent(settings: Settings) -> Iterator[Finding]:
    """Look at the state folder and ask the agent that has it."""
    folder = settings.agent.state_dir
    try:
        mode = folder.stat().st_mode
    except PermissionError:
        yield failed("agent.state_dir", f"{folder} cannot be looked at", "run this as the agent's user, or with sudo")
        return
    except OSError:
        mode = 0
    if not stat.S_ISDIR(mode):
        yield failed(
            "agent.state_dir",
            f"{folder} is not there",
            f"sudo mkdir -m 700 -p {folder}; or start the unit, which makes it",
        )
        return
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        yield failed("agent.state_dir", f"{folder} is another user's", "run this as the agent's user, or with sudo")
        return
    if mode & 0o077:
        yield warning("agent.state_dir", f"{folder} is open to others, and holds prompts", f"sudo chmod 700 {folder}")
    try:
        reply = ask_agent(folder, AskState())
    except EdgeAgentError as error:
        yield failed("agent", error.message, f"journalctl -u {UNIT} -n 50")
        return
    if reply is None or reply.state is None:
        yield warning("agent", "does not run, or not on this folder", "sudo systemctl start edge-agent")
        return
    state = reply.state
    words = "; ".join([*state.reasons, *([state.trouble] if state.trouble else [])])
    said = f"{state.agent} {state.version} runs as process {state.pid}: {state.health}{f' ({words})' if words else ''}"
    if state.health in {"ready", "starting"} and state.connected:
        yield ok("agent", said)
    else:
        yield warning("agent", said, f"journalctl -u {UNIT} -n 50")


def disk(settings: Settings) -> Finding:
    """Look for room for jobs."""
    folder, least = settings.agent.state_dir, settings.queue.min_free_bytes
    while not os.path.exists(folder):  # noqa: PTH110 - says no, and raises nothing, where we may not look
        folder = folder.parent
    free = free_bytes(folder)
    said = f"{in_words(free)} free in {folder}, jobs are refused below {in_words(least)}"
    mend = "edge-agent jobs prune --older-s 3600; edge-agent models remove NAME; or a larger disk"
    if free < least:
        return failed("disk", said, mend)
    return warning("disk", said, mend) if free < 4 * least else ok("disk", said)


def clock(now: datetime) -> Finding:
    """Look whether the time is right; certificates are judged by it."""
    if now < RELEASED:
        return failed("clock", f"shows {now:%Y-%m-%d}", "sudo timedatectl set-ntp true")
    if Path("/run/systemd/timesync/synchronized").exists():
        return ok("clock", f"shows {now:%Y-%m-%d %H:%M} UTC and is synchronised")
    program = shutil.which("timedatectl")
    if program is None:
        return unknown("clock", f"shows {now:%Y-%m-%d %H:%M} UTC; nothing here tells whether it is synchronised")
    try:
        shown = subprocess.run(
            [program, "show", "--property=NTPSynchronized", "--value"],
            capture_output=True,
            text=True,
            timeout=5,
            check=False,
        ).stdout.strip()
    except subprocess.TimeoutExpired:
        shown = ""
    if shown == "no":
        return warning(
            "clock", f"shows {now:%Y-%m-%d %H:%M} UTC and is not synchronised", "sudo timedatectl set-ntp true"
        )
    if shown != "yes":
        return unknown("clock", f"shows {now:%Y-%m-%d %H:%M} UTC; nothing here tells whether it is synchronised")
    return ok("clock", f"shows {now:%Y-%m-%d %H:%M} UTC and is synchronised")


def accelerators(machine: Machine) -> Iterator[Finding]:
    """Look whether what could run models may be opened."""
    for each in machine.accelerators:
        about = each.node or each.kind
        name = each.name or each.vendor
        if each.usable is False:
            yield warning(about, f"{name} may not be used by this user", each.mend or "edge-agent probe")
        elif each.usable:
            yield ok(about, f"{name} may be used")
        else:
            yield unknown(about, f"{name}: whether it may be used cannot be told")


def unit(folders: tuple[Path, ...] = UNITS) -> Iterator[Finding]:
    """Look at the installed unit: does it start a program that is there, and listen to it."""
    file = next((folder / UNIT for folder in folders if (folder / UNIT).is_file()), None)
    if file is None:
        yield unknown("unit", f"{UNIT} is not installed; edge-agent install-service does it")
        return
    parser = configparser.ConfigParser(strict=False, interpolation=None, delimiters="=", allow_no_value=True)
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # the documented way to keep names as they are
    try:
        parser.read_string(file.read_text(encoding="utf-8"))
        section = parser["Service"]
    except (OSError, UnicodeDecodeError, configparser.Error, KeyError):
        yield failed("unit", f"{file} cannot be read as a unit", f"sudo rm {file}; sudo edge-agent install-service")
        return
    findings = [
        *_unit_program(file, section.get("ExecStart") or ""),
        *_unit_kind(file, section.get("Type")),
    ]
    yield from findings or [ok("unit", f"{file} is right")]


def _unit_program(file: Path, line: str) -> Iterator[Finding]:
    program = line.split(maxsplit=1)[0].lstrip("@-:+!") if line.split() else ""
    if not program or not os.access(program, os.X_OK):
        yield failed(
            "unit", f"{file} starts {program or 'nothing'}, which is no program here", f"sudoedit {file}  # ExecStart="
        )


def _unit_kind(file: Path, kind: str | None) -> Iterator[Finding]:
    if kind not in {"notify", "notify-reload"}:
        yield warning(
            "unit",
            f"{file} does not listen to the agent: it is ended while its jobs finish, and never when it is stuck",
            f"sudoedit {file}  # Type=notify; or edge-agent install-service",
        )
