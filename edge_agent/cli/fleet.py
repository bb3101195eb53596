"""`edge-agent fleet`: every agent of a fleet, as it says itself that it is."""

import contextlib
import json as jsonlib
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.live import Live
from rich.text import Text

from edge_agent.cli import broker_options as broker
from edge_agent.cli import fleet_detail, fleet_list
from edge_agent.cli.asking import Asking
from edge_agent.cli.ending import errors
from edge_agent.cli.fleet_screen import Scene, page, screen
from edge_agent.cli.keyboard import Keyboard
from edge_agent.fleet.browsing import Browsing, Screen
from edge_agent.fleet.liveness import SILENCE_S
from edge_agent.fleet.monitor import Monitor
from edge_agent.fleet.roster import AGENTS_MAX
from edge_agent.fleet.rows import AgentRow, SortOrder, row, rows
from edge_agent.settings.broker import MqttSection

CONNECT_S = 10.0
LOOK_S = 0.2
"""How often keys and messages are looked for."""
DRAW_S = 1.0
"""How often the picture is drawn anew while no key is pressed: calm enough to read, and a large fleet never rests."""
WAIT_S = SILENCE_S + 5.0
"""Long enough for who does not report to be lost, with the default period."""
EXIT_BAD = 1
EXIT_DOWN = 3
"""As `edge-agent status` ends where nothing runs."""


@broker.takes_broker
def fleet(
    agent: Annotated[str | None, typer.Argument(help="One agent, in detail.")] = None,
    *,
    once: Annotated[bool, typer.Option("--once", help="Print once and end; so it is where nobody looks.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one line of JSON for each agent, and end.")] = False,
    sort: Annotated[SortOrder, typer.Option(help="What stands first.")] = SortOrder.HEALTH,
    only: Annotated[str, typer.Option("--filter", help="Only agents of which every one of these words is known.")] = "",
    wait_s: Annotated[
        float, typer.Option(min=0, max=3600, help="With --once: at most so long for agents that have not reported.")
    ] = WAIT_S,
    section: MqttSection,
) -> None:
    """Show every agent of a fleet: health, model, device, queue, speed, heat, memory, and when it was last heard of.

    With --once or --json it ends with 1 when one of those shown is unhealthy, lost or offline, with 3 when the broker
    is not there. It listens only; a test prompt (key t) is sent as a job.
    """
    name = broker.requester(section)
    with Monitor(broker.access(section, f"{name[:40]}-fleet"), root=section.root) as monitor:
        if once or json or not (sys.stdin.isatty() and sys.stdout.isatty()):
            if not monitor.wait_connected(CONNECT_S):
                errors.print(broker.unreachable(section, monitor.trouble))
                raise typer.Exit(EXIT_DOWN)
            _await_picture(monitor, wait_s)
            raise typer.Exit(_print(monitor, agent, sort=sort, words=only, json=json))
        with Asking(broker.access(section, f"{name[:40]}-test"), name=name, root=section.root) as asking:
            start = Browsing(place=Screen.DETAIL if agent else Screen.LIST, chosen=agent, sort=sort, words=only)
            _browse(monitor, asking, start, f"{section.root} at {section.host}:{section.port}")


def _await_picture(monitor: Monitor, wait_s: float) -> None:
    """Wait for what the broker has kept; then, at most so long, for a report of every agent that should be there."""
    end_s: float | None = None
    while not monitor.complete():
        if end_s is None and monitor.settled():
            end_s = time.monotonic() + wait_s
        if (end_s is not None and time.monotonic() >= end_s) or not monitor.connected:
            break
        if not monitor.attend():
            time.sleep(0.02)


