"""`edge-agent synth`: write a model of the Phi-3.5 architecture without a download."""

import time
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import rich
import typer
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from edge_agent.cli.ending import errors


class SynthSize(StrEnum):
    """Which model: a tiny one, one of the true sizes, or the small trained one."""

    TINY = "tiny"
    FULL = "full"
    DEMO = "demo"


class SynthBackend(StrEnum):
    """Which library the model is for."""

    ONNX = "onnx"
    OPENVINO = "openvino"
    LLAMACPP = "llamacpp"
    TRANSFORMERS = "transformers"


def synth(
    out: Annotated[Path, typer.Argument(help="The folder to make; it must not hold anything yet.")],
    *,
    size: Annotated[
        SynthSize,
        typer.Option(help="tiny: 1 MB. full: 2.3 to 3.2 GB, the true sizes. demo: trained, answers with sense."),
    ] = SynthSize.TINY,
    backend: Annotated[
        SynthBackend, typer.Option(help="The backend to load it with; mlx reads what is written for transformers.")
    ] = SynthBackend.ONNX,
    vision: Annotated[bool, typer.Option("--vision", help="A model that also sees images, as Phi-3.5-vision.")] = False,
    say: Annotated[str | None, typer.Option(help="Words to answer every prompt with, each token at most once.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the random weights.")] = 0,
    layers: Annotated[int | None, typer.Option(min=1, help="Other than the size's own number.")] = None,
    block_size: Annotated[int, typer.Option(help="Weights per scale: 16, 32, 64, 128 or 256.")] = 32,
) -> None:
    """Write a model that one of the backends loads, with random, scripted or trained weights."""
    started_s = time.monotonic()
    try:
        from edge_agent import synth as models  # noqa: PLC0415 - other verbs live without numpy

        kind = models.Backend(backend)
        if size is SynthSize.DEMO:
            _refuse(say=say is not None, seed=seed != 0, layers=layers is not None, block_size=block_size != 32)
            models.build_demo(out, backend=kind, vision=vision)
        else:
            shapes = {
                (SynthSize.TINY, False): models.TINY,
                (SynthSize.TINY, True): models.TINY_VISION,
                (SynthSize.FULL, False): models.FULL,
                (SynthSize.FULL, True): models.FULL_VISION,
            }
            shape = shapes[size, vision]
            shape = shape if layers is None else replace(shape, layers=layers)
            with Progress(transient=True) as bar:
                task = bar.add_task("layers", total=shape.layers)
                models.build_text(
                    out,
                    backend=kind,
                    shape=shape,
                    say=say,
                    seed=seed,
                    block_size=block_size,
                    progress=lambda done, _total: bar.update(task, completed=done),
                )
    except (FileExistsError, ValueError) as error:
        raise typer.BadParameter(str(error)) from error
    except ModuleNotFoundError as error:
        lacking = f"{error.name} is not installed; install it with: pip install 'edge-slm-agent[synth]'"
        errors.print(Text(lacking))
        raise typer.Exit(1) from error
    except (ImportError, OSError) as error:
        errors.print(Text(str(error)))
        raise typer.Exit(1) from error
    rich.print(_table(out, elapsed_s=time.monotonic() - started_s))


def _refuse(**given: bool) -> None:
    for option in (name for name, is_given in given.items() if is_given):
        raise typer.BadParameter(f"--{option.replace('_', '-')} has no meaning for the trained demo model")


def _table(out: Path, *, elapsed_s: float) -> Table:
    table = Table("file", title=f"{out}, written in {elapsed_s:.1f} s", show_footer=True)
    sizes_bytes = {path.name: path.stat().st_size for path in sorted(out.iterdir())}
    table.columns[0].footer = "total"
    table.add_column("bytes", justify="right", footer=f"{sum(sizes_bytes.values()):,}")
    for name, size_bytes in sizes_bytes.items():
        table.add_row(name, f"{size_bytes:,}")
    return table
