"""What a load needs (pure): weights, keys and values of every lane, the scores of one piece of prompt, overhead.

The rates were measured as anonymous memory (RssAnon) of the engine child on full-size synthetic models of the
Phi-3.5-mini architecture; `python -m tests.bench.memory` measures them again.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from edge_agent.base.errors import EdgeAgentError
from edge_agent.engine.batching.prefill import LONGROPE_TOKENS, PIECE_TOKENS_MAX
from edge_agent.engine.facts import Build, Rates
from edge_agent.engine.registry import backends, on
from edge_agent.models.catalogue import Family, Variant

MIB = 2**20
_FEATURE_COPIES = 2
CONTEXT_TOKENS_MIN = 256
"""Less is of no use to anybody."""
RESERVE_FACTOR = 1.10
RESERVE_BYTES = 256 * MIB
"""A reservation is the predicted peak, a tenth and so much: predictions are right to within a tenth, freed caches may
stay in a library's arena, and a child that grows over its reservation is killed."""


def with_settings(build: Build, options: Mapping[str, str]) -> Build:
    """Return the numbers of a build under a library's settings."""
    facts = backends().get(build.backend)
    found = None if facts is None else facts.kv_bytes.get(options.get(facts.kv_option, ""))
    return build if found is None else replace(build, kv_bytes_per_value=found)


def build_of(variant: Variant, family: Family) -> Build:
    """Return the numbers of a published build."""
    return Build(
        backend=variant.backend,
        weight_bytes=variant.weight_bytes,
        kv_values_per_token=2 * family.layers * family.kv_heads * family.head_size,
        heads=family.heads,
        original_context_tokens=family.original_context_tokens,
        hidden_size=family.heads * family.head_size if family.images else None,
    )


def read_build(folder: Path, backend: str) -> Build | None:
    """Return the numbers of a model folder; None when it does not tell them."""
    facts = backends().get(backend)
    if facts is None or facts.read is None:
        return None
    try:
        return facts.read(folder)
    except (OSError, ValueError, KeyError, TypeError, EdgeAgentError):
        return None


@dataclass(frozen=True, slots=True)
class Needed:
    """What a load may come to hold: all of it, and how much of that is the machine's own memory, in bytes."""

    bytes: int
    host_bytes: int


def needed(build: Build, *, device: str, context_tokens: int, parallel: int) -> Needed:
    """Return the predicted peak of a loaded build with every lane full."""
    rate = on(build.backend, device).rates
    value_bytes = build.kv_bytes_per_value or rate.kv_bytes_per_value
    cache = build.kv_values_per_token * value_bytes * context_tokens * parallel
    work = _work_bytes(build, rate, min(PIECE_TOKENS_MAX, context_tokens), context_tokens)
    if build.original_context_tokens and context_tokens > build.original_context_tokens:
        # the first piece of a long prompt reaches beyond the switch
        work = max(work, _work_bytes(build, rate, LONGROPE_TOKENS, LONGROPE_TOKENS))
    seen = _seen_bytes(build, rate, context_tokens)
    total = int(build.weight_bytes * rate.weights_factor + cache + work) + seen + rate.overhead_bytes
    return Needed(total, rate.host_bytes or total)


def _seen_bytes(build: Build, rate: Rates, context_tokens: int) -> int:
    """Return what images of one prompt take besides: the encoder's work, and their features, once more as they join."""
    if build.hidden_size is None:
        return 0
    return rate.encoder_bytes + _FEATURE_COPIES * min(context_tokens, LONGROPE_TOKENS) * build.hidden_size * 4


def _work_bytes(build: Build, rate: Rates, piece_tokens: int, reached_tokens: int) -> float:
    """Return what computing a piece of prompt takes that reaches so far."""
    return piece_tokens * (rate.token_bytes + build.heads * rate.score_bytes * reached_tokens)


def reserved(predicted_bytes: int) -> int:
    """Return what is set aside for a predicted peak."""
    return int(predicted_bytes * RESERVE_FACTOR) + RESERVE_BYTES


@dataclass(frozen=True, slots=True)
class Shortage:
    """Which memory does not hold a need: bytes that it takes, and that are free.

    own_of: the device whose own memory it is; empty for the machine's.
    """

    needs_bytes: int
    free_bytes: int
    own_of: str = ""

    def __str__(self) -> str:
        where = f"of the {self.own_of}'s own " if self.own_of else ""
        needs, free = self.needs_bytes // MIB, self.free_bytes // MIB
        return f"needs {needs} MiB with the shortest context, {free} MiB {where}are free"


@dataclass(frozen=True, slots=True)
class Room:
    """Free memory for a device, in bytes: the machine's, and the device's own; None: nobody knows, or it has none.

    shared: whether the device computes in the machine's memory.
    """

    device: str
    host_bytes: int | None
    own_bytes: int | None = None
    shared: bool = True

    def set_aside_bytes(self, need: Needed) -> int:
        """Return the machine's memory that is set aside for a predicted need."""
        return reserved(need.bytes if self.shared else need.host_bytes)

    def shortage(self, need: Needed) -> Shortage | None:
        """Return which memory does not hold a need; None when all do."""
        if self.own_bytes is not None and reserved(need.bytes) > self.own_bytes:
            return Shortage(reserved(need.bytes), self.own_bytes, self.device)
        aside_bytes = self.set_aside_bytes(need)
        if self.host_bytes is not None and aside_bytes > self.host_bytes:
            return Shortage(aside_bytes, max(0, self.host_bytes))
        return None


@dataclass(frozen=True, slots=True)
class Fitting:
    """The most of what was asked for that fits, and what it needs."""

    context_tokens: int
    parallel: int
    need: Needed


def fit(build: Build, room: Room, *, context_tokens: int, parallel: int) -> Fitting | Shortage:
    """Return the most context tokens and lanes that there is room for, or what even the least lacks (pure).

    The one rule of what fits: for choosing a build, and for loading it. Lanes are given up before context: a prompt
    that is refused is worse than one that waits.
    """

    def tried(tokens: int, lanes: int) -> Fitting | Shortage:
        need = needed(build, device=room.device, context_tokens=tokens, parallel=lanes)
        return room.shortage(need) or Fitting(tokens, lanes, need)

    for lanes in range(parallel, 0, -1):
        if isinstance(found := tried(context_tokens, lanes), Fitting):
            return found
    low, high = min(context_tokens, CONTEXT_TOKENS_MIN), context_tokens
    best = tried(low, 1)
    while isinstance(best, Fitting) and low < high:
        middle = (low + high + 1) // 2
        if isinstance(found := tried(middle, 1), Fitting):
            low, best = middle, found
        else:
            high = middle - 1
    return best
