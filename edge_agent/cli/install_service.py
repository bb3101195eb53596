"""`edge-agent install-service`: the agent as a unit of systemd."""

import difflib
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from edge_agent.service import units
from edge_agent.service.units import SETTINGS_FILE, UNIT, File, SetupCommand
from hardware.probe import probe

BOOTED = Path("/run/systemd/system")
"""It is there while systemd runs the machine, sd_booted(3)."""
MODE = 0o644
COMMAND_S = 60.0

HERE = Path("/")


def install_service(
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be done, and do nothing.")] = False,
    remove: Annotated[bool, typer.Option("--remove", help="Take it away again, but for settings and state.")] = False,
    root: Annotated[
        Path, typer.Option(help="Top folder of another system, an image's say; nothing is run there.", file_okay=False)
    ] = HERE,
) -> None:
    """Have systemd run the agent: write the unit, what it needs for this machine's GPUs and NPUs, and settings.

    Asks nothing and starts nothing. What is there already and right stays as it is; settings stay in any case.
    """
    refusal = _refusal(root, remove=remove)
    if refusal and not dry_run:
        _fail(refusal)
    try:
        if remove:
            _remove(root, dry_run=dry_run)
        else:
            _install(root, dry_run=dry_run)
    except OSError as error:
        _fail(f"{error.filename or root} cannot be written: {error.strerror or error}; what is written stays")
    if refusal:
        typer.echo(f"\nWithout --dry-run this ends here: {refusal}.")


def _refusal(root: Path, *, remove: bool) -> str:
    """Return why it cannot be done; empty when it can."""
    if os.geteuid() != 0:
        return f"only root may; run: sudo {units.program()} install-service"
    if root == HERE and not BOOTED.is_dir():
        return "this machine is not run by systemd; for an image's folder there is --root"
    if not remove and root == HERE and (reason := units.hidden(units.needed())):
        return f"{reason}; install edge-agent below /opt, and run it from there"
    return ""


def _install(root: Path, *, dry_run: bool) -> None:
    accelerators = probe().accelerators
    wanted = list(units.files(accelerators, start=units.program()))
    for file in wanted:
        _place(file, _below(root, file.path), dry_run=dry_run)
    for each in units.closed(accelerators):
        _tell("left out", f"{each.name or each.vendor}: {_why_closed(each.node)}")
    if root == HERE:
        _run(list(units.commands(wanted)), dry_run=dry_run)
    typer.echo(f"\nNext: edit {SETTINGS_FILE}, then: systemctl enable --now {UNIT}")
    typer.echo(f"Where it runs already: systemctl restart {UNIT}")


def _why_closed(node: str | None) -> str:
    if node is None:
        return "it has no driver, see edge-agent probe; with one, run this again"
    return f"no drop-in opens {node}; write one with DeviceAllow={node} rw and PrivateDevices=no"


def _place(file: File, path: Path, *, dry_run: bool) -> None:
    there = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else None
    if there == file.text:
        _tell("unchanged", str(file.path))
    elif there is not None and file.theirs:
        _tell("kept", f"{file.path} (yours)")
    else:
        _say("write", f"{file.path} ({file.about})", dry_run=dry_run)
        if there is not None:
            _show_change(there, file.text)
        if not dry_run:
            _write(path, file.text)


def _show_change(there: str, text: str) -> None:
    lines = difflib.unified_diff(there.splitlines(), text.splitlines(), "there", "new", n=0, lineterm="")
    for line in list(lines)[2:]:
        if not line.startswith("@@"):
            _tell("", line)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8")
    part.chmod(MODE)
    part.replace(path)


def _remove(root: Path, *, dry_run: bool) -> None:
    if root == HERE and units.UNIT_FILE.exists():
        _run([SetupCommand(("systemctl", "disable", "--now", UNIT), "stop it")], dry_run=dry_run)
    there = [path for path in units.ours() if _below(root, path).exists()]
    for path in there:
        _say("remove", str(path), dry_run=dry_run)
        if not dry_run:
            _below(root, path).unlink()
    if root == HERE:
        _run([SetupCommand(("systemctl", "daemon-reload"), "forget the unit")], dry_run=dry_run)
    left = ("/etc/edge-agent", "/var/lib/edge-agent (queue and models)", "/var/cache/edge-agent", "the user edge-agent")
    typer.echo(f"\nLeft: {', '.join(left)}")


def _run(commands: Sequence[SetupCommand], *, dry_run: bool) -> None:
    for command in commands:
        _say("run", f"{' '.join(command.words)} ({command.about})", dry_run=dry_run)
        if dry_run:
            continue
        if shutil.which(command.words[0]) is None:
            _fail(f"there is no {command.words[0]} here; what is written stays")
        try:
            done = subprocess.run(command.words, stdin=subprocess.DEVNULL, timeout=COMMAND_S, check=False)
        except subprocess.TimeoutExpired:
            _fail(f"{command.words[0]} does not end within {COMMAND_S:.0f} s; what is written stays")
        if done.returncode:
            _fail(f"{command.words[0]} ended with {done.returncode}, see above; what is written stays")


def _say(verb: str, what: str, *, dry_run: bool) -> None:
    _tell(f"would {verb}" if dry_run else verb, what)


def _tell(what: str, about: str) -> None:
    typer.echo(f"{what:<12} {about}")


def _below(root: Path, path: Path) -> Path:
    return root / path.relative_to("/")


def _fail(reason: str) -> NoReturn:
    typer.echo(f"edge-agent: {reason}", err=True)
    raise typer.Exit(1)
