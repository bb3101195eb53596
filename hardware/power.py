"""What the machine draws, and where from: energy counters, measured rails, batteries, the mains."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from hardware import files
from hardware.hwmon import Chip

WATTS_MAX = 100_000
SUPPLIES_MAX = 32
PACKAGES_MAX = 32
JOULES_PER_WH = 3600

WHOLE = frozenset({"psys", "VDD_IN"})
"""What stands before everything else: RAPL's platform zone, and the input of NVIDIA's Jetson modules."""


@dataclass(frozen=True, slots=True)
class Meter:
    """A counter of energy that only grows, until it passes `range_joules` and begins at 0 again."""

    name: str
    joules: float
    range_joules: float | None


@dataclass(frozen=True, slots=True)
class Rail:
    """Power that flows now, or did on the average of a moment."""

    name: str
    watts: float

    @property
    def whole(self) -> bool:
        """Whether the whole machine draws it; else it is a part's, and parts may contain each other."""
        return self.name.rpartition(": ")[2] in WHOLE


@dataclass(frozen=True, slots=True)
class Battery:
    """A battery that the machine can run on.

    discharging: whether the machine runs on it now.
    watts: what flows into it or out of it.
    """

    name: str
    percent: float | None
    discharging: bool | None
    watts: float | None
    energy_joules: float | None


@dataclass(frozen=True, slots=True)
class Power:
    """What is known of the machine's power.

    mains: whether a charger or mains adapter delivers; None where none is known, as on a box without a battery.
    undervoltage: whether the supply of a Raspberry Pi gave way in the last seconds.
    """

    meters: tuple[Meter, ...]
    rails: tuple[Rail, ...]
    batteries: tuple[Battery, ...]
    mains: bool | None
    undervoltage: bool | None


def drawn(before: Power, after: Power, elapsed_s: float) -> tuple[Rail, ...]:
    """Return the mean power of every meter over the time between two readings, then the rails of the later one."""
    # A meter that came or went shifts the others: then none can be told from its namesake.
    same = [each.name for each in before.meters] == [each.name for each in after.meters]
    pairs = zip(before.meters, after.meters, strict=True) if same and elapsed_s > 0 else ()
    spent = ((late.name, joules(early, late)) for early, late in pairs)
    means = (Rail(name, round(energy / elapsed_s, 3)) for name, energy in spent if energy is not None)
    return (*(rail for rail in means if rail.watts <= WATTS_MAX), *after.rails)


def joules(before: Meter, after: Meter) -> float | None:
    """Return the energy between two readings of a meter; None when it was set back."""
    if after.joules >= before.joules:
        return after.joules - before.joules
    if after.range_joules is None or before.joules > after.range_joules:
        return None
    return after.joules + after.range_joules - before.joules


def read(root: Path, chips: Sequence[Chip]) -> Power:
    """Read the power of the machine whose files lie below `root`."""
    folder = root / "sys/class/power_supply"
    supplies = [folder / name for name in files.names(folder)[:SUPPLIES_MAX]]
    # A mouse's battery runs the mouse.
    kinds = {each: files.line(each / "type") for each in supplies if files.line(each / "scope") != "Device"}
    batteries = tuple(_battery(each) for each, kind in kinds.items() if kind in {"Battery", "UPS"})
    chargers = [each for each, kind in kinds.items() if kind in {"Mains", "USB", "Wireless"}]
    online = [known for each in chargers if (known := files.amount(each / "online", high=2)) is not None]
    return Power(
        meters=(*_rapl(root / "sys/class/powercap"), *(meter for chip in chips for meter in _meters(chip))),
        rails=tuple(rail for chip in chips for rail in _rails(chip)),
        batteries=batteries,
        # A box without a battery may have idle USB chargers, and runs on something nobody tells of.
        mains=any(online) if any(online) or (online and batteries) else None,
        undervoltage=_undervoltage(chips),
    )


def _rapl(folder: Path) -> Iterator[Meter]:
    """Read the processors' packages, the platform, and the memory: its zone stands in a package but is no part of it.

    Kernels since 5.10 let only root read them (CVE-2020-8694). Zones, units and names:
    https://docs.kernel.org/power/powercap/powercap.html
    """
    for package in files.numbered(folder, "intel-rapl:")[:PACKAGES_MAX]:
        name = files.line(package / "name")
        dram = (each for each in files.numbered(package, f"{package.name}:") if files.line(each / "name") == "dram")
        for zone, label in ((package, name), *((each, f"{name} dram") for each in dram)):
            energy = files.amount(zone / "energy_uj", per=10**6)
            if name and label and energy is not None:
                yield Meter(label, energy, files.amount(zone / "max_energy_range_uj", per=10**6))


def _meters(chip: Chip) -> Iterator[Meter]:
    for number in chip.channels("energy"):
        if (energy := chip.amount(f"energy{number}", "input", per=10**6)) is not None:
            yield Meter(chip.label(f"energy{number}"), energy, None)


def _rails(chip: Chip) -> Iterator[Rail]:
    for number in chip.channels("power"):
        if (watts := chip.amount(f"power{number}", "average", "input", per=10**6, high=WATTS_MAX)) is not None:
            yield Rail(chip.label(f"power{number}"), watts)
    # An INA3221 measures volts and amperes only: https://docs.kernel.org/hwmon/ina3221.html
    for channel in (1, 2, 3) if chip.name == "ina3221" else ():
        name = chip.label(f"in{channel}")
        volts = chip.amount(f"in{channel}", "input", per=1000, high=1000)
        amperes = chip.amount(f"curr{channel}", "input", per=1000, high=1000)
        if volts is not None and amperes is not None and not name.endswith(": NC"):  # not connected
            yield Rail(name, round(volts * amperes, 6))


def _battery(folder: Path) -> Battery:
    """Read a battery in µW, µA, µV, µWh, µAh; https://docs.kernel.org/power/power_supply_class.html."""
    status = files.line(folder / "status")
    volts = files.amount(folder / "voltage_now", per=10**6, high=10_000)
    known = status in {"Charging", "Discharging", "Not charging", "Full"}
    watt_hours = _of_battery(folder, "energy_now", "charge_now", volts)
    return Battery(
        name=folder.name,
        percent=files.amount(folder / "capacity", high=100),
        discharging=status == "Discharging" if known else None,
        watts=_of_battery(folder, "power_now", "current_now", volts),
        energy_joules=None if watt_hours is None else round(watt_hours * JOULES_PER_WH, 3),
    )


def _of_battery(folder: Path, direct: str, times_volts: str, volts: float | None) -> float | None:
    """Read an amount; batteries that only know amperes tell it by their voltage, some negative while they discharge."""
    amount = files.amount(folder / direct, per=10**6, low=-WATTS_MAX, high=WATTS_MAX)
    if amount is None and volts is not None:
        current = files.amount(folder / times_volts, per=10**6, low=-WATTS_MAX, high=WATTS_MAX)
        amount = None if current is None else current * volts
    return None if amount is None else round(abs(amount), 6)


def _undervoltage(chips: Sequence[Chip]) -> bool | None:
    """Read what the Raspberry Pi's firmware says, every two seconds (drivers/hwmon/raspberrypi-hwmon.c)."""
    alarms = (chip.amount("in0", "lcrit_alarm", high=1) for chip in chips if chip.name == "rpi_volt")
    return next((alarm == 1 for alarm in alarms if alarm is not None), None)
