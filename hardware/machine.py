"""The facts of a machine. None means that it could not be read, never zero."""

from dataclasses import dataclass
from enum import StrEnum


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
    room_bytes: what those limits leave us, the least of them; None without any.
    bandwidth_bytes_per_s: how fast the compute threads together read memory; measured only when asked for.
    """

    total_bytes: int | None
    available_bytes: int | None
    swap_bytes: int | None
    limit_bytes: int | None
    room_bytes: int | None = None
    bandwidth_bytes_per_s: float | None = None


@dataclass(frozen=True, slots=True)
class Board:
    """What the box calls itself.

    vendor: what the firmware's DMI tables say.
    model: the device tree's, else the DMI tables'.
    compatible: the device tree's list, most exact first: `("raspberrypi,5-model-b", "brcm,bcm2712")`; else empty.
    """

    vendor: str | None
    model: str | None
    compatible: tuple[str, ...]


class Kind(StrEnum):
    """What sort of accelerator."""

    GPU = "gpu"
    NPU = "npu"


class Vendor(StrEnum):
    """Whose accelerator."""

    NVIDIA = "nvidia"
    INTEL = "intel"
    AMD = "amd"
    QUALCOMM = "qualcomm"
    APPLE = "apple"


@dataclass(frozen=True, slots=True)
class Accelerator:
    """One thing besides the processors that can run a model.

    name: the maker's name, or the generation's when only that is known.
    generation: what model builds are made for, in the makers' own terms: `Meteor Lake`, `XDNA2`, `sm_90`,
        `tegra234`, `X Elite`.
    device_id: the PCI device, as `0x7d1d`; None when it is not on a PCI bus.
    driver, driver_version: the kernel's driver that is bound to it; None when there is none.
    node: the device file a program opens, as `/dev/accel/accel0`.
    usable: whether this process may open `node`; None when that cannot be told.
    mend: the command that makes it usable; None when it is, or nobody knows.
    memory_bytes: memory of its own; None when it uses the machine's or it cannot be read.
    shares_memory: whether it computes in the machine's own memory.
    """

    kind: Kind
    vendor: Vendor
    name: str | None
    generation: str | None = None
    device_id: str | None = None
    driver: str | None = None
    driver_version: str | None = None
    node: str | None = None
    usable: bool | None = None
    mend: str | None = None
    memory_bytes: int | None = None
    shares_memory: bool = False


@dataclass(frozen=True, slots=True)
class Machine:
    """What the probe found.

    accelerators: GPUs before NPUs, each in the order of the kernel's numbers.
    kernel: its release, as `uname -r` says it.
    late: the parts of the probe that did not answer in time, by name (`gpus`, `npus`, …); what they read is unknown.
    """

    board: Board
    cpu: Cpu
    memory: Memory
    accelerators: tuple[Accelerator, ...]
    kernel: str | None
    late: tuple[str, ...] = ()
