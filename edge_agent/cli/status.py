"""`edge-agent status`: how the agent on this machine is."""

import contextlib
import sys
import time
from collections.abc import Iterator
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
from edge_agent.cli.words import STATE_STYLES, number, size
from edge_agent.control.caller import ask_agent
from edge_agent.control.messages import AskState, Standing
from edge_agent.protocol.payloads import EngineReading, Telemetry
from edge_agent.settings import load as settings

WATCH_S = 2.0
EXIT_UNHEALTHY = 1
EXIT_DOWN = 3
"""As `systemctl status` exits where nothing runs."""

Rows = Iterator[tuple[str, str]]


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
    head.append(f"  edge-agent {state.version}, pid {state.pid}" + (f", up {_time(told.uptime_s)}" if told else ""))
    parts: list[RenderableType] = [head, *(Text(f"  {reason}", style="yellow") for reason in state.reasons)]
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column()
    broker = "connected" if state.connected else f"no connection: {state.trouble or 'not reached yet'}"
    for name, value in (("broker", broker), *(_facts(told) if told else ())):
        facts.add_row(name, Text(value))
    parts.append(facts)
    if told and told.engines:
        parts += [Text(), _engines(told.engines)]
        away = [each for each in told.engines if each.state == "unloaded" and each.reason]
        parts += [Text(f"  {each.model}: {each.reason}", style="dim") for each in away]
    return Group(*parts)


def _facts(told: Telemetry) -> Rows:
    yield from _work(told)
    yield from _machine(told)


def _work(told: Telemetry) -> Rows:
    waiting = ", ".join(f"{count} {state}" for state, count in told.queue.items() if count) or "nothing to do"
    yield "queue", waiting + (f", the oldest for {_time(told.queue_oldest_s)}" if told.queue_oldest_s else "")
    ended = {name: count for name, count in told.counters.items() if "token" not in name}
    yield "since start", ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in ended.items()) or "no jobs"
    if told.lifetime:
        done, tokens = told.lifetime.get("succeeded", 0), told.lifetime.get("completion_tokens", 0)
        yield "ever", f"{told.lifetime.get('accepted', 0):,} accepted, {done:,} succeeded, {tokens:,} tokens"
    if told.outbox_waiting or told.outbox_dropped:
        yield "outbox", f"{told.outbox_waiting or 0} waiting, {told.outbox_dropped or 0} dropped"
    if told.reconnects:
        yield "reconnects", str(told.reconnects)


def _machine(told: Telemetry) -> Rows:
    if told.cpu_percent is not None:
        load = "" if told.load_1m is None else f", load {told.load_1m:.2f}"
        yield "processor", f"{told.cpu_percent:.0f} %{load}"
    if told.memory_available_bytes is not None:
        total = f" of {size(told.memory_total_bytes)}" if told.memory_total_bytes else ""
        stall = f", {told.memory_stall_percent:.0f} % waiting" if told.memory_stall_percent else ""
        yield "memory", f"{size(told.memory_available_bytes)} free{total}{stall}"
    if told.disk_free_bytes is not None:
        yield "disk", f"{size(told.disk_free_bytes)} free"
    if told.hottest_celsius is not None:
        margin = "" if told.heat_margin_c is None else f", {told.heat_margin_c:.0f} K below its limit"
        yield "heat", ", ".join((f"{told.hottest_celsius:.0f} °C ({told.hottest}{margin})", *(told.slowed or ())))
    if told.power_watts is not None:
        energy = f", {told.joules_per_token:.1f} J a token" if told.joules_per_token is not None else ""
        yield "power", f"{told.power_watts:.1f} W ({told.power_of}){energy}"
    if told.on_battery is not None:
        charge = "" if told.battery_percent is None else f", {told.battery_percent:.0f} %"
        yield "battery", ("in use" if told.on_battery else "not in use") + charge
    if told.undervoltage:
        yield "supply", "gives way"
    for each in told.accelerators or ():
        busy = "" if each.busy_percent is None else f" {each.busy_percent:.0f} %"
        clock = "" if each.clock_mhz is None else f" {each.clock_mhz:.0f} MHz"
        yield each.name, (busy + clock).strip()


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


def _time(seconds: float) -> str:
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}" if seconds >= 10 * length else f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"
