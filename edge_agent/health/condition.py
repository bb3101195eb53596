"""How the agent is, from what is known of its parts. Pure: the worst that is true, with every reason."""

from collections.abc import Sequence
from dataclasses import dataclass

from edge_agent.engine.hosting.status import EngineStatus
from edge_agent.engine.phase import Phase


@dataclass(frozen=True, slots=True)
class Condition:
    """How the agent is: `starting`, `ready`, `degraded`, `draining` or `unhealthy`, and why."""

    health: str
    reasons: tuple[str, ...] = ()


def condition(
    *,
    engines: Sequence[EngineStatus],
    draining: bool,
    storage: str,
    duplicate: str,
    deaf: tuple[str, ...] = (),
    unwatched: tuple[str, ...] = (),
    limited: tuple[str, ...] = (),
    blind: bool = False,
    strained: tuple[str, ...] = (),
    stuck: tuple[str, ...] = (),
    clock: str = "",
    unserved: str = "",
) -> Condition:
    """Return how the agent is.

    `storage` says why nothing can be stored, if so; `strained` why it holds back, and unloads models if it does;
    `deaf` what the broker does not let it hear, `unwatched` what it does not let it watch, `limited` what else it does
    not give; `blind` whether the connection that watches is refused or lost while the other is not. `stuck` are threads
    that do not come back; `clock` says why the wall clock is not believed, `duplicate` why another agent of this name
    lives, `unserved` why nobody can read the metrics.
    """
    beginning = [engine for engine in engines if _begins(engine)]
    out = [engine for engine in engines if engine.phase in (Phase.DOWN, Phase.FAILED) and engine not in beginning]
    reasons = [f"{engine.model}: {engine.reason}" for engine in (*out, *beginning)]
    reasons += [
        f"{engine.model}: runs on {engine.device} in place of {engine.fallback.device}: {engine.fallback.reason}"
        for engine in engines
        if engine.fallback is not None and engine.phase is Phase.READY
    ]
    reasons += [] if engines else ["no model is served"]
    reasons += [each for each in (storage, duplicate) if each]
    reasons += [f"the broker refuses {topic}" for topic in deaf]
    reasons += [f"the broker refuses the watched topic {topic}" for topic in unwatched]
    reasons += limited
    reasons += ["watched topics have no connection"] if blind else []
    reasons += [f"metrics: {unserved}"] if unserved else []
    reasons += strained
    reasons += [f"{clock}: set it, until then no time that the machine is off is counted"] if clock else []
    reasons += [f"its thread {each} does not come back" for each in stuck]
    if stuck:
        return Condition("unhealthy", tuple(reasons))
    if draining:
        return Condition("draining", tuple(reasons))
    if storage or not engines or all(_failed(engine) for engine in engines):
        return Condition("unhealthy", tuple(reasons))
    if any(engine.starts <= 1 for engine in beginning):
        return Condition("starting", tuple(reasons))
    return Condition("degraded" if reasons else "ready", tuple(reasons))


def _failed(engine: EngineStatus) -> bool:
    """Return whether it cannot be loaded; a further try changes nothing of that until it succeeds."""
    return engine.phase is Phase.FAILED or engine.failure is not None


def _begins(engine: EngineStatus) -> bool:
    never = engine.phase is Phase.DOWN and engine.starts == 0
    loads = engine.phase is Phase.STARTING and not engine.planned
    return never or loads or engine.phase is Phase.FETCHING
