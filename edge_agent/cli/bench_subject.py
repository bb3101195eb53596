"""Which model `edge-agent bench` measures: a folder, a build in the store, or one made for it."""

import os
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path

from edge_agent.base.errors import Code, EdgeAgentError
from edge_agent.bench.bench import Subject
from edge_agent.models import catalogue, measurements
from edge_agent.models.build_store import BuildStore
from edge_agent.models.choose import options_of
from edge_agent.models.load import Placed
from edge_agent.models.places import placed
from edge_agent.models.provision import here
from edge_agent.models.reference_answers import ReferenceAnswers
from edge_agent.settings.load import ServeSection, Settings


class BenchSize(StrEnum):
    """Which synthetic model."""

    TINY = "tiny"
    FULL = "full"


def found(model: str, loaded: Settings, backend: str, device: str, *, meaning: bool) -> Subject:
    """Find what is meant: a folder, a build in the store, or a family of which there is one."""
    installed = here(BuildStore.of(loaded))
    folder = Path(model)
    name = next((name for name, path in installed.items() if path.resolve() == folder.resolve()), model)
    if name == model and (folder.is_dir() or os.sep in model):
        return Subject(
            placed(_serve(folder, backend, device), folder), measurements.identity(folder), str(folder), meaning
        )
    builds = [each for each in catalogue.read(loaded.models.catalogue).builds_of(name) if each.name in installed]
    builds = [each for each in builds if backend in ("auto", each.backend)]
    if not builds:
        raise EdgeAgentError(
            Code.MODEL_MISSING,
            f"{model} is neither a folder nor in the store; fetch it with: edge-agent models pull {model}",
        )
    if len(builds) > 1:
        names = ", ".join(each.name for each in builds)
        raise EdgeAgentError(Code.MODEL_MISSING, f"several builds of {model} are in the store; name one: {names}")
    (variant,) = builds
    on = "cpu" if device == "auto" and "cpu" in variant.devices else device
    on = variant.devices[0] if on == "auto" else on
    options = options_of(variant, on)
    place = Placed(
        path=installed[variant.name],
        backend=variant.backend,
        device=on,
        options=options,
        variant=variant.name,
        revision=variant.revision,
    )
    return Subject(place, variant.name, variant.name, meaning)


def synthetic(size: BenchSize, backend: str, device: str, parent: Path, tell: Callable[[str], None]) -> Subject:
    """Make a model with random weights in a folder."""
    from edge_agent import synth  # noqa: PLC0415 - other verbs live without numpy

    folder = parent / size
    library = "onnx" if backend == "auto" else backend
    synth.build_text(
        folder,
        backend=synth.Backend(library),
        shape=synth.FULL if size is BenchSize.FULL else synth.TINY,
        block_size=128 if library == "openvino" else 32,  # as the published builds for each library
        progress=lambda done, total: tell(f"makes a {size} model: {done} of {total} layers"),
    )
    name = f"synthetic-{size}"
    return Subject(placed(_serve(folder, library, device), folder), name, name, meaning=False)


def question(subject: Subject, loaded: Settings) -> str | None:
    """Return what an agent asks this build when it tries it; None off the processor, whose words are no reference."""
    if subject.placed.device != "cpu":
        return None
    builds = catalogue.read(loaded.models.catalogue)
    variants = builds.builds_of(subject.name)
    family = builds.family_of(variants[0]) if variants else None
    return ReferenceAnswers(loaded.agent.state_dir).canary(subject.placed.path, subject.placed.backend, family).prompt


def remember(subject: Subject, loaded: Settings, heard: str) -> None:
    """Keep what its answer to the question begins with where the agent keeps it, if it has been here at all."""
    asked = question(subject, loaded)
    if asked is not None and loaded.agent.state_dir.is_dir():
        ReferenceAnswers(loaded.agent.state_dir).keep(subject.placed.path, subject.placed.backend, asked, heard)


def _serve(folder: Path, backend: str, device: str) -> ServeSection:
    return ServeSection(name="bench", path=folder, backend=backend, device=device)
