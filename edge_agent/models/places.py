"""Where a served model can run (pure but for reading the folder): what a decision or the settings name, best first."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from edge_agent.engine.backend import backend_of
from edge_agent.models.choose import Decision, Measurement
from edge_agent.models.load import Placed
from edge_agent.models.measurements import identity
from edge_agent.settings.load import ServeSection


def of_decision(decision: Decision, installed: Mapping[str, Path]) -> list[Placed]:
    """Return the candidates that are in the store."""
    return [
        Placed(
            installed[each.variant.name],
            each.variant.backend,
            each.device,
            each.options,
            each.threads,
            each.shares_memory,
            each.variant.name,
            each.variant.revision,
            own_bytes=None if each.shares_memory else each.free_bytes,
        )
        for each in decision.candidates
        if each.variant.name in installed
    ]


def of_folder(serve: ServeSection, path: Path, measured: Mapping[tuple[str, str], Measurement]) -> list[Placed]:
    """Return the folder on the device that is asked for, then on the processor where that is allowed.

    Raises EdgeAgentError MODEL_MISSING or UNSUPPORTED.
    """
    asked = placed(serve, path, measured)
    if asked.device == "cpu" or not serve.fallback:
        return [asked]
    return [asked, placed(serve.model_copy(update={"device": "cpu"}), path, measured)]


def placed(
    serve: ServeSection, path: Path, measured: Mapping[tuple[str, str], Measurement] = MappingProxyType({})
) -> Placed:
    """Return how a folder of the user's own is loaded, with the settings a calibration found best for it.

    Raises EdgeAgentError MODEL_MISSING or UNSUPPORTED.
    """
    backend = backend_of(path) if serve.backend == "auto" else serve.backend
    device = "cpu" if serve.device == "auto" else serve.device
    best = measured.get((identity(path), device)) if measured else None
    if best is None:
        return Placed(path, backend, device, variant=path.name)
    return Placed(path, backend, device, best.options, best.threads, variant=path.name)
