"""From a build on disk to what an engine is told to load, as the machine is at that moment."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from edge_agent.base.errors import Code, EdgeAgentError
from edge_agent.engine.backend import ModelSpec
from edge_agent.engine.registry import on
from edge_agent.models.choose import free_bytes
from edge_agent.models.memory import Room, Shortage, fit, needed, read_build, reserved, with_settings
from edge_agent.settings.load import ServeSection
from hardware.machine import Accelerator, Machine


@dataclass(frozen=True, slots=True)
class Placed:
    """A build on disk and where it runs; `options` are the library's, see ModelSpec.

    threads: compute threads, where a calibration found how many.
    shares_memory: whether the device computes in the machine's own memory; own_bytes: its own, as its library says.
    elsewhere: it is no build, but a server on
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
    own_bytes: int | None = None


def accelerator_of(backend: str, device: str, machine: Machine) -> Accelerator | None:
    """Return what a backend means by a device's name; None for the processor."""
    return next(filter(on(backend, device).means, machine.accelerators), None)


def own_held_bytes(accelerator: Accelerator, specs: Iterable[ModelSpec], machine: Machine) -> int:
    """Return how much of an accelerator's own memory those may come to hold that are loaded, or being loaded."""
    total = 0
    for spec in specs:
        build = read_build(spec.path, spec.backend)
        if build is not None and accelerator_of(spec.backend, spec.device, machine) is accelerator:
            build = with_settings(build, spec.options)
            need = needed(build, device=spec.device, context_tokens=spec.context_tokens, parallel=spec.parallel)
            total += reserved(need.bytes)
    return total


def prepare(
    placed: Placed,
    serve: ServeSection,
    machine: Machine,
    *,
    reserved_bytes: int = 0,
    beside: Iterable[ModelSpec] = (),
) -> tuple[ModelSpec, int | None]:
    """Return what to load and how many bytes of the machine's memory it may take (None: nobody knows).

    `reserved_bytes` of what is free now belong to other engines that have not taken them yet; `beside` are what those
    have loaded, which holds memory of a device's own. Raises EdgeAgentError NO_FIT when memory does not even hold a
    short context.
    """
    accelerator = accelerator_of(placed.backend, placed.device, machine)
    own_bytes = None
    if accelerator is not None and not accelerator.shares_memory:
        placed = replace(placed, shares_memory=False)
        if (total_bytes := accelerator.memory_bytes or placed.own_bytes) is not None:
            own_bytes = max(0, total_bytes - own_held_bytes(accelerator, beside, machine))
    context_tokens, parallel = serve.context_tokens, serve.parallel
    limit_bytes = serve.memory_bytes
    build = read_build(placed.path, placed.backend)
    free = free_bytes(machine.memory)
    if build is not None:
        build = with_settings(build, placed.options)
        if build.context is not None:
            context_tokens = min(context_tokens, build.context.tokens)
        room = Room(placed.device, None if free is None else free - reserved_bytes, own_bytes, placed.shares_memory)
        found = fit(build, room, context_tokens=context_tokens, parallel=parallel)
        if isinstance(found, Shortage):
            mend = "unload what is there" if found.own_of else "free memory"
            raise EdgeAgentError(Code.NO_FIT, f"it {found}; {mend} or take a smaller build")
        context_tokens, parallel = found.context_tokens, found.parallel
        limit_bytes = limit_bytes or room.set_aside_bytes(found.need)
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
