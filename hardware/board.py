"""What the box calls itself, from the device tree or the firmware's DMI tables."""

from pathlib import Path

from hardware import files
from hardware.machine import Board

FILLERS = frozenset(
    {"To Be Filled By O.E.M.", "To be filled by O.E.M.", "System manufacturer", "System Product Name", "Default string"}
)
"""What firmware says where its maker wrote nothing."""


def read(root: Path) -> Board:
    """Read the board of the machine whose files lie below `root`; a device tree knows better than DMI."""
    tree = root / "proc/device-tree"
    compatible = files.strings(tree / "compatible")
    model = next(iter(files.strings(tree / "model")), None)
    return Board(
        vendor=_dmi(root, "sys_vendor", "board_vendor"),
        model=model or _dmi(root, "product_name", "board_name"),
        compatible=compatible,
    )


def _dmi(root: Path, *names: str) -> str | None:
    """Return the first of the DMI fields that its maker filled in; a box without a name has the mainboard's."""
    said = (files.line(root / "sys/class/dmi/id" / name) for name in names)
    return next((each for each in said if each and each not in FILLERS), None)
