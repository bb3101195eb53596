"""`edge-agent status`: how the agent on this machine is."""

import contextlib
import sys
import time
from pathlib import Path
from typing import Annotated

import rich
import typer
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from edge_agent.base.errors import Code, EdgeAgentError, SettingsError
from edge_agent.cli.ending import errors
from edge_agent.cli.options import Config, Json, StateDir
from edge_agent.cli.readings import facts
from edge_agent.cli.words import STATE_STYLES, duration, number, size
from edge_agent.control.caller import ask_agent
from edge_agent.control.messages import AskState, Standing
from edge_agent.protocol.payloads import EngineReading
from edge_agent.settings import load as settings

WATCH_S = 2.0
EXIT_UNHEALTHY = 1
EXIT_DOWN = 3
"""As `systemctl status` exits where nothing runs."""


def status(
    *,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Go on until Ctrl-C.")] = False,
    json: Json = False,
    config: Config = None,
    state_dir: StateDir = None,
) -> None:
    """Show how the agent on this machine is. Exits with 1 when it is unhealthy or frozen, with 3 when none runs."""
    try:
        folder = state_dir or settings.load(config).agent.state_dir
        if watch:
            _watch(folder)
            return
        state = _standing(folder)
    except (EdgeAgentError, SettingsError) as error:
        errors.print(Text(str(error), style="red"))
        frozen = isinstance(error, EdgeAgentError) and error.code is Code.TIMEOUT
        sys.exit(EXIT_UNHEALTHY if frozen else EXIT_DOWN)
    if json:
        rich.print_json(state.model_dump_json(exclude_none=True) if state else "null")
    else:
        rich.print(shown(state, folder))
    sys.exit(EXIT_DOWN if state is None else EXIT_UNHEALTHY if state.health == "unhealthy" else 0)


def _standing(folder: Path) -> Standing | None:
    """Return how the agent of a state folder is; None when none runs. Raises EdgeAgentError when it does not say."""
    reply = ask_agent(folder, AskState())
    if reply is not None and reply.error is not None:
        raise EdgeAgentError(reply.error.code, reply.error.message)
    return None if reply is None else reply.state


def _watch(folder: Path) -> None:
    with contextlib.suppress(KeyboardInterrupt), Live(auto_refresh=False, screen=sys.stdout.isatty()) as live:
        while True:
            live.update(_now(folder), refresh=True)
            time.sleep(WATCH_S)


def _now(folder: Path) -> RenderableType:
    try:
        return shown(_standing(folder), folder)
    except EdgeAgentError as error:
        return Text(error.message, style="red")


def shown(state: Standing | None, folder: Path) -> RenderableType:
    """Return what is printed."""
    if state is None:
        return Text(f"no agent runs on {folder}; where it has another state folder, name its settings: --config", "red")
    told = state.telemetry
    head = Text.assemble((state.agent, "bold"), "  ", (state.health, STATE_STYLES.get(state.health, "")))
    head.append(f"  edge-agent {state.version}, pid {state.pid}" + (f", up {duration(told.uptime_s)}" if told else ""))
    parts: list[RenderableType] = [head, *(Text(f"  {reason}", style="yellow") for reason in state.reasons)]
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    broker = "connected" if state.connected else f"no connection: {state.trouble or 'not reached yet'}"
    for name, value in (("broker", broker), *(facts(told) if told else ())):
        table.add_row(name, Text(value))
    parts.append(table)
    if told and told.engines:
        parts += [Text(), _engines(told.engines)]
        away = [each for each in told.engines if each.state == "unloaded" and each.reason]
        parts += [Text(f"  {each.model}: {each.reason}", style="dim") for each in away]
    return Group(*parts)


def _engines(engines: tuple[EngineReading, ...]) -> Table:
    """Return one row for each model: tokens a second in and out, p50 and p95 of the time to the first text."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("model", overflow="fold", min_width=min(12, max(len(engine.model) for engine in engines)))
    for name in ("state", "on", "jobs", "in/s", "out/s", "p50", "p95", "reused", "memory"):
        table.add_column(name, justify="left" if name in {"state", "on"} else "right", no_wrap=True)
    for engine in engines:
        table.add_row(
            Text(engine.model),
            engine.state,
            engine.device or "",
            f"{engine.running}/{engine.lanes}" if engine.lanes else str(engine.running),
            number(engine.prompt_per_second),
            number(engine.generate_per_second),
            _milliseconds(engine.first_token_p50_ms),
            _milliseconds(engine.first_token_p95_ms),
            "" if engine.cached_share is None else f"{100 * engine.cached_share:.0f} %",
            "" if engine.anonymous_bytes is None else size(engine.anonymous_bytes + (engine.mapped_bytes or 0)),
        )
    return table


def _milliseconds(value: float | None) -> str:
    return "" if value is None else f"{value:.0f} ms" if value < 10_000 else f"{value / 1000:.0f} s"
