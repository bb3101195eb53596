"""The probe: everything there is to know about a machine, from its files."""

from pathlib import Path

from hardware import cpu, memory
from hardware.machine import Board, Machine


def probe(root: Path = Path("/")) -> Machine:
    """Return what the files below `root` (its proc and sys) say; what they lack is None, nothing raises."""
    return Machine(
        board=Board(None, None, ()), cpu=cpu.read(root), memory=memory.read(root), accelerators=(), kernel=None
    )
