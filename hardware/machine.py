"""The facts of a machine. None means that it could not be read, never zero."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Cpu:
    """The processors this process may use, and what they can do.

    model: the maker's name, or the Arm core's.
    architecture: as `uname -m` says it: `x86_64`, `aarch64`, …
    flags: the instruction sets that speed up int4 and bf16 arithmetic, in the kernel's spelling, sorted.
    quota_cores: processor time the cgroups grant, in cores; None means no limit or unreadable.
    granted_cores: compute threads to use: physical cores within affinity and quota, at least 1.
    """

    model: str | None
    architecture: str | None
    physical_cores: int | None
    logical_cpus: int | None
    flags: tuple[str, ...] | None
    quota_cores: float | None
    granted_cores: int


@dataclass(frozen=True, slots=True)
class Memory:
    """The memory of the machine, and how much of it the cgroups grant.

    available_bytes: the kernel's estimate of what can be taken without swapping, for the whole machine.
    limit_bytes: the smallest limit of our cgroup and its parents; None means no limit or unreadable.
    """

    total_bytes: int | None
    available_bytes: int | None
    swap_bytes: int | None
    limit_bytes: int | None


@dataclass(frozen=True, slots=True)
class Machine:
    """What the probe found."""

    cpu: Cpu
    memory: Memory
