"""The processors, from /proc/cpuinfo, /sys/devices/system/cpu and the cgroups."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from hardware import cgroup, files
from hardware.machine import Cpu

FLAGS = frozenset(
    {
        # x86: integer dot products, fp16 and bf16, in vectors and in tiles; avx512bw stands for AVX-512 at all
        *("avx2", "avx_vnni", "avx512bw", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_int8", "amx_bf16"),
        # Arm: fp16 arithmetic, dot products, int8 matrices, bf16, scalable vectors and matrices
        *("asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2", "sme", "sme2"),
    }
)
"""Flags of /proc/cpuinfo that the engines' int4 and bf16 kernels choose by.

Sources: onnxruntime/core/mlas/lib/platform.cpp of ONNX Runtime; "CPU Dispatcher Control" of oneDNN.
"""

CORES = {
    ("0x41", "0xd03"): "Cortex-A53",
    ("0x41", "0xd05"): "Cortex-A55",
    ("0x41", "0xd08"): "Cortex-A72",
    ("0x41", "0xd0b"): "Cortex-A76",
    ("0x41", "0xd0c"): "Neoverse-N1",
    ("0x41", "0xd40"): "Neoverse-V1",
    ("0x41", "0xd41"): "Cortex-A78",
    ("0x41", "0xd42"): "Cortex-A78AE",
    ("0x41", "0xd44"): "Cortex-X1",
    ("0x41", "0xd46"): "Cortex-A510",
    ("0x41", "0xd49"): "Neoverse-N2",
    ("0x41", "0xd4f"): "Neoverse-V2",
    ("0x41", "0xd80"): "Cortex-A520",
    ("0x41", "0xd81"): "Cortex-A720",
    ("0x41", "0xd83"): "Neoverse-V3AE",
    ("0x51", "0x001"): "Oryon",
}
"""`CPU implementer` and `CPU part` → name, from arch/arm64/include/asm/cputype.h of Linux."""

Blocks = Mapping[int, Mapping[str, str]]
"""The blocks of /proc/cpuinfo by the number of their logical CPU."""


def read(root: Path) -> Cpu:
    """Read the processors of the machine whose files lie below `root`."""
    cpuinfo = _cpuinfo(root)
    cores = _cores(root, cpuinfo)
    flags = _flags(cpuinfo)
    quota_cores = _quota_cores(root)
    return Cpu(
        model=_model(cpuinfo),
        architecture=_architecture(root, flags),
        physical_cores=len(set(cores.values())) if cores else None,
        logical_cpus=len(cpuinfo) or None,
        flags=None if flags is None else tuple(sorted(flags & FLAGS)),
        quota_cores=quota_cores,
        granted_cores=_granted_cores(cores or {cpu: str(cpu) for cpu in cpuinfo}, _allowed(root), quota_cores),
    )


def _cpuinfo(root: Path) -> Blocks:
    blocks = [files.fields(block) for block in (files.text(root / "proc/cpuinfo") or "").split("\n\n")]
    numbered = ((files.number(block.get("processor")), block) for block in blocks)
    return {cpu: block for cpu, block in numbered if cpu is not None}


def _model(cpuinfo: Blocks) -> str | None:
    names = {name for block in cpuinfo.values() if (name := _core_name(block))}
    return " + ".join(sorted(names)) or None


def _core_name(block: Mapping[str, str]) -> str | None:
    return CORES.get((block.get("CPU implementer", ""), block.get("CPU part", "")), block.get("model name"))


def _flags(cpuinfo: Blocks) -> frozenset[str] | None:
    """Return what every processor can do: a thread may run on any of them."""
    listed = [block.get("flags", block.get("Features")) for block in cpuinfo.values()]
    sets = [frozenset(flags.split()) for flags in listed if flags is not None]
    return frozenset.intersection(*sets) if sets else None


def _architecture(root: Path, flags: frozenset[str] | None) -> str | None:
    """Ask the kernel (6.1 and later), else the flags: `lm` is x86's 64-bit mode, `asimd` is 64-bit Arm's."""
    if said := files.line(root / "proc/sys/kernel/arch"):
        return said
    if flags is None:
        return None
    return "x86_64" if "lm" in flags else "aarch64" if "asimd" in flags else None


def _cores(root: Path, cpuinfo: Blocks) -> Mapping[int, str]:
    """Return the core of each logical CPU, named by the CPUs that share it; empty when one is unknown."""
    topology = root / "sys/devices/system/cpu"
    cores = {cpu: files.text(topology / f"cpu{cpu}/topology/thread_siblings_list") for cpu in cpuinfo}
    if not all(cores.values()):
        cores = {cpu: _core_by_id(block) for cpu, block in cpuinfo.items()}
    known = {cpu: core for cpu, core in cores.items() if core}
    return known if len(known) == len(cpuinfo) else {}


def _core_by_id(block: Mapping[str, str]) -> str | None:
    """Name a core by its package and number, as x86 kernels tell in /proc/cpuinfo."""
    package, core = block.get("physical id"), block.get("core id")
    return f"{package}.{core}" if package and core else None


def _allowed(root: Path) -> list[range] | None:
    """Read the affinity of this process, as ranges of logical CPUs: `0-3,6`."""
    status = files.fields(files.text(root / "proc/self/status") or "")
    return list(_ranges(status.get("Cpus_allowed_list", ""))) or None


def _ranges(cpu_list: str) -> Iterator[range]:
    for item in cpu_list.split(","):
        first, _, last = item.strip().partition("-")
        low, high = files.number(first), files.number(last or first)
        if low is not None and high is not None:
            yield range(low, high + 1)


def _quota_cores(root: Path) -> float | None:
    quotas = [_quota(limit) for limit in cgroup.limits(root, "cpu.max")]
    return min((quota for quota in quotas if quota is not None), default=None)


def _quota(limit: str) -> float | None:
    """Turn `150000 100000` (µs of processor time per period, in µs) into 1.5 cores; `max …` is no limit."""
    quota_us, _, period_us = limit.partition(" ")
    quota, period = files.number(quota_us), files.number(period_us)
    return quota / period if quota and period else None


def _granted_cores(cores: Mapping[int, str], allowed: list[range] | None, quota_cores: float | None) -> int:
    """Count the distinct cores we may run on, within the quota.

    The quota is rounded down: with a thread too many the whole group is stopped in every period, and a matrix
    product waits for its slowest thread.
    """
    usable = {core for cpu, core in cores.items() if allowed is None or any(cpu in numbers for numbers in allowed)}
    count = len(usable) if quota_cores is None else min(len(usable), int(quota_cores))
    return max(1, count)
