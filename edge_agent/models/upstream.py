"""What an engine is told when a server elsewhere answers in the place of a model here."""

from collections.abc import Mapping

from edge_agent.engine.backend import NOWHERE, ModelSpec
from edge_agent.settings.load import ServeSection

BACKEND = "openai"
"""What asks the server."""
DEVICE = "upstream"
"""What results say it ran on."""
MEMORY_BYTES = 128 * 2**20
"""What the engine may take. It took 25 MiB idle and 34 with three images to be sent, eight answers at once no more."""


def whose(serve: ServeSection, serves: Mapping[str, ServeSection]) -> ServeSection:
    """Return whose server may answer for a model, of those by name: its own, or that of the one it names.

    Its own when neither is, which has none then.
    """
    return serve if serve.upstream is None else serves[serve.upstream]


def upstream(serve: ServeSection) -> tuple[ModelSpec, int]:
    """Return what to load, and within how much memory, for a model with a server. The key itself stays in its file."""
    table = serve.openai
    if table is None:
        raise ValueError(f"{serve.name} has no server")
    told = table.model_dump(mode="json", exclude_none=True)
    spec = ModelSpec(
        path=NOWHERE,
        backend=BACKEND,
        context_tokens=serve.context_tokens,
        parallel=serve.parallel,
        threads=1,
        device=DEVICE,
        options={name: str(value) for name, value in told.items()},
        variant=table.model,
        host=table.host,
    )
    return spec, serve.memory_bytes or MEMORY_BYTES
