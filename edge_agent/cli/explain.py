"""`edge-agent explain`: what would run here, or on another machine, and why nothing else does."""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import rich
import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from edge_agent.base.errors import EdgeAgentError
from edge_agent.cli.ending import sentences
from edge_agent.cli.options import Config
from edge_agent.health.birth import decision_report
from edge_agent.images.decoder_process import bound_bytes
from edge_agent.models import catalogue, runtimes
from edge_agent.models.build_store import BuildStore
from edge_agent.models.choose import Measurement, choose, free_bytes
from edge_agent.models.load import prepare
from edge_agent.models.measurements import installed_libraries, measured
from edge_agent.models.memory import needed, read_build, reserved, with_settings
from edge_agent.models.places import placed
from edge_agent.models.provision import here, wanted
from edge_agent.protocol.payloads import CandidateInfo, ModelDecision, RejectedInfo
from edge_agent.settings import load as settings
from hardware.machine import Machine
from hardware.probe import probe

GIB_BYTES = 2**30
SYSTEM_BYTES = 768 * 2**20
"""What a headless Linux and the agent itself hold of a machine's memory, when one is only planned."""
UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def memory_bytes(amount: str) -> int:
    """Turn `8G` or `6.5GiB` into bytes. Raises typer.BadParameter when it is no amount."""
    found = re.fullmatch(r"(\d{1,6}(?:\.\d{1,3})?)\s*([KMGT]?)(?:I?B)?", amount.strip().upper())
    if found is None:
        raise typer.BadParameter("write an amount like 8G")
    return int(float(found[1]) * UNITS[found[2]])


def explain(
    model: Annotated[
        str | None, typer.Argument(help="Family or build of the catalogue; all served ones if left out.")
    ] = None,
    *,
    config: Config = None,
    context: Annotated[int | None, typer.Option(min=64, max=131_072, help="Tokens of prompt and answer.")] = None,
    parallel: Annotated[int | None, typer.Option(min=1, max=16, help="Sequences at once.")] = None,
    machine: Annotated[
        Path | None,
        typer.Option(
            help="Plan for another machine: a folder with a copy of its proc and sys.", file_okay=False, exists=True
        ),
    ] = None,
    memory: Annotated[str | None, typer.Option(help="Plan as if the machine had so much memory, such as 8G.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object, as published on evt/decision.")] = False,
) -> None:
    """Show which build of a model runs here, what else could, and why the rest cannot."""
    with sentences():
        loaded = settings.load(config)
        serves = list(loaded.models.serve)
        if model is not None:
            serves = [settings.ServeSection(name="model", model=model)]
        given = {"context_tokens": context, "parallel": parallel}
        changed = {key: value for key, value in given.items() if value is not None}
        serves = [serve.model_copy(update=changed) for serve in serves]
        there = _machine(machine, memory)
        offered = runtimes.presumed(there) if machine is not None else runtimes.ask()
        builds = catalogue.read(loaded.models.catalogue)
        store = BuildStore.of(loaded)
        installed = here(store) if machine is None else {}
        seen = measured(store.folder, there, installed_libraries()) if machine is None and memory is None else {}
        decisions = {
            serve.name: choose(
                wanted(serve, images_bytes=bound_bytes(loaded.images.pixels)),
                machine=there,
                catalogue=builds,
                runtimes=offered,
                installed=installed,
                measured=seen,
            )
            for serve in serves
            if serve.chosen
        }
    report = decision_report(serves, decisions, agent=loaded.agent.id, boot_id="")
    folders = {serve.name: _of_folder(serve, serve.path, there, seen) for serve in serves if serve.path is not None}
    report = report.model_copy(update={"models": tuple(folders.get(each.name, each) for each in report.models)})
    if json:
        rich.print_json(report.model_dump_json(exclude_none=True))
        return
    for number, each in enumerate(report.models):
        if number:
            rich.print()
        show(each, Console())
    if not all(each.candidates for each in report.models):
        raise typer.Exit(1)


