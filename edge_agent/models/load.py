"""From a build on disk to what an engine is told to load, as the machine is at that moment."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from edge_agent.engine.backend import ModelSpec
from edge_agent.errors import Code, EdgeAgentError
from edge_agent.models.choose import free_bytes
from edge_agent.models.memory import (
    CONTEXT_TOKENS_MIN,
    Needed,
    largest_that_fits,
    needed,
    read_build,
    reserved,
    with_settings,
)
from edge_agent.settings import ServeSection
from hardware.machine import Machine


@dataclass(frozen=True, slots=True)
class Placed:
    """A build on disk and where it runs; `options` are the library's, see ModelSpec.

    threads: compute threads, where a calibration found how many.
    shares_memory: whether the device computes in the machine's own memory. elsewhere: it is no build, but a server on
    another machine. fault: why it cannot be loaded, where that is known before.
    """

    path: Path
    backend: str
    device: str = "cpu"
    options: Mapping[str, str] = field(default_factory=dict)
    threads: int | None = None
    shares_memory: bool = True
    variant: str | None = None
    revision: str | None = None
    elsewhere: bool = False
    fault: EdgeAgentError | None = None

    def reserved_bytes(self, need: Needed) -> int:
        """Return the machine's memory that is set aside for a predicted need."""
        return reserved(need.bytes if self.shares_memory else need.host_bytes)


def prepare(
    placed: Placed, serve: ServeSection, machine: Machine, *, reserved_bytes: int = 0
) -> tuple[ModelSpec, int | None]:
    """Return what to load and how many bytes of the machine's memory it may take (None: nobody knows).

    `reserved_bytes` of what is free now belong to other engines that have not taken them yet. Raises EdgeAgentError
    NO_FIT when memory does not even hold a short context.
    """
    context_tokens, parallel = serve.context_tokens, serve.parallel
    limit_bytes = serve.memory_bytes
    build = read_build(placed.path, placed.backend)
    free = free_bytes(machine.memory)
    if build is not None:
        build = with_settings(build, placed.options)
        room_bytes = None if free is None else free - reserved_bytes
        fitting = largest_that_fits(
            build,
            device=placed.device,
            context_tokens=context_tokens,
            parallel=parallel,
            fits=lambda need: room_bytes is None or placed.reserved_bytes(need) <= room_bytes,
        )
        if fitting is None:
            least = placed.reserved_bytes(
                needed(build, device=placed.device, context_tokens=min(CONTEXT_TOKENS_MIN, context_tokens), parallel=1)
            )
            raise EdgeAgentError(
                Code.NO_FIT,
                f"it needs {least // 2**20} MiB with the shortest context and {max(0, room_bytes or 0) // 2**20} MiB "
                "are free; free memory or take a smaller build",
            )
        context_tokens, parallel = fitting
        need = needed(build, device=placed.device, context_tokens=context_tokens, parallel=parallel)
        limit_bytes = limit_bytes or placed.reserved_bytes(need)
    spec = ModelSpec(
        path=placed.path,
        backend=placed.backend,
        context_tokens=context_tokens,
        parallel=parallel,
        threads=serve.threads or placed.threads or machine.cpu.granted_cores,
        device=placed.device,
        options=placed.options,
        variant=placed.variant,
        revision=placed.revision,
    )
    return spec, limit_bytes
