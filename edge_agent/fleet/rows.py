"""One line for each agent: how it is, what it does, and since when nothing was heard of it. PURE."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeVar

from edge_agent.fleet.liveness import Liveness
from edge_agent.fleet.roster import Member, Roster, memory_percent
from edge_agent.protocol.payloads import EngineReading, ServedModel, Telemetry

N = TypeVar("N", int, float)

UNKNOWN = "unknown"
STATES = ("unhealthy", "lost", "offline", "degraded", UNKNOWN, "starting", "draining", "ready")
"""The worst first. `lost` and `offline` are what the fleet sees; the others are the agents' own words."""
BAD = frozenset({"unhealthy", "lost", "offline"})
"""Agents in these states do no work, and somebody should look."""
HEALTHS = frozenset(STATES) - {"lost", "offline", UNKNOWN}


@dataclass(frozen=True, slots=True)
class AgentRow:
    """An agent in one line; the names of the fields are the keys of `--json`. None: not known, or not told any more.

    `tokens_per_s` is how fast one answer comes, the mean over its jobs; `throughput_per_s` what all answers together
    made between the last two reports. `last_seen_s` is how long ago the agent last said something.
    """

    agent: str
    state: str
    reasons: tuple[str, ...]
    model: str | None
    models: tuple[str, ...]
    backend: str | None
    device: str | None
    running: int | None
    lanes: int | None
    waiting: int | None
    oldest_s: float | None
    tokens_per_s: float | None
    throughput_per_s: float | None
    heat_celsius: float | None
    heat_margin_c: float | None
    memory_percent: float | None
    memory_total_bytes: int | None
    cpu_percent: float | None
    power_watts: float | None
    restraint: int | None
    succeeded: int | None
    version: str | None
    board: str | None
    pools: tuple[str, ...]
    uptime_s: float | None
    boot_id: str | None
    last_seen_s: float | None

    @property
    def bad(self) -> bool:
        """Whether it does no work and somebody should look."""
        return self.state in BAD


def row(member: Member, now_s: float, *, judged_s: float) -> AgentRow:
    """Return an agent in one line. What only a living one can tell is not told of one that is offline or lost.

    `judged_s` is when its silence is judged, see Roster.
    """
    standing = member.life.standing(judged_s)
    told = member.telemetry if standing is Liveness.THERE else None
    seen = told or Telemetry(agent=member.name, version="", boot_id="", uptime_s=0.0, health=UNKNOWN)
    info, heard_s = member.info, member.life.heard_s
    served = info.models if info else ()
    names = tuple(each.model for each in seen.engines) or tuple(each.name for each in served)
    running = seen.queue.get("running", 0)
    state, reasons = _state(member, standing)
    return AgentRow(
        agent=member.name,
        state=state,
        reasons=reasons,
        model=names[0] if names else None,
        models=names,
        backend=next((each.backend for each in served if each.backend), None),
        device=_device(seen.engines, served),
        running=running if told else None,
        lanes=_sum(each.lanes for each in seen.engines),
        waiting=sum(seen.queue.values()) - running if told else None,
        oldest_s=seen.queue_oldest_s,
        tokens_per_s=_best(each.generate_per_second for each in seen.engines),
        throughput_per_s=member.samples[-1].tokens_per_s if told and member.samples else None,
        heat_celsius=seen.hottest_celsius,
        heat_margin_c=seen.heat_margin_c,
        memory_percent=memory_percent(seen),
        memory_total_bytes=info.machine.memory_bytes if info else seen.memory_total_bytes,
        cpu_percent=seen.cpu_percent,
        power_watts=seen.power_watts,
        restraint=seen.restraint if told else None,
        succeeded=seen.counters.get("succeeded", 0) if told else None,
        version=told.version if told else info.version if info else None,
        board=info.machine.board if info else None,
        pools=info.pools if info else (),
        uptime_s=seen.uptime_s if told else None,
        boot_id=member.presence.boot_id if member.presence else None,
        last_seen_s=None if heard_s is None else max(0.0, round(now_s - heard_s, 1)),
    )


