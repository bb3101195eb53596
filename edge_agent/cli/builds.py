"""The list of builds: the catalogue's and the store's, side by side."""

from dataclasses import dataclass
from typing import Literal

from rich.table import Table
from rich.text import Text

from edge_agent.models.build_store import BuildStore, Installed, in_words
from edge_agent.models.catalogue import Catalogue, Variant


@dataclass(frozen=True, slots=True)
class BuildRow:
    """A build in the list: of how many files a hash is known, and of an installed one whose word that is."""

    name: str
    family: str | None
    backend: str | None
    devices: tuple[str, ...]
    size_bytes: int | None
    state: Literal["installed", "damaged", "partial", "available"]
    partial_bytes: int
    hashes_known: int
    vouched: str | None


def rows(store: BuildStore, builds: Catalogue) -> list[BuildRow]:
    """Return the catalogue's builds by family, then those of the store that it does not know."""
    here = {each.name: each for each in store.installed()}
    partial = store.partial_bytes()
    known = [
        _row(each.name, each, here.pop(each.name, None), partial.pop(each.name, 0))
        for family in builds.family
        for each in builds.variant
        if each.family == family.name
    ]
    unknown = sorted(here.keys() | partial.keys())
    return known + [_row(name, None, here.get(name), partial.get(name, 0)) for name in unknown]


def _row(name: str, variant: Variant | None, installed: Installed | None, partial_bytes: int) -> BuildRow:
    manifest = installed.manifest if installed else None
    state: Literal["installed", "damaged", "partial", "available"]
    if installed is not None:
        state = "installed" if manifest else "damaged"
    else:
        state = "partial" if partial_bytes else "available"
    files = manifest.files if manifest else variant.files if variant else ()
    return BuildRow(
        name=name,
        family=variant.family if variant else None,
        backend=variant.backend if variant else None,
        devices=variant.devices if variant else (),
        size_bytes=manifest.size_bytes if manifest else variant.weight_bytes if variant else None,
        state=state,
        partial_bytes=partial_bytes,
        hashes_known=sum(each.sha256 is not None for each in files),
        vouched=manifest.vouched if manifest else None,
    )


_STYLES = {"installed": "green", "damaged": "red", "partial": "yellow", "available": ""}


def table(rows: list[BuildRow]) -> Table:
    """Return the rows as a table that fits 80 columns."""
    shown = Table(box=None, padding=(0, 1, 0, 0), header_style="bold")
    for header in ("build", "backend"):
        shown.add_column(header, no_wrap=True)
    shown.add_column("devices")
    shown.add_column("size", justify="right", no_wrap=True)
    for header in ("state", "hashes"):
        shown.add_column(header, no_wrap=True)
    family: str | None = ""
    for row in rows:
        if row.family != family:
            family = row.family
            shown.add_row(Text(family or "not in the catalogue", style="dim"))
        shown.add_row(
            Text(f" {row.name}"),
            row.backend or "",
            " ".join(row.devices),
            "" if row.size_bytes is None else in_words(row.size_bytes),
            Text(_state(row), style=_STYLES[row.state]),
            _hashes(row),
        )
    return shown


def _state(row: BuildRow) -> str:
    if row.state == "partial" and row.size_bytes:
        return f"{min(99, 100 * row.partial_bytes // row.size_bytes)} % here"
    return row.state


def _hashes(row: BuildRow) -> str:
    """Return whose word an installed build's hashes are; of another, of how many files the catalogue knows them."""
    if row.vouched is not None:
        return "no word" if row.vouched == "nobody" else row.vouched
    return f"{row.hashes_known} files" if row.hashes_known else "none"
