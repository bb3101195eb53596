"""`edge-agent`: which verbs there are. Each is a module of this folder, with a function or an app of its name."""

import inspect
from importlib import import_module
from typing import Any

import typer
import typer.core
import typer.main

from edge_agent import __version__
from edge_agent.base import log

VERBS = (
    "run",
    "demo",
    "submit",
    "probe",
    "explain",
    "bench",
    "synth",
    "acl",
    "doctor",
    "status",
    "fleet",
    "simulate",
    "install-service",
    "models",
    "jobs",
)


class _Verbs(typer.core.TyperGroup):
    """Loads a verb when it is asked for: all of them together take seconds on a small device."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = dict.fromkeys(VERBS)  # type: ignore[assignment]  # for lists, and "did you mean"

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ARG002 - the library's signature
        """Return a verb's command; None when there is no such verb."""
        if cmd_name not in VERBS:
            return None
        name = cmd_name.replace("-", "_")
        verb = getattr(import_module(f"edge_agent.cli.{name}"), name)
        if isinstance(verb, typer.Typer):
            group = typer.main.get_group(verb)
            group.name = cmd_name
            for command in group.commands.values():
                command.help = flowing(command.help)
            return group
        alone = typer.Typer(add_completion=False)
        alone.command(cmd_name, help=flowing(verb.__doc__))(verb)
        return typer.main.get_command(alone)


def flowing(text: str | None) -> str | None:
    """Return a docstring with each paragraph on one line: the terminal, not its source, says where lines end."""
    return text and "\n\n".join(" ".join(part.split()) for part in inspect.cleandoc(text).split("\n\n"))


app = typer.Typer(
    name="edge-agent",
    cls=_Verbs,
    help="Runs a small language model on this device and takes its jobs from MQTT.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,  # locals hold prompts and passwords
)


def _version(asked: bool) -> None:  # noqa: FBT001 - the library's signature
    if asked:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _options(
    *,
    _version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    log.configure(format="console", level="error")  # a command speaks for itself; the daemon has settings for this