def _state(member: Member, standing: Liveness) -> tuple[str, tuple[str, ...]]:
    """Return state and reasons: what the fleet sees, else the agent's newest word."""
    if standing is Liveness.LOST:
        return "lost", ("nothing was heard of it for three periods",)
    if standing is Liveness.OFFLINE:
        return "offline", member.reasons
    return member.health if member.health in HEALTHS else UNKNOWN, member.reasons


def _device(engines: Sequence[EngineReading], served: Sequence[ServedModel]) -> str | None:
    named = (*(each.device for each in engines), *(each.device for each in served))
    return "+".join(dict.fromkeys(device for device in named if device)) or None


def _sum(values: Iterable[N | None]) -> N | None:
    known = [value for value in values if value is not None]
    return sum(known, start=type(known[0])()) if known else None


def _best(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


@dataclass(frozen=True, slots=True)
class Totals:
    """The fleet in one line: agents by state, the worst first; jobs; tokens per second of all whose are known."""

    states: Mapping[str, int]
    running: int
    waiting: int
    throughput_per_s: float | None

    @classmethod
    def of(cls, rows: Sequence[AgentRow]) -> "Totals":
        """Add up."""
        count = Counter(each.state for each in rows)
        return cls(
            states={state: count[state] for state in STATES if count[state]},
            running=sum(each.running or 0 for each in rows),
            waiting=sum(each.waiting or 0 for each in rows),
            throughput_per_s=_sum(each.throughput_per_s for each in rows),
        )


def _most(value: Callable[[AgentRow], float | None]) -> Callable[[AgentRow], tuple[float, str]]:
    """Sort by what there is most of; what is not known comes last."""

    def key(each: AgentRow) -> tuple[float, str]:
        found = value(each)
        return (float("inf") if found is None else -found), each.agent

    return key


def _word(value: Callable[[AgentRow], str | None]) -> Callable[[AgentRow], tuple[bool, str, str]]:
    return lambda each: (value(each) is None, value(each) or "", each.agent)


class SortOrder(StrEnum):
    """What a list may be sorted by."""

    HEALTH = "health"
    AGENT = "agent"
    MODEL = "model"
    DEVICE = "device"
    QUEUE = "queue"
    TOKENS = "tokens"
    HEAT = "heat"
    MEMORY = "memory"
    VERSION = "version"
    SEEN = "seen"


SORTS: Mapping[SortOrder, Callable[[AgentRow], tuple[Any, ...]]] = {
    SortOrder.HEALTH: lambda each: (STATES.index(each.state), each.agent),
    SortOrder.AGENT: lambda each: (each.agent,),
    SortOrder.MODEL: _word(lambda each: each.model),
    SortOrder.DEVICE: _word(lambda each: each.device),
    SortOrder.QUEUE: _most(lambda each: None if each.waiting is None else each.waiting + (each.running or 0)),
    SortOrder.TOKENS: _most(lambda each: each.tokens_per_s),
    SortOrder.HEAT: _most(lambda each: each.heat_celsius),
    SortOrder.MEMORY: _most(lambda each: each.memory_percent),
    SortOrder.VERSION: _word(lambda each: each.version),
    SortOrder.SEEN: _most(lambda each: each.last_seen_s),
}
"""Within each order agents stand by their names, so that nothing jumps that has not changed."""


def matches(each: AgentRow, words: str) -> bool:
    """Return whether every one of the words stands somewhere in what is known of the agent."""
    texts = (each.agent, each.state, each.device, each.backend, each.version, each.board, *each.models, *each.pools)
    known = " ".join(text for text in (*texts, *each.reasons) if text).casefold()
    return all(word in known for word in words.casefold().split())


def rows(
    roster: Roster, now_s: float, *, sort: SortOrder = SortOrder.HEALTH, words: str = "", reverse: bool = False
) -> list[AgentRow]:
    """Return the agents that match, in this order."""
    judged_s = roster.judged_s(now_s)
    found = [each for member in roster if matches(each := row(member, now_s, judged_s=judged_s), words)]
    return sorted(found, key=SORTS[sort], reverse=reverse)


def unheard(roster: Roster, now_s: float) -> int:
    """Return how many agents are believed to be there that have not reported since we listen."""
    judged_s = roster.judged_s(now_s)
    there = (each for each in roster if each.life.standing(judged_s) is Liveness.THERE)
    return sum(each.telemetry is None for each in there)
