"""The queue's clock: seconds that go on over restarts and that no change of the wall clock moves.

Within one boot it follows CLOCK_BOOTTIME. Over a reboot the wall clock tells how long the machine was off, if it can be
believed. Machines without a clock of their own begin in 1970 or years ahead, and are set right later: a wall clock that
is not believed adds nothing to anybody's age. Else jobs that wait would expire, and ended ones be forgotten and run
again.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edge_agent import RELEASED

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
RELEASED_S = RELEASED.timestamp()
DAY_S = 86_400.0
LIFE_MAX_S = 30 * 365 * DAY_S
"""A wall clock so long after this version was made is wrong too: clocks that lost their battery show 2069 or 2099."""
OFF_MAX_S = 183 * DAY_S
"""A wall clock that is further ahead is wrong: a machine is off for a winter, but not for longer with jobs in it."""
SLACK_S = 60.0
"""A wall clock that is behind by less was only corrected."""
DOUBTED_MAX_S = DAY_S
"""A wall clock that went on for so long, not set right by anybody, is believed from then on: or one wrong reading that
was believed would be held against it for ever. What was doubted until then is not counted."""


@dataclass(frozen=True, slots=True)
class Anchor:
    """What the clock remembers: its offset to the boot's time, and what it showed beside which believed wall clock.

    `wall_s` is 0 while no wall clock was believed.
    """

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


def doubt(wall_s: float, *, expected_s: float | None) -> str:
    """Return why a wall clock cannot be right; empty when it can (pure).

    `expected_s` is what it would show had it gone on since it was last believed, and the machine been off for no time;
    None when it never was.
    """
    shows = f"the clock shows {time.strftime('%Y-%m-%d', time.gmtime(wall_s))}"
    if not RELEASED_S <= wall_s < RELEASED_S + LIFE_MAX_S:
        return f"{shows}, and this version was made on {RELEASED:%Y-%m-%d}"
    if expected_s is not None and wall_s < expected_s - SLACK_S:
        return f"{shows}, and showed a later time before"
    if expected_s is not None and wall_s > expected_s + OFF_MAX_S:
        return f"{shows}, {(wall_s - expected_s) / DAY_S:.0f} days later than when it was last believed"
    return ""


class Clock:
    """Seconds that only grow. Starts near the Unix time of the first start ever; means nothing to others.

    `doubt` says why the wall clock is not believed, as of the last anchor; it is empty when it is.
    """

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
        self._ahead_s: float | None = None
        """How far the believed wall clock is ahead of this one; None while none was believed."""
        self._doubted_s = 0.0
        self.doubt = ""
        if anchor is None:
            self._offset_s = wall() - boottime()
            self._look(rebooted=False)
            return
        if not doubt(anchor.wall_s, expected_s=None):
            self._ahead_s = anchor.wall_s - anchor.queue_s
        goes_on = bool(self._boot) and anchor.boot_id == self._boot
        stood_s = anchor.queue_s - boottime()
        self._offset_s = max(anchor.offset_s, stood_s) if goes_on else stood_s
        self._look(rebooted=not goes_on)

    def now_s(self) -> float:
        """Return the time on this clock."""
        return self._boottime() + self._offset_s

    def anchor(self) -> Anchor:
        """Return what to remember for the next start, after a look at the wall clock."""
        self._look(rebooted=False)
        now_s = self.now_s()
        wall_s = 0.0 if self._ahead_s is None else now_s + self._ahead_s
        return Anchor(boot_id=self._boot, offset_s=self._offset_s, queue_s=now_s, wall_s=wall_s)

    def _look(self, *, rebooted: bool) -> None:
        """Judge the wall clock: after a reboot its lead is how long the machine was off, else somebody has set it."""
        wall_s, now_s = self._wall(), self.now_s()
        expected_s = None if self._ahead_s is None else now_s + self._ahead_s
        why = doubt(wall_s, expected_s=expected_s)
        if why and not self.doubt:
            self._doubted_s = now_s
        if why and not doubt(wall_s, expected_s=None) and now_s - self._doubted_s >= DOUBTED_MAX_S:
            why, expected_s = "", None
        self.doubt = why
        if why:
            return
        if expected_s is None:
            self._ahead_s = wall_s - now_s
        elif rebooted:
            self._offset_s += max(0.0, wall_s - expected_s)
        else:
            self._ahead_s = max(expected_s, wall_s) - now_s
