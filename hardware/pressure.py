"""How much work waits for the machine: the kernel's pressure figures and its load.

https://docs.kernel.org/accounting/psi.html
"""

import re
from dataclasses import dataclass
from pathlib import Path

from hardware import cgroup, files


@dataclass(frozen=True, slots=True)
class Stall:
    """The share of the last ten seconds in which work stood still for want of something, in percent.

    some_percent: at least some of it.
    full_percent: all of it; None for processors before Linux 5.13.
    """

    some_percent: float
    full_percent: float | None


@dataclass(frozen=True, slots=True)
class Pressure:
    """What is short.

    own_memory: the memory of our own cgroup: what its limit costs us while the machine has plenty.
    load_1m: mean length of the run queue over a minute, in tasks.
    """

    cpu: Stall | None
    memory: Stall | None
    io: Stall | None
    own_memory: Stall | None
    load_1m: float | None


def read(root: Path) -> Pressure:
    """Read the pressure on the machine whose files lie below `root`."""
    cpu, memory, io = (_stall(files.text(root / "proc/pressure" / name)) for name in ("cpu", "memory", "io"))
    load = re.match(r"(\d{1,6}\.\d\d) ", files.text(root / "proc/loadavg") or "", re.ASCII)
    return Pressure(
        cpu=cpu,
        memory=memory,
        io=io,
        own_memory=_stall(next(cgroup.limits(root, "memory.pressure"), None)),
        load_1m=float(load[1]) if load else None,
    )


def _stall(lines: str | None) -> Stall | None:
    found = re.findall(r"^(some|full) avg10=(\d{1,3}\.\d\d) ", lines or "", re.MULTILINE | re.ASCII)
    shares = {kind: float(share) for kind, share in found if float(share) <= 100}
    return Stall(shares["some"], shares.get("full")) if "some" in shares else None
