"""From a `[[models.serve]]` table to what an engine is told to load, as the machine is at that moment."""

from edge_agent.engine import backend
from edge_agent.engine.backend import ModelSpec
from edge_agent.errors import Code, EdgeAgentError
from edge_agent.models.memory import CONTEXT_TOKENS_MIN, context_that_fits, read_build, reservation_bytes
from edge_agent.settings import ServeSection
from hardware.machine import Machine, Memory


def available_bytes(memory: Memory) -> int | None:
    """Return the memory a load may take: what is free, and no more than the cgroup grants; None when unreadable."""
    known = [each for each in (memory.available_bytes, memory.limit_bytes) if each is not None]
    return min(known, default=None)


def prepare(serve: ServeSection, machine: Machine) -> tuple[ModelSpec, int | None]:
    """Return what to load and how many bytes of anonymous memory it may take (None: nobody knows).

    Raises EdgeAgentError: MODEL_MISSING, UNSUPPORTED backend, or NO_FIT when memory does not even hold a short context.
    """
    name = backend.backend_of(serve.path) if serve.backend == "auto" else serve.backend
    if name not in backend.names():
        there = ", ".join(backend.names())
        raise EdgeAgentError(Code.UNSUPPORTED, f"backend {name} is not in this version, which has: {there}")
    context_tokens = serve.context_tokens
    limit_bytes = serve.memory_bytes
    build = read_build(serve.path)
    room_bytes = available_bytes(machine.memory)
    if build is not None:
        if room_bytes is not None:
            context_tokens = context_that_fits(
                build, asked_tokens=serve.context_tokens, parallel=serve.parallel, available_bytes=room_bytes
            )
        if not context_tokens:
            needed = reservation_bytes(build, context_tokens=CONTEXT_TOKENS_MIN, parallel=serve.parallel) // 2**20
            raise EdgeAgentError(
                Code.NO_FIT,
                f"it needs {needed} MiB with the shortest context and {(room_bytes or 0) // 2**20} MiB are free; "
                "free memory, lower models.serve.parallel, or take a smaller build",
            )
        limit_bytes = limit_bytes or reservation_bytes(build, context_tokens=context_tokens, parallel=serve.parallel)
    spec = ModelSpec(
        path=serve.path,
        backend=name,
        context_tokens=context_tokens,
        parallel=serve.parallel,
        threads=serve.threads or machine.cpu.granted_cores,
    )
    return spec, limit_bytes
