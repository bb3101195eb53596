"""How busy the machine is: its processors, memory, network and accelerators."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hardware import cgroup, files
from hardware.heat import COLDEST_C, HOTTEST_C
from hardware.hwmon import Chip, awake

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
KIB_BYTES = 1024
CLOCK_MAX_MHZ = 100_000
DEVICES_MAX = 64
POLICIES_MAX = 64
"""Groups of processors whose clock is read, of more every second, third, …; x86 has one for each processor."""


@dataclass(frozen=True, slots=True)
class Clock:
    """A clock: how fast now, how fast it may be now, how fast it could be, in MHz.

    A processor's is the mean of all of them; heat and the settings of the machine lower what it may be.
    """

    now_mhz: float | None
    allowed_mhz: float | None
    max_mhz: float | None


@dataclass(frozen=True, slots=True)
class CpuTime:
    """Processor time since the machine started, all processors added, in seconds; waiting for disks is not busy."""

    busy_s: float
    total_s: float


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes through all network interfaces but the loopback since they came up; bridges count theirs again."""

    received_bytes: int
    sent_bytes: int


@dataclass(frozen=True, slots=True)
class Activity:
    """How busy an accelerator is.

    name: of its folder: `card0`, `accel0`, `17000000.gpu`.
    busy_percent: in the last moment, as its driver says; AMD's and Jetson's do.
    busy_us: time spent working since it started; Intel NPUs count it, `worked_share` makes a share of two.
    memory_used_bytes: of its own memory; AMD's driver tells.
    celsius: the hottest of its own sensors.
    watts: what the whole card draws.
    """

    name: str
    busy_percent: float | None = None
    busy_us: int | None = None
    clock: Clock | None = None
    memory_used_bytes: int | None = None
    celsius: float | None = None
    watts: float | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """What is known of the machine's use.

    available_bytes: memory that can be taken without swapping, for the whole machine.
    own_memory_bytes: what our cgroup holds, cached files included; None without one of our own.
    """

    cpu: CpuTime | None
    cpu_clock: Clock | None
    available_bytes: int | None
    swap_used_bytes: int | None
    own_memory_bytes: int | None
    network: Traffic | None
    accelerators: tuple[Activity, ...]


def busy_share(before: CpuTime | None, after: CpuTime | None) -> float | None:
    """Return the share of processor time that was busy between two readings, 0 … 1; None when none passed."""
    if before is None or after is None or after.total_s <= before.total_s:
        return None
    # The kernel's idle time may go backwards by a tick.
    return min(1.0, max(0.0, (after.busy_s - before.busy_s) / (after.total_s - before.total_s)))


def worked_share(before: Activity, after: Activity, elapsed_s: float) -> float | None:
    """Return the share of the time between two readings in which an accelerator worked, 0 … 1."""
    if before.busy_us is None or after.busy_us is None or elapsed_s <= 0 or after.busy_us < before.busy_us:
        return None
    return min(1.0, (after.busy_us - before.busy_us) / 1e6 / elapsed_s)


def read(root: Path) -> Usage:
    """Read the use of the machine whose files lie below `root`."""
    meminfo = files.fields(files.text(root / "proc/meminfo") or "")
    swap, free = (_kib_bytes(meminfo.get(name)) for name in ("SwapTotal", "SwapFree"))
    return Usage(
        cpu=_cpu_time(files.text(root / "proc/stat") or ""),
        cpu_clock=_cpu_clock(root / "sys/devices/system/cpu/cpufreq"),
        available_bytes=_kib_bytes(meminfo.get("MemAvailable")),
        swap_used_bytes=None if swap is None or free is None else max(0, swap - free),
        own_memory_bytes=files.number(next(cgroup.limits(root, "memory.current"), None)),
        network=_traffic(files.text(root / "proc/net/dev") or ""),
        accelerators=(
            *_cards(root / "sys/class/drm"),
            *_npus(root / "sys/class/accel"),
            *_jetson(root / "sys/class/devfreq"),
        ),
    )


def _kib_bytes(amount: str | None) -> int | None:
    """Turn `16302140 kB` into bytes."""
    kib = files.number((amount or "").removesuffix("kB").strip())
    return None if kib is None else kib * KIB_BYTES


def _cpu_time(stat: str) -> CpuTime | None:
    """Read `cpu user nice system idle iowait irq softirq steal …`; what follows is counted in `user` already."""
    name, *ticks = stat.partition("\n")[0].split()[:9] or [""]
    counts = [count for each in ticks if (count := files.number(each)) is not None]
    if name != "cpu" or len(counts) < 4 or len(counts) < len(ticks):
        return None
    return CpuTime((sum(counts) - sum(counts[3:5])) / TICKS_PER_S, sum(counts) / TICKS_PER_S)


