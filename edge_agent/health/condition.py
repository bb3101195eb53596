"""How the agent is, from what is known of its parts. Pure: the worst that is true, with every reason."""

from collections.abc import Sequence

from edge_agent.engine.supervisor import EngineStatus, Phase
from edge_agent.mqtt.presence import Condition

BEGINNING = (Phase.FETCHING, Phase.STARTING)
OUT = (Phase.DOWN, Phase.FAILED)


def condition(
    *,
    engines: Sequence[EngineStatus],
    draining: bool,
    disk_full: bool,
    duplicate: bool,
    deaf: tuple[str, ...] = (),
    strained: tuple[str, ...] = (),
) -> Condition:
    """Return how the agent is: `strained` says why it holds back, `deaf` what the broker does not let it hear."""
    reasons = [f"{engine.model}: {engine.reason}" for engine in engines if engine.phase in OUT]
    reasons += [f"{engine.model}: {engine.reason}" for engine in engines if engine.phase in BEGINNING]
    if not engines:
        reasons.append("no model is served")
    if disk_full:
        reasons.append("the disk is full")
    if duplicate:
        reasons.append("another agent has this id")
    reasons += [f"the broker refuses {topic}" for topic in deaf]
    reasons += strained
    if draining:
        return Condition("draining", tuple(reasons))
    if disk_full or not engines or all(engine.phase is Phase.FAILED for engine in engines):
        return Condition("unhealthy", tuple(reasons))
    if any(engine.phase in BEGINNING and engine.starts <= 1 for engine in engines):
        return Condition("starting", tuple(reasons))
    return Condition("degraded" if reasons else "ready", tuple(reasons))
