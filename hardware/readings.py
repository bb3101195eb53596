"""What the machine shows at this moment: heat, power, pressure, use. What cannot be read is None or absent, never 0.

Of energy, processor time and traffic a reading has counters: `power.drawn`, `usage.busy_share` and their like make
rates of two readings.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hardware import heat, hwmon, power, pressure, usage
from hardware.heat import Heat
from hardware.power import Power
from hardware.pressure import Pressure
from hardware.usage import Usage


@dataclass(frozen=True, slots=True)
class Readings:
    """One reading; `at_s` is the clock's time when it began, to tell how long two are apart."""

    at_s: float
    heat: Heat
    power: Power
    pressure: Pressure
    usage: Usage


def readings(root: Path = Path("/"), *, clock: Callable[[], float] = time.monotonic) -> Readings:
    """Read what the files below `root` (its proc and sys) show; nothing raises, whatever stands in them."""
    at_s = clock()
    chips = tuple(hwmon.chips(root))
    return Readings(
        at_s=at_s,
        heat=heat.read(root, chips),
        power=power.read(root, chips),
        pressure=pressure.read(root),
        usage=usage.read(root),
    )