def _cpu_clock(folder: Path) -> Clock | None:
    """Read the means over the policies; a policy that a reader may not see leaves the mean of the others."""
    policies = files.numbered(folder, "policy")
    policies = policies[:: 1 + len(policies) // POLICIES_MAX]
    clocks = [_clock(each, "scaling_cur_freq", "scaling_max_freq", "cpuinfo_max_freq", per=1000) for each in policies]
    known = [clock for clock in clocks if clock is not None]
    if not known:
        return None
    means = ([getattr(clock, name) for clock in known] for name in ("now_mhz", "allowed_mhz", "max_mhz"))
    return Clock(*(_mean([each for each in values if each is not None]) for values in means))


def _mean(values: list[float]) -> float | None:
    return round(sum(values) / len(values), 3) if values else None


def _clock(folder: Path, now: str, allowed: str | None, most: str | None, *, per: int = 1) -> Clock | None:
    """Read a clock from its files, whose numbers divided by `per` are MHz."""
    names = (now, allowed, most)
    found = [None if name is None else files.amount(folder / name, per=per, high=CLOCK_MAX_MHZ) for name in names]
    return None if found == [None, None, None] else Clock(*found)


def _traffic(table: str) -> Traffic | None:
    """Add up the columns of proc_pid_net(5): bytes received are the first, bytes sent the ninth."""
    received, sent, seen = 0, 0, False
    for line in table.splitlines():
        name, colon, columns = line.partition(":")
        counts = [files.number(each) for each in columns.split()]
        if colon and name.strip() != "lo" and len(counts) >= 9 and counts[0] is not None and counts[8] is not None:
            received, sent, seen = received + counts[0], sent + counts[8], True
    return Traffic(received, sent) if seen else None


def _cards(folder: Path) -> Iterator[Activity]:
    """Read graphics cards: AMD's load, Intel's clock (i915 below the card, xe below the device).

    A sleeping card is left asleep: https://docs.kernel.org/gpu/amdgpu/thermal.html, drivers/gpu/drm/xe/xe_gt_freq.c.
    """
    for card in files.numbered(folder, "card")[:DEVICES_MAX]:
        device = card / "device"
        if not awake(device):
            continue
        busy = files.amount(device / "gpu_busy_percent", high=100)
        clock = _clock(card, "gt_act_freq_mhz", "gt_max_freq_mhz", "gt_RP0_freq_mhz") or _clock(
            device / "tile0/gt0/freq0", "act_freq", "max_freq", "rp0_freq"
        )
        # https://docs.kernel.org/gpu/amdgpu/driver-misc.html
        memory_bytes = files.number(files.text(device / "mem_info_vram_used"))
        celsius = _hottest(device / "hwmon")
        if any(known is not None for known in (busy, clock, memory_bytes, celsius)):
            yield Activity(card.name, busy_percent=busy, clock=clock, memory_used_bytes=memory_bytes, celsius=celsius)


def _hottest(folder: Path) -> float | None:
    """Read the hottest sensor of the chips in a device's own folder."""
    chips = (Chip("", each) for each in files.numbered(folder, "hwmon"))
    found = (
        chip.amount(f"temp{number}", "input", per=1000, low=COLDEST_C, high=HOTTEST_C)
        for chip in chips
        for number in chip.channels("temp")
    )
    return max((celsius for celsius in found if celsius is not None), default=None)


def _npus(folder: Path) -> Iterator[Activity]:
    """Read Intel's NPUs; to be asked once a second at most, says Documentation/ABI/testing/sysfs-driver-ivpu."""
    for accel in files.numbered(folder, "accel")[:DEVICES_MAX]:
        device = accel / "device"
        busy = files.number(files.text(device / "npu_busy_time_us"))
        clock = _clock(device, "npu_current_frequency_mhz", None, "npu_max_frequency_mhz")
        if busy is not None or clock is not None:
            yield Activity(accel.name, busy_us=busy, clock=clock)


def _jetson(folder: Path) -> Iterator[Activity]:
    """Read NVIDIA's Jetson GPUs, whose driver tells their load in tenths of a percent; nothing else there does."""
    for name in files.names(folder)[:DEVICES_MAX]:
        busy = files.amount(folder / name / "device/load", per=10, high=100)
        if busy is not None:
            clock = _clock(folder / name, "cur_freq", "max_freq", None, per=10**6)
            yield Activity(name, busy_percent=busy, clock=clock)
