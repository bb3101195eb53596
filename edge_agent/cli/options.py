"""The options that many verbs have."""

from pathlib import Path
from typing import Annotated

import typer

from edge_agent.settings.load import ENV_CONFIG

Config = Annotated[Path | None, typer.Option(envvar=ENV_CONFIG, help="The settings file (TOML).", dir_okay=False)]
StateDir = Annotated[
    Path | None, typer.Option(help="The agent's state folder; agent.state_dir of the settings if left out.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
