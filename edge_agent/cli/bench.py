"""`edge-agent bench`: how a model runs on this machine, and with which settings it runs best."""

import contextlib
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import rich
import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from edge_agent.base.errors import Code, EdgeAgentError, SettingsError
from edge_agent.bench import calibrate
from edge_agent.bench.bench import Bench, NothingSoundError, Report, Subject
from edge_agent.bench.workload import Plan
from edge_agent.cli import bench_subject
from edge_agent.cli.bench_report import as_json, drawing, show, show_tried
from edge_agent.cli.bench_subject import BenchSize
from edge_agent.cli.ending import errors, sentences
from edge_agent.cli.options import Config, Json
from edge_agent.engine import registry
from edge_agent.engine.facts import THREADS, Axis
from edge_agent.jobs.state_dir import locked
from edge_agent.models import measurements
from edge_agent.models.build_store import BuildStore
from edge_agent.settings import load as settings
from edge_agent.settings.load import Settings
from hardware.machine import Machine
from hardware.probe import probe

JOBS_MAX = 16
THREADS_MAX = 256
TOKENS_MAX = 130_000
"""What no model here has context for."""


class BenchGrid(StrEnum):
    """What settings are tried."""

    SMALL = "small"
    NONE = "none"


def _backend(name: str) -> str:
    return _known(name, registry.names())


def _device(name: str) -> str:
    return _known(name, registry.devices())


