"""`edge-agent submit`: send one job and follow it."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from edge_agent.base.errors import EdgeAgentError
from edge_agent.cli import broker_options as broker
from edge_agent.cli.ending import errors
from edge_agent.cli.follow import follow
from edge_agent.client.client import EdgeClient
from edge_agent.settings.broker import MqttSection

CONNECT_S = 10.0

PANEL = "Job"


@broker.takes_broker
def submit(
    prompt: Annotated[str, typer.Argument(help="What to ask; - reads it from standard input.")],
    *,
    agent: Annotated[str | None, typer.Option(help="Id of the agent that shall answer.")] = None,
    name: Annotated[str | None, typer.Option(help="Who asks; the broker's user name, when it is not given.")] = None,
    pool: Annotated[str | None, typer.Option(help="Name of a pool, any of whose agents may answer.")] = None,
    image: Annotated[
        list[Path] | None,
        typer.Option(help="An image the prompt is about; may be repeated.", exists=True, dir_okay=False, readable=True),
    ] = None,
    system: Annotated[str | None, typer.Option(help="A system prompt.", rich_help_panel=PANEL)] = None,
    model: Annotated[str, typer.Option(help="Which of its models.", rich_help_panel=PANEL)] = "auto",
    max_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.", rich_help_panel=PANEL)] = 256,
    temperature: Annotated[float, typer.Option(help="0 always gives the same answer.", rich_help_panel=PANEL)] = 0.0,
    top_p: Annotated[float, typer.Option(help="Share of probability to sample from.", rich_help_panel=PANEL)] = 1.0,
    top_k: Annotated[int, typer.Option(help="Number of tokens to sample from; 0: all.", rich_help_panel=PANEL)] = 0,
    seed: Annotated[int | None, typer.Option(help="Makes sampling repeatable.", rich_help_panel=PANEL)] = None,
    template: Annotated[
        bool, typer.Option(help="Talk in turns; without, the model goes on with the prompt.", rich_help_panel=PANEL)
    ] = True,
    stop: Annotated[
        list[str] | None,
        typer.Option(help="Ends the answer before this text; may be repeated.", rich_help_panel=PANEL),
    ] = None,
    priority: Annotated[int, typer.Option(help="0 … 9, highest first.", rich_help_panel=PANEL)] = 5,
    ttl_s: Annotated[
        float, typer.Option(help="How long the job may wait and run, in seconds.", rich_help_panel=PANEL)
    ] = 600,
    timeout_s: Annotated[float, typer.Option(help="How long it may run, in seconds.", rich_help_panel=PANEL)] = 300,
    json: Annotated[bool, typer.Option("--json", help="Print every message of the agent as a line of JSON.")] = False,
    section: MqttSection,
) -> None:
    """Send a prompt, and images it is about, to an agent or a pool of them, and print the answer as it comes.

    The answer goes to standard output, everything else to standard error. Ends with 0 when the job succeeded.
    """
    if (agent is None) == (pool is None):
        raise typer.BadParameter("give either --agent or --pool")
    text = _standard_input() if prompt == "-" else prompt
    messages = [{"role": "system", "content": system}] if system else []
    if system and not template:
        raise typer.BadParameter("--no-template leaves no room for --system")
    job: dict[str, Any] = {
        **({"messages": [*messages, {"role": "user", "content": text}]} if template else {"prompt": text}),
        "template": template,
        "model": model,
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "priority": priority,
        "ttl_s": ttl_s,
        "timeout_s": timeout_s,
    }
    if seed is not None:
        job["seed"] = seed
    if stop:
        job["stop"] = stop
    name = broker.own_name(section, name)
    with EdgeClient(broker.access(section, name), name=name, root=section.root) as client:
        if not client.wait_connected(CONNECT_S):
            errors.print(broker.unreachable(section, client.trouble))
            raise typer.Exit(1)
        try:
            handle = client.submit(agent, pool=pool, images=image or (), **job)
        except EdgeAgentError as error:
            raise typer.BadParameter(error.message) from None
        if not follow(handle, json=json):
            raise typer.Exit(1)


def _standard_input() -> str:
    try:
        return sys.stdin.buffer.read().decode().replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise typer.BadParameter(f"standard input is not valid UTF-8 at byte {error.start}", param_hint="-") from None
