"""`edge-agent`: which verbs there are."""

import typer

from edge_agent import __version__, log
from edge_agent.cli.acl import acl
from edge_agent.cli.bench import bench
from edge_agent.cli.demo import demo
from edge_agent.cli.doctor import doctor
from edge_agent.cli.explain import explain
from edge_agent.cli.fleet import fleet
from edge_agent.cli.install_service import install_service
from edge_agent.cli.jobs import jobs
from edge_agent.cli.models import models
from edge_agent.cli.probe import probe
from edge_agent.cli.run import run
from edge_agent.cli.simulate import simulate
from edge_agent.cli.status import status
from edge_agent.cli.submit import submit
from edge_agent.cli.synth import synth

app = typer.Typer(
    name="edge-agent",
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


for verb in (run, demo, submit, probe, explain, bench, synth, acl, doctor, status, fleet, simulate, install_service):
    app.command()(verb)
app.add_typer(models, name="models")
app.add_typer(jobs, name="jobs")
