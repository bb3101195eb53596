"""How hot the machine is, and whether that slows it down."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from hardware import files
from hardware.hwmon import Chip

COLDEST_C, HOTTEST_C = -60, 250
"""Outside of these is what a sensor says when it is off (-274) or when a limit is not set (65261.85)."""

LIMIT_MIN_C = 40
"""A trip that nobody set is at 0, and there are mainboards that call 20.8 °C critical
(https://github.com/intel/thermal_daemon/issues/550)."""

RASPBERRY_PI_PASSIVE_C = 80.0
"""Where the firmware begins to slow a Raspberry Pi down; the kernel knows nothing of it
(https://www.raspberrypi.com/documentation/computers/config_txt.html#monitoring-core-temperature)."""

ZONES_MAX = 64
TRIPS_MAX = 12
COOLING_MAX = 64
CPUS_MAX = 64
"""Of more processors every second, third, … tells."""

PROCESSOR_COOLING = ("Processor", "cpufreq", "thermal-cpufreq", "cpuidle", "thermal-idle", "intel_powerclamp")
"""How the names of cooling devices begin that cool by slowing the processors (drivers/acpi/processor_thermal.c,
drivers/thermal/{cpufreq,cpuidle}_cooling.c and drivers/thermal/intel/intel_powerclamp.c); the others are fans and such.
"""


@dataclass(frozen=True, slots=True)
class Sensor:
    """A temperature and the limits that the kernel or the maker set for it, in °C.

    passive_c: where the kernel begins to slow things down.
    hot_c: where it is too hot (a zone's `hot` trip, a chip's `max`).
    critical_c: where the machine is switched off, or damaged.
    """

    name: str
    celsius: float
    passive_c: float | None = None
    hot_c: float | None = None
    critical_c: float | None = None

    @property
    def margin_c(self) -> float | None:
        """How much hotter it may become before the first limit is reached, in K; negative above it."""
        limits = [limit for limit in (self.passive_c, self.hot_c, self.critical_c) if limit is not None]
        return round(min(limits) - self.celsius, 3) if limits else None


@dataclass(frozen=True, slots=True)
class Cooling:
    """A cooling device at work: how far, in steps; `state_max` is all it can do."""

    name: str
    state: int
    state_max: int | None

    @property
    def slows_processor(self) -> bool:
        """Whether it cools by slowing the processors, unlike a fan."""
        return self.name.startswith(PROCESSOR_COOLING)


@dataclass(frozen=True, slots=True)
class Heat:
    """What is known of the machine's heat.

    cooling: the cooling devices at work now.
    throttle_events: grows when an Intel processor is slowed for heat, and says no more than that; None elsewhere.
    """

    sensors: tuple[Sensor, ...]
    cooling: tuple[Cooling, ...]
    throttle_events: int | None


def slowed(before: Heat, after: Heat) -> tuple[str, ...]:
    """Return every sign that heat slows the processors, or did since `before`; none is no proof that it does not.

    The firmware of some machines, a Raspberry Pi's among them, slows down and tells nobody.
    """
    reasons = [f"cooled by {each.name}" for each in after.cooling if each.slows_processor]
    if before.throttle_events is not None and (after.throttle_events or 0) > before.throttle_events:
        reasons.append("the processor reports thermal throttling")
    return tuple(reasons)


def read(root: Path, chips: Sequence[Chip]) -> Heat:
    """Read zones, chips and cooling devices of the machine whose files lie below `root`."""
    return Heat(
        sensors=(*_zones(root), *(sensor for chip in chips for sensor in _sensors(chip))),
        cooling=tuple(_cooling(root / "sys/class/thermal")),
        throttle_events=_throttle_events(root / "sys/devices/system/cpu"),
    )


def _zones(root: Path) -> Iterator[Sensor]:
    board = next(iter(files.strings(root / "proc/device-tree/compatible")), "")
    firmware = [("passive", RASPBERRY_PI_PASSIVE_C)] if board.startswith("raspberrypi,") else []
    for zone in files.numbered(root / "sys/class/thermal", "thermal_zone")[:ZONES_MAX]:
        celsius = files.amount(zone / "temp", per=1000, low=COLDEST_C, high=HOTTEST_C)
        if celsius is not None and (name := files.line(zone / "type")):
            trips = [*_trips(zone), *(firmware if name == "cpu-thermal" else ())]
            yield Sensor(name, celsius, _first("passive", trips), _first("hot", trips), _first("critical", trips))


def _trips(zone: Path) -> Iterator[tuple[str, float]]:
    for index in range(TRIPS_MAX):
        kind = files.line(zone / f"trip_point_{index}_type")
        if kind is None:
            return
        limit = files.amount(zone / f"trip_point_{index}_temp", per=1000, low=LIMIT_MIN_C, high=HOTTEST_C)
        if limit is not None:
            yield kind, limit


def _first(kind: str, trips: Sequence[tuple[str, float]]) -> float | None:
    return min((limit for each, limit in trips if each == kind), default=None)


def _sensors(chip: Chip) -> Iterator[Sensor]:
    for number in chip.channels("temp"):
        celsius = chip.amount(f"temp{number}", "input", per=1000, low=COLDEST_C, high=HOTTEST_C)
        if celsius is not None:
            hot, critical = (
                chip.amount(f"temp{number}", kind, per=1000, low=LIMIT_MIN_C, high=HOTTEST_C)
                for kind in ("max", "crit")
            )
            yield Sensor(chip.label(f"temp{number}"), celsius, hot_c=hot, critical_c=critical)


def _cooling(folder: Path) -> Iterator[Cooling]:
    for device in files.numbered(folder, "cooling_device")[:COOLING_MAX]:
        state = files.amount(device / "cur_state", low=1)
        if state is not None and (name := files.line(device / "type")):
            most = files.amount(device / "max_state", low=state)
            yield Cooling(name, int(state), None if most is None else int(most))


def _throttle_events(folder: Path) -> int | None:
    """Add up arch/x86/kernel/cpu/mce/therm_throt.c's counters; a package's is counted by each of its processors."""
    cpus = files.numbered(folder, "cpu")
    counts = [
        files.amount(cpu / f"thermal_throttle/{part}_throttle_count")
        for cpu in cpus[:: 1 + len(cpus) // CPUS_MAX]
        for part in ("core", "package")
    ]
    known = [int(count) for count in counts if count is not None]
    return sum(known) if known else None
