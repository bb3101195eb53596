"""`edge-agent models load | unload | pin | unpin`: orders to an agent, on this machine or over MQTT."""

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import rich
import typer
from rich.text import Text

from edge_agent.base.errors import EdgeAgentError, SettingsError
from edge_agent.cli import broker_options as broker
from edge_agent.cli.bar import FileLine, bar
from edge_agent.cli.ending import errors, sentences
from edge_agent.cli.follow import SILENT_S
from edge_agent.cli.options import StateDir
from edge_agent.cli.words import readable
from edge_agent.client.client import EdgeClient
from edge_agent.client.order_book import OrderHandle
from edge_agent.control.caller import ask_agent
from edge_agent.jobs.ids import job_id
from edge_agent.protocol.order_payloads import ModelOrder, OrderResult, OrderStatus
from edge_agent.settings import load as settings
from edge_agent.settings.broker import MqttSection

CONNECT_S = 10.0
LOOK_S = 0.3

VERBS = {
    "load": "Load a served model as soon as there is room, and wait until it is ready.",
    "unload": "Unload a model when what runs in it has ended; a job that waits for it loads it again.",
    "pin": "Load a model and keep it loaded, whatever else needs the memory; also over restarts.",
    "unpin": "Let a pinned model make room for others again.",
}
_DONE = {
    "load": "is loaded",
    "unload": "is unloaded",
    "pin": "is pinned",
    "unpin": "is not pinned any more",
    "pull": "is in the store",
}

Report = OrderStatus | OrderResult


def add_to(app: typer.Typer) -> None:
    """Make a command of each verb."""
    for verb, words in VERBS.items():
        app.command(verb, help=words)(_command(verb))


def _command(verb: str) -> Callable[..., None]:
    def command(
        name: Annotated[str, typer.Argument(help="A served model, as `edge-agent status` names it.")],
        *,
        agent: Annotated[str | None, typer.Option(help="An agent elsewhere; else the one on this machine.")] = None,
        json: Annotated[bool, typer.Option("--json", help="Print every report as a line of JSON.")] = False,
        state_dir: StateDir = None,
        config: Path | None,
        section: MqttSection,
    ) -> None:
        with sentences():
            if agent is None:
                follow(_here(verb, name, state_dir or settings.load(config).agent.state_dir), name, json=json)
            else:
                order(agent, verb, name, section, json=json)

    return broker.takes_broker(command)


def order(agent: str, verb: str, name: str, section: MqttSection, *, json: bool) -> None:
    """Order an agent over MQTT and show how far it is, until the end.

    Ends the command with 1 when that is none, or the broker cannot be reached. Raises EdgeAgentError when refused.
    """
    known_as = broker.requester(section)
    with EdgeClient(broker.access(section, known_as), name=known_as, root=section.root) as client:
        if not client.wait_connected(CONNECT_S):
            errors.print(broker.unreachable(section, client.trouble))
            raise typer.Exit(1)
        follow(elsewhere(client.admin(agent, verb, name), agent), name, json=json)


def elsewhere(handle: OrderHandle, agent: str) -> Iterator[Report]:
    """Yield what an agent tells of an order; say so when it is silent at first."""
    patience_s: float | None = SILENT_S
    while True:
        try:
            for report in handle.updates(patience_s):
                patience_s = None
                yield report
        except TimeoutError:
            patience_s = None
            sentence = f"no word from {agent} yet; the order waits for it (edge-agent fleet shows who is there)"
            errors.print(Text(sentence, style="dim"))
        else:
            return


def _here(verb: str, name: str, folder: Path) -> Iterator[Report]:
    """Order the agent of a state folder and ask after it, by giving the order again, until its end."""
    order = ModelOrder.model_validate({"op_id": job_id(), "op": verb, "model": name})
    newest: Report | None = None
    while not isinstance(newest, OrderResult):
        reply = ask_agent(folder, order)
        if reply is None:
            sentence = f"no agent runs with the state folder {folder}; name its settings with --config"
            raise SettingsError(sentence)
        if reply.error is not None:
            raise EdgeAgentError(reply.error.code, reply.error.message)
        if reply.order is not None and reply.order != newest:
            newest = reply.order
            yield newest
        if not isinstance(newest, OrderResult):
            time.sleep(LOOK_S)


def follow(reports: Iterator[Report], name: str, *, json: bool) -> None:
    """Show what is told of an order until its end; end the command with 1 when it failed."""
    with bar(errors) as shown:
        end = _follow(reports, name, FileLine(shown), json=json)
    if end is None:
        return
    if not json and end.state == "succeeded":
        rich.print(Text(f"{name} {_DONE[end.op or 'load']}, after {end.took_s or 0:.1f} s"))
    elif not json:
        errors.print(Text(readable(end.error.message) if end.error else "it failed", style="red"))
    if end.state != "succeeded":
        raise typer.Exit(1)


def _follow(reports: Iterator[Report], name: str, line: FileLine, *, json: bool) -> OrderResult | None:
    """Show how far an order is; return its end, which in words is told when the bar is gone."""
    for report in reports:
        if json:
            sys.stdout.write(report.model_dump_json(exclude_none=True) + "\n")
            sys.stdout.flush()
        if isinstance(report, OrderResult):
            return report
        if not json and report.total_bytes:
            line.show(readable(f"{name}: {report.reason}"), report.done_bytes or 0, report.total_bytes)
        elif not json and report.reason:
            errors.print(Text(readable(f"{name}: {report.reason}"), style="dim"))
    return None
