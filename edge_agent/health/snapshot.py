"""Readings of the machine, made into what is told of it. What cannot be read is None, never 0."""

import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil

from edge_agent.protocol.payloads import AcceleratorReading, MachineReading
from hardware import usage
from hardware.gauges import Gauges
from hardware.heat import Sensor, slowed
from hardware.machine import Memory
from hardware.power import Rail, drawn
from hardware.readings import Readings, readings
from hardware.usage import Activity

NOW_S = 1.0
"""A reading that is younger is told again to who asks: a processor's load of a shorter time says little."""


class Snapshots:
    """Takes in one reading after the other: what counters say needs two.

    `root` is where the machine's proc and sys are; `generated` returns the tokens generated so far; `gpus` tells of
    NVIDIA's, which have no files.
    """

    def __init__(
        self,
        root: Path,
        *,
        memory: Memory,
        state_dir: Path,
        generated: Callable[[], int],
        gpus: Gauges | None = None,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._root = root
        self._memory = memory
        self._state_dir = state_dir
        self._generated = generated
        self._gpus = gpus
        self._now_s = now_s
        self._process = psutil.Process()
        self._before = self.look(), generated()
        self._told = float("-inf"), MachineReading()

    def look(self) -> Readings:
        """Read what the hardware shows now."""
        seen = readings(self._root, clock=self._now_s)
        if self._gpus is None:
            return seen
        accelerators = (*seen.usage.accelerators, *self._gpus.read())
        return replace(seen, usage=replace(seen.usage, accelerators=accelerators))

    def close(self) -> None:
        """Read no more."""
        if self._gpus is not None:
            self._gpus.close()

    def take(self, after: Readings) -> MachineReading:
        """Return how the machine is by this reading and the one that was taken in before it."""
        before, self._before = self._before, (after, self._generated())
        return self._tell(before, *self._before)

    def now(self) -> MachineReading:
        """Return how the machine is, from any thread; `take` does not notice. At most NOW_S old: rates need a while."""
        told_s, told = self._told
        if self._now_s() - told_s < NOW_S:
            return told
        return self._tell(self._before, self.look(), self._generated())

    def _tell(self, earlier: tuple[Readings, int], after: Readings, tokens: int) -> MachineReading:
        before, tokens_before = earlier
        seen = reading(before, after, memory=self._memory, tokens=tokens - tokens_before)
        told = seen.model_copy(
            update={
                "agent_rss_bytes": told_by(lambda: self._process.memory_info().rss),
                "disk_free_bytes": told_by(lambda: free_bytes(self._state_dir)),
            }
        )
        self._told = after.at_s, told
        return told


def reading(before: Readings, after: Readings, *, memory: Memory, tokens: int = 0) -> MachineReading:
    """Return what two readings say (pure); `tokens` were generated between them."""
    elapsed_s = after.at_s - before.at_s
    power, used = after.power, after.usage
    busy = usage.busy_share(before.usage.cpu, used.cpu)
    nearest = hottest(after.heat.sensors)
    whole = _whole(before, after)
    spent_joules = whole.watts * elapsed_s if whole else None
    battery = next((each for each in power.batteries if each.percent is not None), None)
    return MachineReading(
        cpu_percent=None if busy is None else round(100 * busy, 1),
        cpu_mhz=used.cpu_clock and _rounded(used.cpu_clock.now_mhz),
        load_1m=after.pressure.load_1m,
        memory_total_bytes=memory.total_bytes,
        memory_available_bytes=used.available_bytes,
        memory_stall_percent=memory_stall_percent(after),
        own_memory_bytes=used.own_memory_bytes,
        own_memory_limit_bytes=memory.limit_bytes,
        swap_used_bytes=used.swap_used_bytes,
        hottest=nearest.name if nearest else None,
        hottest_celsius=nearest and round(nearest.celsius, 1),
        heat_margin_c=nearest and _rounded(nearest.margin_c),
        slowed=slowed(before.heat, after.heat) if after.heat.sensors or after.heat.cooling else None,
        power_watts=whole and round(whole.watts, 2),
        power_of=whole and whole.name,
        joules_per_token=round(spent_joules / tokens, 2) if spent_joules is not None and tokens > 0 else None,
        battery_percent=battery.percent if battery else None,
        on_battery=on_battery(after),
        undervoltage=power.undervoltage,
        network_received_bytes=used.network and used.network.received_bytes,
        network_sent_bytes=used.network and used.network.sent_bytes,
        accelerators=_accelerators(before, after, elapsed_s),
    )


def hottest(sensors: tuple[Sensor, ...]) -> Sensor | None:
    """Return the sensor that is nearest to its limit; where none has one, the hottest."""
    limited = [each for each in sensors if each.margin_c is not None]
    if limited:
        return min(limited, key=lambda each: each.margin_c or 0.0)
    return max(sensors, key=lambda each: each.celsius, default=None)


def memory_stall_percent(seen: Readings) -> float | None:
    """Return the share of time something waited for memory, on the machine or in our group, in percent."""
    stalls = [each.some_percent for each in (seen.pressure.memory, seen.pressure.own_memory) if each is not None]
    return max(stalls, default=None)


def on_battery(seen: Readings) -> bool | None:
    """Return whether the machine runs on a battery; None where none is known."""
    if not seen.power.batteries:
        return None
    if seen.power.mains is not None:
        return not seen.power.mains
    known = [each.discharging for each in seen.power.batteries if each.discharging is not None]
    return any(known) if known else None


def told_by(look: Callable[[], int]) -> int | None:
    """Return what the system says; None when it says nothing now, as of a disk that is gone."""
    try:
        return look()
    except OSError:
        return None


def free_bytes(folder: Path) -> int:
    """Return the bytes an unprivileged process may still write below a folder. Raises OSError."""
    stat = os.statvfs(folder)
    return stat.f_bavail * stat.f_frsize


def _whole(before: Readings, after: Readings) -> Rail | None:
    """Return what the machine draws; of a part of it where only that is known: its processors and their memory."""
    rails = drawn(before.power, after.power, after.at_s - before.at_s)
    discharging = [each.watts for each in after.power.batteries if each.discharging and each.watts is not None]
    processors = rails[: len(rails) - len(after.power.rails)]  # those of counters come first
    if whole := next((each for each in rails if each.whole), None):
        return Rail("machine", whole.watts)
    if discharging:
        return Rail("battery", sum(discharging))
    return Rail("processors", sum(each.watts for each in processors)) if processors else None


def _accelerators(before: Readings, after: Readings, elapsed_s: float) -> tuple[AcceleratorReading, ...] | None:
    earlier = {each.name: each for each in before.usage.accelerators}
    found = tuple(
        AcceleratorReading(
            name=each.name,
            busy_percent=_busy_percent(earlier.get(each.name), each, elapsed_s),
            clock_mhz=each.clock and _rounded(each.clock.now_mhz),
            memory_used_bytes=each.memory_used_bytes,
            celsius=_rounded(each.celsius),
            power_watts=_rounded(each.watts),
        )
        for each in after.usage.accelerators
    )
    return found or None


def _busy_percent(before: Activity | None, after: Activity, elapsed_s: float) -> float | None:
    if after.busy_percent is not None or before is None:
        return after.busy_percent
    share = usage.worked_share(before, after, elapsed_s)
    return None if share is None else round(100 * share, 1)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 1)
