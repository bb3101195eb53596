"""What an engine is told when a server elsewhere answers in the place of a model here."""

from edge_agent.engine.backend import NOWHERE, ModelSpec
from edge_agent.settings import ServeSection
from edge_agent.upstream_settings import UpstreamSection

DEVICE = "upstream"
"""What results say it ran on."""
MEMORY_BYTES = 256 * 2**20
"""What the engine may take: it holds answers under way, of 16 MiB at most each, and images to be sent."""


def upstream(serve: ServeSection, table: UpstreamSection) -> tuple[ModelSpec, int]:
    """Return what to load, and within how much memory. The key itself stays in its file."""
    told = table.model_dump(mode="json", exclude_none=True)
    spec = ModelSpec(
        path=NOWHERE,
        backend="openai",
        context_tokens=serve.context_tokens,
        parallel=serve.parallel,
        threads=1,
        device=DEVICE,
        options={name: str(value) for name, value in told.items()},
        variant=table.model,
        host=table.host,
    )
    return spec, serve.memory_bytes or MEMORY_BYTES