def _print(monitor: Monitor, agent: str | None, *, sort: SortOrder, words: str, json: bool) -> int:
    """Print the list, or one agent; return the exit status."""
    now_s = time.monotonic()
    found = rows(monitor.roster, now_s, sort=sort, words=words)
    if agent is not None:
        found = [each for each in found if each.agent == agent]
        if not found:
            errors.print(Text(f"nothing was heard of {agent!r}", style="red"))
            return EXIT_DOWN
    if (trouble := _trouble(monitor)) is not None:
        errors.print(Text(trouble, style="red"))
    if json:
        for each in found:
            print(jsonlib.dumps(asdict(each)))  # noqa: T201 - the command's output
    else:
        _show(monitor, found, detail=agent is not None)
    return EXIT_BAD if any(each.bad for each in found) else 0


def _show(monitor: Monitor, found: Sequence[AgentRow], *, detail: bool) -> None:
    console = Console(highlight=False)
    if detail:
        member = monitor.roster.member(found[0].agent)
        for line in fleet_detail.lines(member, found[0], console.width) if member else ():
            console.print(line)
        return
    if not found:
        console.print(Text(_nobody(monitor)))
        return
    plan = fleet_list.layout(found, console.width, name_most=64)
    lines = [fleet_list.line_of(each, plan, console.width) for each in found]
    for line in (fleet_list.heading(plan, console.width), *lines):
        line.rstrip()
        console.print(line, no_wrap=True, crop=True)
    console.print(fleet_list.totals(found, len(monitor.roster)))


def _trouble(monitor: Monitor) -> str | None:
    """Return why not everything is seen; None when it is, as far as we know."""
    if not monitor.connected:
        return f"no broker: {monitor.trouble or 'connecting'}"
    if monitor.refused:
        return f"the broker does not let you hear {next(iter(monitor.refused))}; see edge-agent acl --monitor"
    if monitor.roster.overlooked:
        return f"there are more agents than the {AGENTS_MAX} shown"
    return None


def _nobody(monitor: Monitor) -> str:
    if not monitor.settled():
        return "listening …"
    return "no agent has said anything; where the broker has an ACL you must be a monitor (edge-agent acl --monitor)"


def _browse(monitor: Monitor, asking: Asking, at: Browsing, head: str) -> None:
    """Show the fleet until somebody presses q."""
    console = Console(highlight=False)
    drawn_s = float("-inf")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # or the terminal would stay as we made it
    signal.signal(signal.SIGTSTP, signal.SIG_IGN)
    with (
        contextlib.suppress(KeyboardInterrupt, EOFError),
        Keyboard() as keyboard,
        Live(console=console, screen=True, auto_refresh=False) as live,
    ):
        while not at.over:
            pressed = keyboard.read(LOOK_S)
            answered = asking.attend()
            monitor.attend()
            now_s, size = time.monotonic(), console.size
            if not (pressed or answered or now_s - drawn_s >= DRAW_S):
                continue
            found = rows(monitor.roster, now_s, sort=at.sort, words=at.words, reverse=at.reverse)
            for key in pressed:
                before, at = at, at.press(key, found, page=page(size.height, at.place))
                if (before.sort, before.words, before.reverse) != (at.sort, at.words, at.reverse):
                    found = rows(monitor.roster, now_s, sort=at.sort, words=at.words, reverse=at.reverse)
                if at.ask and at.chosen:
                    asking.ask(at.chosen, at.ask)
                    at = at.sent()
            at = at.settle(found)
            text, top = screen(_scene(monitor, asking, at, found, head, now_s), at, size.width, size.height)
            at = at.scrolled(top)
            live.update(text, refresh=True)
            drawn_s = now_s


def _scene(monitor: Monitor, asking: Asking, at: Browsing, found: Sequence[AgentRow], head: str, now_s: float) -> Scene:
    member = monitor.roster.member(at.chosen) if at.chosen else None
    return Scene(
        rows=found,
        known=len(monitor.roster),
        head=head,
        trouble=_trouble(monitor),
        hint=_nobody(monitor),
        member=member,
        member_row=None if member is None else row(member, now_s, judged_s=monitor.roster.judged_s(now_s)),
        asking=asking,
    )
