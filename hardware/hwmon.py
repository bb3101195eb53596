"""The chips of /sys/class/hwmon: what measures temperature, power and energy.

Files and units: https://www.kernel.org/doc/html/latest/hwmon/sysfs-interface.html
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from hardware import files

CHIPS_MAX = 256
"""A Snapdragon X has more than fifty only to show its thermal zones."""

CHANNELS_MAX = 32
"""Channels of a kind that are read; `coretemp` of a large server has one for each core, the package's comes first."""

GRAPHICS = frozenset({"amdgpu", "i915", "nouveau", "radeon", "xe"})


@dataclass(frozen=True)
class Chip:
    """One chip and its folder."""

    name: str
    folder: Path

    @cached_property
    def names(self) -> list[str]:
        """The names of its files."""
        return files.names(self.folder)

    def channels(self, kind: str) -> list[int]:
        """Return the numbers of the channels that measure `temp`, `power`, …, at most `CHANNELS_MAX`."""
        found = {int(match[1]) for name in self.names if (match := re.match(rf"{kind}(\d{{1,3}})_", name, re.ASCII))}
        return sorted(found)[:CHANNELS_MAX]

    def amount(self, channel: str, *endings: str, per: int = 1, low: float = 0, high: float = 10**18) -> float | None:
        """Return the first believable number of a channel's files, as `files.amount` does."""
        present = (self.folder / name for ending in endings if (name := f"{channel}_{ending}") in self.names)
        found = (files.amount(file, per=per, low=low, high=high) for file in present)
        return next((amount for amount in found if amount is not None), None)

    def label(self, channel: str) -> str:
        """Return what a channel measures, with the chip's name before it: `coretemp: Package id 0`."""
        return f"{self.name}: {files.line(self.folder / f'{channel}_label') or channel}"


def chips(root: Path) -> Iterator[Chip]:
    """Yield the chips by number.

    Left out is what the kernel shows elsewhere, too: thermal zones and power supplies; and a sleeping graphics card,
    which a look would wake.
    """
    supplies = files.names(root / "sys/class/power_supply")
    for folder in files.numbered(root / "sys/class/hwmon", "hwmon")[:CHIPS_MAX]:
        device = files.target(folder / "device") or ""
        if device.startswith("thermal_zone") or device in supplies:
            continue
        name = files.line(folder / "name")
        if name and (name not in GRAPHICS or awake(folder / "device")):
            yield Chip(name, folder)


def awake(device: Path) -> bool:
    """Tell whether a device is not known to sleep."""
    return files.text(device / "power/runtime_status") not in {"suspended", "suspending"}
