"""`edge-agent simulate`: many made-up agents, to look at a fleet before there is one and to load a broker."""

import resource
import signal
from typing import Annotated

import typer
from rich.text import Text

from edge_agent.cli import broker_options as broker
from edge_agent.cli.ending import errors
from edge_agent.protocol.topics import CLIENT
from edge_agent.settings.broker import MqttSection
from edge_agent.simulator.run import AGENTS_MAX, Simulation, names

FOR_S_MAX = 86_400.0
DESCRIPTORS = 1024
"""What so many connections need, with some to spare."""


@broker.takes_broker
def simulate(
    *,
    agents: Annotated[int, typer.Option(min=1, max=AGENTS_MAX, help="How many.")] = 20,
    for_s: Annotated[float, typer.Option(min=1, max=FOR_S_MAX, help="How long they live, in seconds.")] = 600.0,
    prefix: Annotated[str, typer.Option(help="Begins their names: sim-001, sim-002, …")] = "sim",
    first: Annotated[int, typer.Option(min=1, max=99_999, help="Number of the first one.")] = 1,
    period_s: Annotated[float, typer.Option(min=1, max=3600, help="Seconds between two reports, ± 10 %.")] = 10.0,
    token_ms: Annotated[
        float | None,
        typer.Option(min=0, max=60_000, help="Time a token takes; what such a machine would need if left out."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Another one makes other machines and other work.")] = 0,
    section: MqttSection,
) -> None:
    """Let agents without engines live on a broker, each with a connection of its own.

    They have births, wills, decisions and telemetry, and answer jobs with made-up words. All connect as one user, which
    must be let speak for each of them: use a broker of your own. Ctrl-C ends them in order.
    """
    fleet = names(agents, prefix=prefix, first=first)
    if not CLIENT.match(fleet[-1]):
        raise typer.BadParameter("a-z 0-9 _ -, a letter or digit first, at most 57", param_hint="--prefix")
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard if 0 <= hard < DESCRIPTORS else DESCRIPTORS, hard))
    simulation = Simulation(
        broker.access(section, prefix),
        root=section.root,
        agents=fleet,
        period_s=period_s,
        token_s=None if token_ms is None else token_ms / 1000,
        seed=seed,
    )
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, lambda _signal, _frame: simulation.stop())
    said = f"{fleet[0]} … {fleet[-1]}" if agents > 1 else fleet[0]
    errors.print(Text(f"{said} on {section.host}:{section.port} for {for_s:g} s; Ctrl-C ends them sooner"))
    with errors.status("") as line:
        simulation.run(for_s, look=lambda: line.update(Text(_news(simulation))))
    errors.print(Text(_news(simulation)))


def _news(simulation: Simulation) -> str:
    counts = simulation.counts
    jobs = f"{counts['accepted']} jobs accepted, {counts['succeeded']} answered, {counts['rejected']} refused"
    return f"{simulation.connected} of {len(simulation.agents)} connected; {jobs}"
