"""The builds on the disk: are those there that are served, and are they whole."""

import os
from collections.abc import Callable, Iterator

from edge_agent.base.errors import EdgeAgentError
from edge_agent.doctor.finding import Finding, failed, ok, warning
from edge_agent.engine.backend import backend_of
from edge_agent.models import catalogue
from edge_agent.models.build_store import BuildStore
from edge_agent.settings.load import ServeSection, Settings
from edge_agent.settings.upstream import UpstreamSection


def look(settings: Settings, *, full: bool, told: Callable[[int], None] = lambda _bytes: None) -> Iterator[Finding]:
    """Look at every build by the sizes of its files; with `full` read and hash them all, telling of each piece."""
    try:
        store = BuildStore.of(settings)
        installed = {each.name for each in store.installed()}
        known = catalogue.read(settings.models.catalogue)
    except EdgeAgentError as error:
        yield failed("models", error.message, "edge-agent models list")
        return
    for serve in settings.models.serve:
        if serve.openai is not None:
            yield _upstream(serve, serve.openai)
        elif serve.path is not None:
            yield _folder(serve)
        elif not installed & {serve.wanted, *(each.name for each in known.builds_of(serve.wanted))}:
            yield _missing(serve, settings)
    for name in sorted(installed):
        yield _build(store, name, full=full, told=told)


def _upstream(serve: ServeSection, table: UpstreamSection) -> Finding:
    about = f"model {serve.name}"
    if table.key_file is not None and not os.access(table.key_file, os.R_OK):
        return failed(
            about, f"{table.key_file} cannot be read", "mend openai.key_file, or let the agent's user read it"
        )
    return ok(about, f"jobs that name it are sent to {table.host}; nothing was sent to try")


def _folder(serve: ServeSection) -> Finding:
    assert serve.path is not None  # noqa: S101 - the caller looked
    about = f"model {serve.name}"
    try:
        backend_of(serve.path)
    except EdgeAgentError as error:
        return failed(about, error.message.partition("; ")[0], "mend path in its [[models.serve]] table")
    return ok(about, f"{serve.path} is there; nobody vouches for it")


def _missing(serve: ServeSection, settings: Settings) -> Finding:
    about, said = f"model {serve.name}", f"no build of {serve.wanted} is here"
    if settings.models.pull == "missing":
        return warning(about, f"{said}; the agent fetches one", "nothing to do but wait, see: edge-agent models list")
    return failed(about, said, f"edge-agent explain {serve.wanted}, then edge-agent models pull the build it names")


def _build(store: BuildStore, name: str, *, full: bool, told: Callable[[int], None]) -> Finding:
    about = f"build {name}"
    try:
        if full:
            store.verify(name, told)
        else:
            store.path(name)
    except EdgeAgentError as error:
        said, _, mend = error.message.partition("; ")
        return failed(about, said, mend or f"edge-agent models remove {name}; edge-agent models pull {name}")
    return ok(about, "is whole, every hash is right" if full else "has all its files in their size; --full reads them")
