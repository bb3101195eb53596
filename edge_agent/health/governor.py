"""How far the agent holds back so that its machine stays well: pure, from readings to steps with their reasons.

Each cause has a level of its own. A cause that strains the machine raises its level one step at a time while that
lasts, at once where waiting would be too late; one that is calm for a while lowers it again, step by step. The agent
holds back as far as the highest level says.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum, StrEnum

from edge_agent.health.snapshot import memory_stall_percent, on_battery
from hardware.readings import Readings

CALM_STEPS = 3
"""A cause must be calm for so many times `step_s`, without a break, before its level is lowered by one."""
CALM_HEAT = 2.0
"""Calm is this many times the margin that strains: what cools down to the edge would heat up from it at once."""
CRITICAL_MARGIN_C = 3.0
"""So near to where the machine is switched off nothing is left to be tried step by step."""
FREE_SHARE_MIN, FREE_SHARE_CALM = 0.04, 0.08
"""Of the machine's memory: below it the kernel reclaims without pause; twice as much is calm."""
FREE_SHARE_LAST = 0.02
"""Below it the kernel's next step is to kill somebody."""
CALM_STALL = 0.25
"""Calm is this share of the memory stall that strains."""
BATTERY_LAST = 0.5
"""At this share of `battery_percent` the rest of the charge is left to others."""
DISK_LOW, DISK_CALM = 4, 8
"""Times the free bytes below which jobs are refused anyway."""


class RestraintLevel(IntEnum):
    """How far the agent holds back; each level includes those before it."""

    FREE = 0
    FEWER_LANES = 1
    """Half of the lanes."""
    NO_POOLS = 2
    """No jobs that others could do as well."""
    PAUSES = 3
    """One lane, and a rest after every step of an engine."""
    UNLOADED = 4
    """No engine; jobs wait."""

    @property
    def words(self) -> str:
        """What is done, for people."""
        return ("nothing held back", "fewer lanes", "out of the pools", "pauses between steps", "models unloaded")[self]


class Cause(StrEnum):
    """What strains the machine."""

    HEAT = "heat"
    MEMORY = "memory"
    POWER = "power"
    DISK = "disk"


@dataclass(frozen=True, slots=True)
class Policy:
    """When the agent holds back.

    heat_margin_c: how near to its limit a sensor may come, in K.
    memory_stall_percent: the share of time that may be spent waiting for memory.
    battery_percent: the charge at which a machine on its battery works in pauses only.
    disk_free_bytes: the free bytes below which jobs are refused.
    step_s: how long a step may take to show effect before the next one.
    """

    heat_margin_c: float = 5.0
    memory_stall_percent: float = 10.0
    battery_percent: float = 20.0
    disk_free_bytes: int = 0
    step_s: float = 10.0


@dataclass(frozen=True, slots=True)
class MachineView:
    """What the machine shows. `reload_bytes` are what unloaded engines would take again."""

    readings: Readings
    memory_total_bytes: int | None
    disk_free_bytes: int | None = None
    reload_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Strain:
    """What one cause asks for now: up to `most`, at once or step by step; `calm`: nothing of it is left."""

    cause: Cause
    most: RestraintLevel = RestraintLevel.FREE
    at_once: bool = False
    calm: bool = False
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Held:
    """How far one cause has the agent hold back, since when, and why; `calm_s`: since when it is calm, if it is."""

    level: RestraintLevel = RestraintLevel.FREE
    since_s: float = float("-inf")
    reason: str = ""
    calm_s: float | None = None


@dataclass(frozen=True, slots=True)
class RestraintStep:
    """A change of how far one cause has the agent hold back."""

    cause: Cause
    before: RestraintLevel
    after: RestraintLevel
    reason: str


State = Mapping[Cause, Held]


def govern(state: State, view: MachineView, *, policy: Policy, now_s: float) -> tuple[State, tuple[RestraintStep, ...]]:
    """Return what follows from a view: the next state, and the steps to it."""
    after, steps = dict(state), []
    for strain in strains(view, policy):
        held = after[strain.cause] = _calmed(state.get(strain.cause, Held()), strain, now_s)
        level = _next(held, strain, step_s=policy.step_s, now_s=now_s)
        if level is held.level:
            continue
        worse = level > held.level
        steps.append(RestraintStep(strain.cause, held.level, level, strain.reason if worse else "calm again"))
        after[strain.cause] = Held(level, now_s, strain.reason if worse else held.reason, None if worse else now_s)
    return after, tuple(steps)


def level_of(state: State) -> RestraintLevel:
    """Return how far the agent holds back: as far as the worst cause says."""
    return max((held.level for held in state.values()), default=RestraintLevel.FREE)