def _of_folder(
    serve: settings.ServeSection, path: Path, there: Machine, seen: Mapping[tuple[str, str], Measurement]
) -> ModelDecision:
    """Return how a folder of the user's own would be loaded here, or why not."""
    decision = ModelDecision(
        name=serve.name, path_given=True, context_tokens=serve.context_tokens, parallel=serve.parallel
    )
    try:
        place = placed(serve, path, seen)
        spec, _ = prepare(place, serve, there)
    except EdgeAgentError as error:
        turned_down = RejectedInfo(variant=path.name, backend=serve.backend, device=serve.device, reason=error.message)
        return decision.model_copy(update={"rejected": (turned_down,)})
    build, notes = read_build(path, spec.backend), []
    asked = serve.context_tokens
    if build is not None and build.context is not None and build.context.tokens < asked:
        asked = build.context.tokens
        notes.append(f"this build takes {asked} tokens of context: {build.context.why}".removesuffix(": "))
    tokens, lanes, needed_bytes = spec.context_tokens, spec.parallel, 0
    if tokens < asked:
        notes.append(f"memory holds {tokens} of {asked} tokens of context")
    if lanes < serve.parallel:
        notes.append(f"memory holds {lanes} of {serve.parallel} lanes")
    if build is not None:
        need = needed(with_settings(build, spec.options), device=spec.device, context_tokens=tokens, parallel=lanes)
        needed_bytes = reserved(need.bytes)
    candidate = CandidateInfo(
        variant=path.name,
        backend=spec.backend,
        installed=True,
        device=spec.device,
        context_tokens=tokens,
        parallel=lanes,
        needed_bytes=needed_bytes,
        free_bytes=free_bytes(there.memory),
        measured=False,
        options=spec.options,
        notes=tuple(notes),
    )
    return decision.model_copy(update={"candidates": (candidate,)})


def _machine(root: Path | None, memory: str | None) -> Machine:
    there = probe(root or Path("/"), measure_bandwidth=root is None)
    if memory is None:
        return there
    total_bytes = memory_bytes(memory)
    planned = replace(
        there.memory, total_bytes=total_bytes, available_bytes=max(0, total_bytes - SYSTEM_BYTES), limit_bytes=None
    )
    return replace(there, memory=planned)


def show(decision: ModelDecision, console: Console) -> None:
    """Print what can run, best first, and why nothing else does."""
    asked = f"{decision.context_tokens} tokens of context, {decision.parallel} at once"
    if decision.candidates:
        console.print(_candidates(decision, title=f"{decision.wanted or decision.name}: {asked}"))
        for place, each in enumerate(decision.candidates, 1):
            remarks = "; ".join(remark for remark in (each.behind, *each.notes) if remark)
            if remarks:
                console.print(Text(f"{place}. {remarks}"))
        console.print("memory: needed of free, GiB; tokens/s of one answer, * expected of the memory's speed\n")
    else:
        console.print(Text(f"{decision.wanted or decision.name}: nothing fits ({asked})\n", style="bold"))
    if decision.rejected:
        table = _table("turned down")
        table.add_column("build", no_wrap=True)
        table.add_column("on")
        table.add_column("why", ratio=1)
        for turned_down in decision.rejected:
            table.add_row(*(Text(each) for each in (turned_down.variant, turned_down.device, turned_down.reason)))
        console.print(table)


def _candidates(decision: ModelDecision, *, title: str) -> Table:
    table = _table(title)
    for heading in ("", "build", "on", "memory", "context", "tokens/s", "here"):
        words = heading in {"build", "on", "here"}
        table.add_column(heading, justify="left" if words else "right", no_wrap=True)
    for place, each in enumerate(decision.candidates, 1):
        table.add_row(
            str(place),
            Text(each.variant),
            Text(each.device),
            _of(each.needed_bytes, each.free_bytes),
            f"{each.context_tokens} x {each.parallel}",
            _speed(each),
            "yes" if each.installed else "no",
            style="bold" if place == 1 else "",
        )
    return table


def _table(title: str) -> Table:
    """Return a table that leaves the names of builds whole on a terminal of 80 columns."""
    return Table(
        title=title, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0)
    )


def _speed(candidate: CandidateInfo) -> str:
    if candidate.tokens_per_second is None:
        return "?"
    return f"{candidate.tokens_per_second:g}" + ("" if candidate.measured else "*")


def _of(needed_bytes: int, free_bytes: int | None) -> str:
    free = "?" if free_bytes is None else f"{free_bytes / GIB_BYTES:.1f}"
    return f"{needed_bytes / GIB_BYTES:.1f} of {free}"
