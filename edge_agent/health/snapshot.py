"""Readings of the machine and of ourselves, and what follows from them. What cannot be read is None, never 0."""

import os
from dataclasses import dataclass
from pathlib import Path

import psutil

from edge_agent.engine.supervisor import EngineStatus, Phase
from edge_agent.mqtt.presence import Condition


@dataclass(frozen=True, slots=True)
class Readings:
    """The machine and this process, in percent and bytes."""

    cpu_percent: float | None
    load_1m: float | None
    memory_total_bytes: int | None
    memory_available_bytes: int | None
    agent_rss_bytes: int | None
    disk_free_bytes: int | None


def read(state_dir: Path) -> Readings:
    """Take the readings; `cpu_percent` is the mean since the last call."""
    memory = psutil.virtual_memory()
    return Readings(
        cpu_percent=psutil.cpu_percent(interval=None),
        load_1m=round(os.getloadavg()[0], 2),
        memory_total_bytes=memory.total,
        memory_available_bytes=memory.available,
        agent_rss_bytes=psutil.Process().memory_info().rss,
        disk_free_bytes=free_bytes(state_dir),
    )


def free_bytes(folder: Path) -> int:
    """Return the bytes an unprivileged process may still write below a folder."""
    stat = os.statvfs(folder)
    return stat.f_bavail * stat.f_frsize


def condition(
    *,
    engines: list[EngineStatus],
    draining: bool,
    disk_full: bool,
    duplicate: bool,
    deaf: tuple[str, ...] = (),
) -> Condition:
    """Return how the agent is (pure): the worst that is true, with every reason."""
    reasons = [f"{engine.model}: {engine.reason}" for engine in engines if engine.phase in (Phase.DOWN, Phase.FAILED)]
    beginning = (Phase.FETCHING, Phase.STARTING)
    reasons += [f"{engine.model}: {engine.reason}" for engine in engines if engine.phase in beginning]
    if not engines:
        reasons.append("no model is served")
    if disk_full:
        reasons.append("the disk is full")
    if duplicate:
        reasons.append("another agent has this id")
    reasons += [f"the broker refuses {topic}" for topic in deaf]
    if draining:
        return Condition("draining", tuple(reasons))
    if disk_full or not engines or all(engine.phase is Phase.FAILED for engine in engines):
        return Condition("unhealthy", tuple(reasons))
    if any(engine.phase in beginning and engine.starts <= 1 for engine in engines):
        return Condition("starting", tuple(reasons))
    return Condition("degraded" if reasons else "ready", tuple(reasons))