def reasons(state: State) -> tuple[str, ...]:
    """Return for each cause that strains what it has the agent do and why."""
    return tuple(
        f"{held.level.words}: {held.reason}" for held in state.values() if held.level is not RestraintLevel.FREE
    )


def strains(view: MachineView, policy: Policy) -> Sequence[Strain]:
    """Return what each cause asks for. What cannot be read asks for nothing and is calm."""
    return (_heat(view, policy), _memory(view, policy), _power(view, policy), _disk(view, policy))


def _calmed(held: Held, strain: Strain, now_s: float) -> Held:
    """Remember since when a cause is calm."""
    if not strain.calm:
        return replace(held, calm_s=None)
    return held if held.calm_s is not None else replace(held, calm_s=now_s)


def _next(held: Held, strain: Strain, *, step_s: float, now_s: float) -> RestraintLevel:
    if strain.most > held.level:
        if strain.at_once:
            return strain.most
        return RestraintLevel(held.level + 1) if now_s - held.since_s >= step_s else held.level
    calm = held.calm_s is not None and now_s - held.calm_s >= CALM_STEPS * step_s
    return RestraintLevel(held.level - 1) if calm and held.level > RestraintLevel.FREE else held.level


def _heat(view: MachineView, policy: Policy) -> Strain:
    limited = [(each.margin_c, each) for each in view.readings.heat.sensors if each.margin_c is not None]
    if not limited:
        return Strain(Cause.HEAT, calm=True)
    margin_c, near = min(limited, key=lambda pair: pair[0])
    reason = f"{near.name} is at {near.celsius:.0f} °C, its limit is {near.celsius + margin_c:.0f} °C"
    for _, each in limited:
        if each.critical_c is not None and each.critical_c - each.celsius <= CRITICAL_MARGIN_C:
            reason = f"{each.name} is at {each.celsius:.0f} °C, the machine ends at {each.critical_c:.0f} °C"
            return Strain(Cause.HEAT, RestraintLevel.UNLOADED, at_once=True, reason=reason)
    if margin_c <= policy.heat_margin_c:
        return Strain(Cause.HEAT, RestraintLevel.PAUSES, reason=reason)
    return Strain(Cause.HEAT, calm=margin_c >= CALM_HEAT * policy.heat_margin_c)


def _memory(view: MachineView, policy: Policy) -> Strain:
    stall = memory_stall_percent(view.readings) or 0.0
    available, total = view.readings.usage.available_bytes, view.memory_total_bytes
    free = available / total if available is not None and total else 1.0
    if free <= FREE_SHARE_LAST:
        reason = f"{100 * free:.0f} % of the memory is free"
        return Strain(Cause.MEMORY, RestraintLevel.UNLOADED, at_once=True, reason=reason)
    if stall >= policy.memory_stall_percent:
        return Strain(
            Cause.MEMORY, RestraintLevel.UNLOADED, reason=f"{stall:.0f} % of the time is spent waiting for memory"
        )
    if free <= FREE_SHARE_MIN:
        return Strain(Cause.MEMORY, RestraintLevel.UNLOADED, reason=f"{100 * free:.0f} % of the memory is free")
    left = free - view.reload_bytes / total if total else free
    return Strain(Cause.MEMORY, calm=left >= FREE_SHARE_CALM and stall <= CALM_STALL * policy.memory_stall_percent)


def _power(view: MachineView, policy: Policy) -> Strain:
    if view.readings.power.undervoltage:
        return Strain(Cause.POWER, RestraintLevel.PAUSES, reason="the power supply gives way")
    if not on_battery(view.readings):
        return Strain(Cause.POWER, calm=True)
    percent = min((each.percent for each in view.readings.power.batteries if each.percent is not None), default=None)
    most, reason = RestraintLevel.NO_POOLS, "the machine runs on its battery"
    if percent is not None and percent <= policy.battery_percent:
        most = RestraintLevel.UNLOADED if percent <= BATTERY_LAST * policy.battery_percent else RestraintLevel.PAUSES
        reason = f"{reason}, {percent:.0f} % is left"
    return Strain(Cause.POWER, most, at_once=True, reason=reason)


def _disk(view: MachineView, policy: Policy) -> Strain:
    free_bytes = view.disk_free_bytes
    if free_bytes is None or not policy.disk_free_bytes:
        return Strain(Cause.DISK, calm=True)
    if free_bytes < DISK_LOW * policy.disk_free_bytes:
        return Strain(Cause.DISK, RestraintLevel.NO_POOLS, at_once=True, reason="the disk is nearly full")
    return Strain(Cause.DISK, calm=free_bytes >= DISK_CALM * policy.disk_free_bytes)
