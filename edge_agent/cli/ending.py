"""How a verb that fails ends: with one sentence on standard error."""

import contextlib
from collections.abc import Iterator

import typer
from rich.console import Console
from rich.text import Text

from edge_agent.base.errors import EdgeAgentError, SettingsError
from edge_agent.cli.words import readable

errors = Console(stderr=True, highlight=False, soft_wrap=True)
"""Where sentences go. Unbroken, so that a command in one can be copied whole."""


@contextlib.contextmanager
def sentences(*others: type[Exception], unsettled: int = 1) -> Iterator[None]:
    """End the command with the sentence of an error, or of `others`, and status 1.

    The status is `unsettled` where settings are at fault.
    """
    told: tuple[type[Exception], ...] = (EdgeAgentError, SettingsError, *others)
    try:
        yield
    except told as error:
        errors.print(Text(readable(str(error)), style="red"))
        raise typer.Exit(unsettled if isinstance(error, SettingsError) else 1) from None
