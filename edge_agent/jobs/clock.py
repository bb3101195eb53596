"""The queue's clock: seconds that go on over restarts and that no change of the wall clock moves.

Within one boot it follows CLOCK_BOOTTIME. Over a reboot the wall clock tells how long the machine was off; a wall
clock that went backwards counts as no time at all.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True)
class Anchor:
    """What the clock remembers: its offset to the boot's time, and what it showed beside which wall clock."""

    boot_id: str
    offset_s: float
    queue_s: float
    wall_s: float


def boot_id() -> str:
    """Return the identity of this boot; an empty string where the system tells none."""
    try:
        return BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return ""


def boottime_s() -> float:
    """Return seconds since boot, time asleep included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Clock:
    """Seconds that only grow. Starts near the Unix time of the first start ever; means nothing to others."""

    def __init__(
        self,
        anchor: Anchor | None,
        *,
        boot: Callable[[], str] = boot_id,
        boottime: Callable[[], float] = boottime_s,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._boot = boot()
        self._boottime = boottime
        self._wall = wall
        if anchor is None:
            self._offset_s = wall() - boottime()
        elif self._boot and anchor.boot_id == self._boot:
            self._offset_s = anchor.offset_s
        else:
            away_s = max(0.0, wall() - anchor.wall_s)
            self._offset_s = anchor.queue_s + away_s - boottime()

    def now_s(self) -> float:
        """Return the time on this clock."""
        return self._boottime() + self._offset_s

    def anchor(self) -> Anchor:
        """Return what to remember for the next start."""
        return Anchor(boot_id=self._boot, offset_s=self._offset_s, queue_s=self.now_s(), wall_s=self._wall())
