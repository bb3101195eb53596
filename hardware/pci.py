"""GPUs and NPUs on the PCI bus, from /sys; their vendor files answer even where a driver is sick."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from hardware import files
from hardware.machine import Kind

NAMES = ("usr/share/misc/pci.ids", "usr/share/hwdata/pci.ids")
"""Where Debian's and Fedora's copies of https://pci-ids.ucw.cz lie."""

ID = r"0x[0-9a-f]{4}"

DISPLAY = "0x03"
"""Base class of display controllers in the PCI Code and ID Assignment Specification."""


@dataclass(frozen=True)
class Device:
    """One PCI device.

    folder: its folder below /sys/devices, its links followed.
    vendor, device: as the kernel writes them, `0x8086`, `0x7d1d`.
    """

    root: Path
    folder: Path
    vendor: str
    device: str

    @cached_property
    def slot(self) -> str | None:
        """Its address, `0000:00:02.0`."""
        slot = re.search(r"^PCI_SLOT_NAME=(\S+)$", files.text(self.folder / "uevent") or "", re.MULTILINE)
        name = slot.group(1) if slot else self.folder.name
        return name if re.fullmatch(r"[0-9a-f]{4,}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]", name) else None

    @cached_property
    def driver(self) -> str | None:
        """The driver that is bound to it."""
        return bound_driver(self.folder)

    @property
    def is_display(self) -> bool:
        """Whether it has a GPU's class or a GPU's driver."""
        return (files.text(self.folder / "class") or "").startswith(DISPLAY) or (self.folder / "drm").is_dir()

    @cached_property
    def name(self) -> str | None:
        """What the machine's own list of PCI devices calls it."""
        lists = (files.text(self.root / path) for path in NAMES)
        return next((name for text in lists if text and (name := _name(text, self.vendor, self.device))), None)

    def node(self, kind: Kind) -> str | None:
        """Return the device file that programs open: a GPU's render node, an NPU's accel node."""
        if kind is Kind.GPU:
            found, folder = files.numbered(self.folder / "drm", "renderD"), "/dev/dri"
        else:
            found, folder = files.numbered(self.folder / "accel", "accel"), "/dev/accel"
        return f"{folder}/{found[0].name}" if found else None


def devices(root: Path) -> list[Device]:
    """Return what is listed as a graphics card, as an accelerator or on the PCI bus, each once."""
    found: dict[Path, Device] = {}
    for folder in _folders(root):
        vendor, device = (files.line(folder / name) or "" for name in ("vendor", "device"))
        if re.fullmatch(ID, vendor) and re.fullmatch(ID, device):
            found.setdefault(folder, Device(root, folder, vendor, device))
    return list(found.values())


def bound_driver(folder: Path) -> str | None:
    """Return the name of the driver that is bound to a device of any bus."""
    told = re.search(r"^DRIVER=(\S{1,64})$", files.text(folder / "uevent") or "", re.MULTILINE)
    return files.target(folder / "driver") or (told.group(1) if told else None)


def driver_version(root: Path, driver: str | None) -> str | None:
    """Return what a driver's module says; those that come with the kernel mostly say nothing."""
    if driver is None or not re.fullmatch(r"[\w-]+", driver):
        return None
    return files.line(root / "sys/module" / driver.replace("-", "_") / "version")


def _folders(root: Path) -> Iterator[Path]:
    sys = root / "sys"
    for card in files.numbered(sys / "class/drm", "card"):
        yield Path(os.path.realpath(card / "device"))
    for accel in files.numbered(sys / "class/accel", "accel"):
        yield Path(os.path.realpath(accel / "device"))
    for name in files.names(sys / "bus/pci/devices"):
        yield Path(os.path.realpath(sys / "bus/pci/devices" / name))


def _name(text: str, vendor: str, device: str) -> str | None:
    """Find a device in pci.ids: vendors begin their lines, their devices follow with one tab."""
    block = re.search(rf"^{re.escape(vendor[2:])}  .*\n((?:[\t#].*\n?|\n)*)", text, re.MULTILINE)
    line = re.search(rf"^\t{re.escape(device[2:])}  (.{{1,128}})$", block.group(1), re.MULTILINE) if block else None
    return line.group(1).strip() if line else None
