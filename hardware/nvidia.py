"""NVIDIA's GPUs: from the management library, else the driver's files and the PCI bus; a Jetson's by its chip."""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from hardware import files, pci
from hardware.machine import Accelerator, Kind, Vendor

NVIDIA = "0x10de"
NVML_PROGRAM = Path(__file__).with_name("nvml.py")
NVML_PATIENCE_S = 1.5
"""Without persistence mode the driver wakes every GPU first; after this the files answer instead."""
DYING_S = 0.1

TEGRAS = {"tegra194": "Xavier", "tegra234": "Orin", "tegra264": "Thor"}
"""NVIDIA's name of a chip by the kernel's, from arch/arm64/boot/dts/nvidia of Linux."""

THOR_GPU = "0x2b00"
"""Thor's own GPU is also on its PCI bus (pci-ids.ucw.cz: GB10B [Jetson AGX Thor])."""

TEGRA_NODES = ("/dev/nvgpu/igpu0/ctrl", "/dev/nvhost-ctrl-gpu", "/dev/nvidia0")
"""The GPU's control node in JetPack 6, JetPack 5 and JetPack 7."""

Answer = list[dict[str, Any]] | None


def gpus(root: Path, ask: Callable[[], Answer]) -> tuple[Accelerator, ...]:
    """Return NVIDIA's GPUs; `ask` is the management library, which is asked only where there is a GPU for it."""
    tegra = tuple(_tegra(root))
    cards = [each for each in pci.devices(root) if each.vendor == NVIDIA and each.is_display]
    if tegra:
        cards = [each for each in cards if each.device != THOR_GPU]
    elif not cards:
        cards = _listed_by_driver(root)
    answer = ask() if cards else None
    if answer is None:
        return (*tegra, *(_from_files(root, card) for card in cards))
    said = (_from_nvml(gpu) for gpu in answer)
    return (*tegra, *(each for each in said if not (tegra and each.device_id == THOR_GPU)))


def ask_nvml(
    program: Sequence[str] = (sys.executable, "-I", "-S", str(NVML_PROGRAM)), *, patience_s: float = NVML_PATIENCE_S
) -> Answer:
    """Return what the management library says of each GPU, see nvml.ask; None when it is not there or does not answer.

    A child that cannot even be killed, because it hangs in the driver, is left behind.
    """
    try:
        child = subprocess.Popen(program, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    except OSError:  # no Python of our own to run it with
        return None
    with suppress(subprocess.TimeoutExpired, ValueError):  # ValueError: not the program's JSON
        said, _ = child.communicate(timeout=patience_s)
        return [gpu for gpu in json.loads(said) if gpu.get("name")] if child.returncode == 0 else None
    child.kill()
    with suppress(subprocess.TimeoutExpired):
        child.communicate(timeout=DYING_S)
    return None


def no_nvml() -> Answer:
    """Stand for the management library of another machine, whose files alone are here."""
    return None


def _from_nvml(gpu: dict[str, Any]) -> Accelerator:
    return Accelerator(
        kind=Kind.GPU,
        vendor=Vendor.NVIDIA,
        name=gpu["name"],
        generation=gpu["capability"] and f"sm_{gpu['capability']}",
        device_id=gpu["device_id"],
        driver="nvidia",
        driver_version=gpu["driver_version"],
        node=None if gpu["minor"] is None else f"/dev/nvidia{gpu['minor']}",
        memory_bytes=gpu["memory_bytes"],
        # docs.nvidia.com, DGX Spark "Known Issues": a GPU that works in the machine's memory has none to report
        shares_memory=gpu["shares_memory"],
    )


def _from_files(root: Path, card: pci.Device) -> Accelerator:
    """Read /proc/driver/nvidia/gpus/SLOT/information, which the driver's README tells of ("The /proc Interface")."""
    said = files.fields(files.text(root / f"proc/driver/nvidia/gpus/{card.slot}/information") or "")
    minor = files.number(said.get("Device Minor"))
    model = said.get("Model", "Unknown")[: files.LINE_CHARACTERS]
    driver = "nvidia" if said else card.driver
    return Accelerator(
        kind=Kind.GPU,
        vendor=Vendor.NVIDIA,
        name=card.name if model == "Unknown" else model,
        device_id=card.device or None,
        driver=driver,
        driver_version=pci.driver_version(root, driver),
        node=card.node(Kind.GPU) if minor is None else f"/dev/nvidia{minor}",
    )


def _listed_by_driver(root: Path) -> list[pci.Device]:
    """Return what the driver lists, where /sys shows no PCI bus."""
    folder = root / "proc/driver/nvidia/gpus"
    return [pci.Device(root, folder / name, vendor=NVIDIA, device="") for name in files.names(folder)]


def _tegra(root: Path) -> Iterator[Accelerator]:
    """Find the GPU inside a Jetson's chip."""
    names = (name.removeprefix("nvidia,") for name in files.strings(root / "proc/device-tree/compatible"))
    if chip := next((name for name in names if name in TEGRAS), None):
        drivers = (each for each in ("nvgpu", "nvidia") if (root / "sys/module" / each).is_dir())
        nodes = (each for each in TEGRA_NODES if (root / each.removeprefix("/")).exists())
        yield Accelerator(
            kind=Kind.GPU,
            vendor=Vendor.NVIDIA,
            name=TEGRAS[chip],
            generation=chip,
            driver=next(drivers, None),
            driver_version=_l4t(files.text(root / "etc/nv_tegra_release")),
            node=next(nodes, None),
            shares_memory=True,
        )


def _l4t(release: str | None) -> str | None:
    """Turn `# R36 (release), REVISION: 4.3, …` into 36.4.3, as NVIDIA calls Jetson Linux."""
    found = re.match(r"# R(\d+) \(release\), REVISION: ([\d.]+)", release or "")
    return f"{found.group(1)}.{found.group(2)}" if found else None