def _known(name: str, known: tuple[str, ...]) -> str:
    try:
        return registry.checked(name, ("auto", *known))
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def bench(
    model: Annotated[
        str | None, typer.Argument(help="A model's folder, or a build of the catalogue that is in the store.")
    ] = None,
    *,
    synthetic: Annotated[
        BenchSize | None, typer.Option(help="A model with random weights instead, made for this and removed after it.")
    ] = None,
    backend: Annotated[
        str, typer.Option(help="The library; with a folder auto is the one it is for.", callback=_backend)
    ] = "auto",
    device: Annotated[
        str, typer.Option(help="What it runs on; auto is the processor where it can.", callback=_device)
    ] = "auto",
    threads: Annotated[
        str | None, typer.Option(help="Compute threads, several to try: 1,2. The cores granted to us if left out.")
    ] = None,
    jobs: Annotated[str, typer.Option(help=f"How many at once, up to {JOBS_MAX}.")] = "1,2,4,8,16",
    prompt_tokens: Annotated[str, typer.Option(help="Tokens of a prompt: what may be common + its own.")] = "192+32",
    tokens: Annotated[int, typer.Option(min=2, max=4096, help="Tokens of an answer at most.")] = 32,
    repeat: Annotated[int, typer.Option(min=1, max=100, help="Repetitions; fewer where one takes long.")] = 3,
    grid: Annotated[
        BenchGrid, typer.Option(help="small: try the settings that are known to matter here.")
    ] = BenchGrid.SMALL,
    cache: Annotated[
        str,
        typer.Option(
            help="OpenVINO: precisions of its cache to try beside 8 bits. u4 halves it, and long answers suffer."
        ),
    ] = ",".join(calibrate.CACHE),
    random_weights: Annotated[
        bool, typer.Option("--random-weights", help="Texts of this model have no meaning: judge no setting by them.")
    ] = False,
    json: Json = False,
    plot: Annotated[
        Path | None, typer.Option(help="Draw the jobs at once into this .svg file.", dir_okay=False)
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the best settings for the agent's next load.")] = False,
    config: Config = None,
) -> None:
    """Measure how a model runs on this machine, and find the settings with which it answers fastest."""
    if (model is None) == (synthetic is None):
        raise typer.BadParameter("name either a model or --synthetic tiny or full")
    if plot is not None and plot.suffix.lower() != ".svg":
        raise typer.BadParameter("--plot draws an .svg file; browsers and office programs show it")
    if keep and (synthetic is not None or random_weights):
        raise typer.BadParameter("--keep is for models whose texts have a meaning to compare")
    plan = _plan(jobs, prompt_tokens, tokens=tokens, repeat=repeat)
    counts = () if threads is None else _numbers(threads, "threads", most=THREADS_MAX)
    with sentences(ImportError), contextlib.ExitStack() as stack:
        loaded = settings.load(config)
        stack.enter_context(_alone(loaded, given=config is not None))
        if synthetic is not None:
            folder = stack.enter_context(_folder())
            with _progress() as tell:
                subject = bench_subject.synthetic(synthetic, backend, device, folder, tell)
        else:
            subject = bench_subject.found(str(model), loaded, backend, device, meaning=not random_weights)
        machine = probe()
        along = _axes(subject, machine, grid, counts, _precisions(cache))
        question = bench_subject.question(subject, loaded) if keep else None
        try:
            report = _measure(subject, plan, along, first_threads=counts[0] if counts else None, question=question)
        except NothingSoundError as error:
            if not json:
                show_tried(error.calibration, Console())
            raise
        if keep:
            report = replace(report, kept=_keep(report, machine, BuildStore.of(loaded).folder))
            bench_subject.remember(subject, loaded, report.heard)
    if plot is not None:
        _draw(report, plot)
    if json:
        rich.print_json(data=as_json(report))
    else:
        show(report, Console())


def _measure(
    subject: Subject,
    plan: Plan,
    along: tuple[Axis, ...],
    *,
    first_threads: int | None,
    question: str | None,
) -> Report:
    options = {**subject.placed.options, **({THREADS: str(first_threads)} if first_threads else {})}
    with _progress() as tell:
        bench = Bench(subject=subject, plan=plan, machine=probe, tell=tell, question=question)
        calibration = bench.calibrate(along, options) if along else None
        if calibration is not None and calibration.best is not None:
            options = dict(calibration.best.options)
        return bench.measure(options, calibration)


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    """Give a folder on the disk, for /tmp is often memory; it goes with all that is in it."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="edge-agent-bench-", dir=cache) as name:
        yield Path(name)


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """Show on standard error what is done and for how long."""
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None)
        yield lambda text: bar.update(task, description=text)


def _keep(report: Report, machine: Machine, folder: Path) -> Path:
    """Store what was found. Raises SettingsError, and EdgeAgentError when there is nothing to store."""
    place, speed = report.subject.placed, report.row("decode_tokens_per_s").median
    if speed is None:
        raise EdgeAgentError(Code.MODEL_ERROR, "no answer was long enough to tell its speed; ask for more --tokens")
    return measurements.keep(
        folder,
        measurements.StoredMeasurement(
            machine=measurements.fingerprint(machine),
            model=report.subject.name,
            backend=place.backend,
            device=place.device,
            library=measurements.installed_libraries()[place.backend],
            threads=report.spec.threads,
            tokens_per_s=speed,
            # what the decision sets by itself depends on the context served, which is another one here
            options={name: value for name, value in report.spec.options.items() if place.options.get(name) != value},
        ),
    )


def _draw(report: Report, path: Path) -> None:
    try:
        path.write_text(drawing(report), encoding="utf-8")
    except OSError as error:
        errors.print(Text(f"{path} cannot be written: {error.strerror}"))
        raise typer.Exit(1) from error


# What is asked for


def _numbers(given: str, option: str, *, most: int) -> tuple[int, ...]:
    if not re.fullmatch(r"\d{1,4}(,\d{1,4}){0,15}", given):
        raise typer.BadParameter(f"--{option}: write numbers like 1,2,4")
    numbers = tuple(dict.fromkeys(int(each) for each in given.split(",")))
    if not all(1 <= each <= most for each in numbers):
        raise typer.BadParameter(f"--{option}: from 1 to {most}")
    return numbers


def _plan(jobs: str, prompt_tokens: str, *, tokens: int, repeat: int) -> Plan:
    found = re.fullmatch(r"(\d{1,5})\+(\d{1,5})", prompt_tokens)
    if found is None or min(int(found[1]), int(found[2])) < 1:
        raise typer.BadParameter("--prompt-tokens: write common + own tokens, like 192+32")
    if int(found[1]) + int(found[2]) + tokens > TOKENS_MAX:
        raise typer.BadParameter(f"--prompt-tokens and --tokens: at most {TOKENS_MAX} together")
    return Plan(int(found[1]), int(found[2]), tokens, _numbers(jobs, "jobs", most=JOBS_MAX), repeat)


def _precisions(given: str) -> tuple[str, ...]:
    found = tuple(dict.fromkeys(given.split(",") if given else ()))
    if not set(found) <= calibrate.CACHES:
        raise typer.BadParameter(f"--cache: write some of {', '.join(sorted(calibrate.CACHES))}")
    return found


@contextlib.contextmanager
def _alone(loaded: Settings, *, given: bool) -> Iterator[None]:
    """Keep an agent with the same settings from starting, or say that it runs: both at once would share the memory."""
    if not given and "state_dir" not in loaded.agent.model_fields_set:
        yield
        return
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(loaded.agent.state_dir))
        except SettingsError as error:
            raise SettingsError(
                f"{error}\nA bench and an agent would fight over memory and processors: run it as the agent's user, "
                "while the agent is stopped"
            ) from None
        yield


def _axes(
    subject: Subject, machine: Machine, grid: BenchGrid, threads: tuple[int, ...], cache: tuple[str, ...]
) -> tuple[Axis, ...]:
    place = subject.placed
    found = calibrate.axes(place.backend, place.device, machine, cache=cache) if grid is BenchGrid.SMALL else ()
    if threads:
        found = tuple(axis for axis in found if axis.option != THREADS)
    return (Axis(THREADS, tuple(map(str, threads[1:]))), *found) if threads[1:] else found
