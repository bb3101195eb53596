"""`edge-agent models`: the builds on this device: what there is, and how they come and go.

What a running agent has loaded is ordered by the verbs of `orders`.
"""

import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import rich
import typer
from rich.text import Text

from edge_agent.base.errors import EdgeAgentError
from edge_agent.cli import broker_options as broker
from edge_agent.cli import builds, orders
from edge_agent.cli.bar import FileLine, PullLine, bar
from edge_agent.cli.ending import errors, sentences
from edge_agent.cli.options import Config, Json
from edge_agent.models import archive, catalogue, fetch
from edge_agent.models.build_store import BuildStore, in_words
from edge_agent.models.catalogue import Catalogue, Variant
from edge_agent.models.manifest import Manifest
from edge_agent.settings import load as settings
from edge_agent.settings.broker import MqttSection

models = typer.Typer(help="The builds on this device: what there is, and how they come and go.", no_args_is_help=True)
orders.add_to(models)

Dir = Annotated[
    Path | None, typer.Option("--dir", help="Folder of the builds; models.dir of the settings if left out.")
]
Name = Annotated[str, typer.Argument(help="A build, as `models list` names it.", show_default=False)]


@dataclass(frozen=True, slots=True)
class VerbContext:
    """What a verb works with."""

    loaded: settings.Settings
    store: BuildStore
    builds: Catalogue

    def variant(self, name: str) -> Variant | None:
        """Return what the catalogue knows of a build."""
        return next((each for each in self.builds.variant if each.name == name), None)


@models.command("list")
def show(
    *,
    json: Json = False,
    config: Config = None,
    folder: Dir = None,
) -> None:
    """List the builds of the catalogue and of this device."""
    with sentences():
        place = _place(config, folder)
        rows = builds.rows(place.store, place.builds)
    if json:
        rich.print_json(data={"dir": str(place.store.folder), "builds": [asdict(row) for row in rows]})
        return
    rich.print(builds.table(rows))
    rich.print(Text(f"{in_words(place.store.size_bytes)} in {place.store.folder}"))


@models.command()
@broker.takes_broker
def pull(
    name: Name,
    *,
    config: Path | None,
    folder: Dir = None,
    agent: Annotated[str | None, typer.Option(help="An agent elsewhere that shall fetch it; else this device.")] = None,
    json: Annotated[bool, typer.Option("--json", help="With --agent: print every report as a line of JSON.")] = False,
    section: MqttSection,
) -> None:
    """Fetch a build from the hub; goes on where an earlier pull ended, however that was."""
    with sentences():
        if agent is not None:
            orders.order(agent, "pull", name, section, json=json)
            return
        place = _place(config, folder)
        variant = _wanted(place, name)
        try:
            with bar(errors) as shown:
                line = PullLine(shown)
                path = fetch.fetch(
                    place.store,
                    variant,
                    hub=fetch.Hub.of(place.loaded.models),
                    progress=line.show,
                    stop=threading.Event(),
                )
        except KeyboardInterrupt:
            errors.print(f"stopped; what has arrived is kept: go on with: edge-agent models pull {name}")
            raise typer.Exit(1) from None
    rich.print(Text(f"{name} is in {path}"))


@models.command()
def verify(
    name: Annotated[str | None, typer.Argument(help="A build; all of them if left out.")] = None,
    *,
    config: Config = None,
    folder: Dir = None,
) -> None:
    """Read builds again and compare every file with its hash."""
    with sentences():
        store = _place(config, folder).store
        names = [each.name for each in store.installed()] if name is None else [name]
        if not names:
            rich.print(Text(f"no builds are in {store.folder}"))
        damaged = False
        for each in names:
            damaged |= not _verified(store, each)
    if damaged:
        raise typer.Exit(1)


@models.command("import")
def take_in(
    source: Annotated[Path, typer.Argument(help="An archive of `models export`, or a folder.", exists=True)],
    *,
    name: Annotated[str | None, typer.Option(help="What to call the build; as the source says if left out.")] = None,
    config: Config = None,
    folder: Dir = None,
) -> None:
    """Take in a build from a file or a folder; nothing is in place before all of it is verified."""
    with sentences():
        place = _place(config, folder)
        read = archive.import_folder if source.is_dir() else archive.import_archive
        with bar(errors) as shown:
            manifest = read(place.store, source, find=place.variant, name=name, told=FileLine(shown).show)
    rich.print(Text(f"{manifest.name} is in {place.store.folder / manifest.name}, {_words(manifest)}"))


@models.command()
def export(
    name: Name,
    file: Annotated[Path, typer.Argument(help="The archive to write, about as large as the build.")],
    *,
    config: Config = None,
    folder: Dir = None,
) -> None:
    """Write a build into one file, to be carried to a device without a network."""
    with sentences():
        store = _place(config, folder).store
        with bar(errors) as shown:
            archive.export(store, name, file, told=FileLine(shown).show)
    rich.print(Text(f"{file}: {in_words(file.stat().st_size)}; there: edge-agent models import {file.name}"))


@models.command()
def remove(name: Name, *, config: Config = None, folder: Dir = None) -> None:
    """Remove a build, and what a pull has brought of it."""
    with sentences():
        freed_bytes = _place(config, folder).store.remove(name)
    rich.print(Text(f"{name} is removed, {in_words(freed_bytes)} are free again"))


@models.command()
def path(name: Name, *, config: Config = None, folder: Dir = None) -> None:
    """Print the folder of a build."""
    with sentences():
        found = _place(config, folder).store.path(name)
    typer.echo(found)


def _place(config: Path | None, folder: Path | None) -> VerbContext:
    loaded = settings.load(config)
    if folder is not None:
        section = loaded.models.model_copy(update={"dir": folder})
        loaded = loaded.model_copy(update={"models": section})
    return VerbContext(loaded, BuildStore.of(loaded), catalogue.read(loaded.models.catalogue))


def _wanted(place: VerbContext, name: str) -> Variant:
    variant = place.variant(name)
    if variant is not None:
        return variant
    several = [each.name for each in place.builds.builds_of(name)]
    if several:
        raise typer.BadParameter(
            f"{name} has several builds; name one (edge-agent explain tells which): {', '.join(several)}"
        )
    raise typer.BadParameter(f"{name} is not in the catalogue; see: edge-agent models list")


def _verified(store: BuildStore, name: str) -> bool:
    try:
        with bar(errors) as shown:
            task = shown.add_task(name, total=store.manifest(name).size_bytes)
            manifest = store.verify(name, lambda read_bytes: shown.advance(task, read_bytes))
    except EdgeAgentError as error:
        errors.print(Text(error.message, style="red"))
        return False
    rich.print(Text(f"{name} is whole: {len(manifest.files)} files, {_words(manifest)}"))
    return True


def _words(manifest: Manifest) -> str:
    word = {
        "catalogue": "hashes as in the catalogue",
        "hub": "hashes as the hub announced them",
        "archive": "hashes as the archive brought them",
        "nobody": "hashes that nobody vouches for: computed here",
    }
    return f"{in_words(manifest.size_bytes)}, {word[manifest.vouched]}"
