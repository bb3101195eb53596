"""`edge-agent run`: the daemon."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from edge_agent.agent.daemon import main as daemon


def run(
    config: Annotated[
        Path | None,
        typer.Option(envvar="EDGE_AGENT_CONFIG", help="The settings file (TOML).", dir_okay=False),
    ] = None,
) -> None:
    """Run the agent until SIGTERM, SIGHUP or Ctrl-C."""
    sys.exit(daemon(config))
