"""The probe: everything there is to know about a machine, from its files."""

from pathlib import Path

from hardware import cpu, memory
from hardware.machine import Machine


def probe(root: Path = Path("/")) -> Machine:
    """Return what the files below `root` (its proc and sys) say; what they lack is None, nothing raises."""
    return Machine(cpu=cpu.read(root), memory=memory.read(root))
