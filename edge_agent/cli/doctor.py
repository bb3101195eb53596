"""`edge-agent doctor`: what is wrong here, and the line that mends it."""

from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import rich
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from edge_agent.base.errors import SettingsError
from edge_agent.cli.options import Config, Json
from edge_agent.doctor import broker, builds, machine
from edge_agent.doctor.finding import Finding, Severity, failed, ok
from edge_agent.protocol.topics import Topics
from edge_agent.settings import load as settings
from edge_agent.watch import rules
from hardware.probe import probe

MARKS = {
    Severity.OK: ("✓", "green"),
    Severity.WARNING: ("!", "yellow"),
    Severity.FAILED: ("✗", "red"),
    Severity.UNKNOWN: ("?", "dim"),
}


def doctor(
    *,
    config: Config = None,
    full: Annotated[bool, typer.Option("--full", help="Read every build and compare its hashes.")] = False,
    json: Json = False,
) -> None:
    """Look for what is wrong with settings, broker, machine and models; say what mends it.

    Run it as the agent's user, or with sudo. Ends with 0 when nothing failed, warnings or not.
    """
    found = []
    for finding in _look(config, full=full):
        found.append(finding)
        if not json:
            _show(finding)
    bad = sum(each.level is Severity.FAILED for each in found)
    if json:
        rich.print_json(data={"ok": not bad, "findings": [asdict(each) for each in found]})
    else:
        warned = sum(each.level is Severity.WARNING for each in found)
        rich.print(Text(f"\n{bad} failed, {warned} warnings", style="red" if bad else "yellow" if warned else "green"))
    if bad:
        raise typer.Exit(1)


def _look(config: Path | None, *, full: bool) -> Iterator[Finding]:
    try:
        loaded = settings.load(config)
        rules.read(loaded, Topics(loaded.mqtt.root, loaded.agent.id))
    except SettingsError as error:
        for line in str(error).splitlines():
            yield failed("settings", line, f"mend {config or 'the environment'}; see systemd/edge-agent.toml.example")
        return
    yield ok("settings", f"{config or 'the defaults and the environment'} can be used")
    yield from machine.agent(loaded)
    yield machine.disk(loaded)
    yield machine.clock(datetime.now(UTC))
    yield from broker.look(loaded)
    yield from machine.accelerators(probe())
    yield from builds.look(loaded, full=full)
    yield from machine.unit()


def _show(finding: Finding) -> None:
    mark, style = MARKS[finding.level]
    table = Table.grid(padding=(0, 1))
    table.add_column(width=1)
    table.add_column(overflow="fold")
    table.add_row(Text(mark, style=style), Text.assemble((finding.about, "bold"), f": {finding.said}"))
    if finding.mend:
        table.add_row("", Text(f"→ {finding.mend}", style="cyan"))
    Console().print(table)
