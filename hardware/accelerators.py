"""What besides the processors can run a model: GPUs and NPUs, from /sys, /dev and the device tree."""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from hardware import files, pci
from hardware.access import Opener
from hardware.machine import Accelerator, Kind, Vendor

INTEL, AMD, AMD_NPU = "0x8086", "0x1002", "0x1022"


def _table(**generations: str) -> Mapping[str, str]:
    """Turn `Meteor_Lake="7d55 …"` into `{"0x7d55": "Meteor Lake", …}`."""
    return {
        f"0x{device}": name.replace("_", " ") for name, devices in generations.items() for device in devices.split()
    }


NPUS = {
    # drivers/accel/ivpu/ivpu_drv.h of Linux
    INTEL: _table(Meteor_Lake="7d1d", Arrow_Lake="ad1d", Lunar_Lake="643e", Panther_Lake="b03e", Wildcat_Lake="fd3e"),
    # drivers/accel/amdxdna/amdxdna_pci_drv.c of Linux
    AMD_NPU: _table(XDNA1="1502", XDNA2="17f0"),
}
"""Generation by vendor and device."""

INTEL_GPUS = _table(
    Tiger_Lake="9a60 9a68 9a70 9a40 9a49 9a59 9a78 9ac0 9ac9 9ad9 9af8",
    Alder_Lake="4680 4682 4688 468a 468b 4690 4692 4693 46a0 46a1 46a2 46a3 46a6 46a8 46aa 462a 4626 4628"
    " 46b0 46b1 46b2 46b3 46c0 46c1 46c2 46c3 46d0 46d1 46d2 46d3 46d4",
    Raptor_Lake="a780 a781 a782 a783 a788 a789 a78a a78b a720 a721 a7a0 a7a1 a7a8 a7a9 a7aa a7ab a7ac a7ad",
    Meteor_Lake="7d40 7d45 7d55 7d60 7dd5",
    Arrow_Lake="7d41 7d51 7d67 7dd1 b640",
    Lunar_Lake="6420 64a0 64b0",
    Panther_Lake="b080 b081 b082 b083 b084 b085 b086 b087 b08f b090 b0a0 b0b0",
    Wildcat_Lake="fd80 fd81",
    Alchemist="5690 5691 5692 5693 5694 5695 5696 5697 56a0 56a1 56a2 56a3 56a4 56a5 56a6 56b0 56b1 56b2 56b3"
    " 56ba 56bb 56bc 56bd 56be 56bf 56c0 56c1 56c2",
    Battlemage="e202 e209 e20b e20c e20d e210 e211 e212 e216 e220 e221 e222 e223",
)
"""Generation by device, from include/drm/intel/pciids.h of Linux."""

INTEL_CARDS = frozenset({"Alchemist", "Battlemage"})
"""Generations with memory of their own."""

AMD_APUS = _table(
    Raven_Ridge="15dd",
    Picasso="15d8",
    Renoir="1636",
    Cezanne="1638",
    Barcelo="15e7",
    Van_Gogh="163f 1435",
    Rembrandt="164d 1681",
    Raphael="164e",
    Mendocino="1506",
    Phoenix="15bf 15c8",
    Hawk_Point="1900 1901",
    Granite_Ridge="13c0",
    Strix_Point="150e",
    Strix_Halo="1586",
    Krackan_Point="1114",
)
"""Generation of processors with a GPU that works in their memory, by device, from https://pci-ids.ucw.cz."""

SNAPDRAGONS = {"x1e80100": "X Elite", "sm8750": "8 Elite", "sm8650": "8 Gen 3"}
"""Qualcomm's name of a chip by the kernel's, from Documentation/devicetree/bindings/arm/qcom.yaml of Linux."""


def gpus(root: Path) -> tuple[Accelerator, ...]:
    """Return the GPUs of Intel, AMD, Qualcomm and Apple."""
    cards = (each for each in pci.devices(root) if each.vendor in {INTEL, AMD} and each.is_display)
    return (*(_card(each) for each in cards), *_platform_gpus(root))


def npus(root: Path, opener: Opener) -> tuple[Accelerator, ...]:
    """Return the NPUs of Intel, AMD and Qualcomm."""
    listed = (each for each in pci.devices(root) if each.device in NPUS.get(each.vendor, ()))
    return (*(_npu(each) for each in listed), *_fastrpc(root, opener))


def _card(device: pci.Device) -> Accelerator:
    if device.vendor == INTEL:
        vendor, generation = Vendor.INTEL, INTEL_GPUS.get(device.device)
        # Intel's processors have their graphics at 00:02, and nothing else there.
        at_home = (device.slot or "").startswith("0000:00:02.")
        shares_memory = generation not in INTEL_CARDS and (generation is not None or at_home)
    else:
        vendor, generation = Vendor.AMD, AMD_APUS.get(device.device)
        shares_memory = generation is not None
    memory = files.number(files.text(device.folder / "mem_info_vram_total"))
    return Accelerator(
        kind=Kind.GPU,
        vendor=vendor,
        name=device.name or generation,
        generation=generation,
        device_id=device.device,
        driver=device.driver,
        driver_version=pci.driver_version(device.root, device.driver),
        node=device.node(Kind.GPU),
        memory_bytes=None if shares_memory else memory,
        shares_memory=shares_memory,
    )


def _npu(device: pci.Device) -> Accelerator:
    generation = NPUS[device.vendor][device.device]
    node = device.node(Kind.NPU)
    return Accelerator(
        kind=Kind.NPU,
        vendor=Vendor.INTEL if device.vendor == INTEL else Vendor.AMD,
        # pci.ids names several generations alike (seen in 2026), so the driver's word and the table's count here
        name=files.line(device.folder / "vbnv") or generation,
        generation=generation,
        device_id=device.device,
        driver=device.driver,
        driver_version=pci.driver_version(device.root, device.driver),
        node=node,
        shares_memory=True,
    )


def _platform_gpus(root: Path) -> Iterator[Accelerator]:
    """Find the GPUs that sit on no PCI bus, by their drivers: `msm…` is Qualcomm's, `asahi` Apple's."""
    for render in files.numbered(root / "sys/class/drm", "renderD"):
        driver = pci.bound_driver(render / "device")
        if driver and (driver == "asahi" or driver.startswith("msm")):
            vendor = Vendor.APPLE if driver == "asahi" else Vendor.QUALCOMM
            generation = _chip(root, vendor)
            yield Accelerator(
                kind=Kind.GPU,
                vendor=vendor,
                name="Adreno" if vendor is Vendor.QUALCOMM else generation,
                generation=generation,
                driver=driver,
                node=f"/dev/dri/{render.name}",
                shares_memory=True,
            )


def _fastrpc(root: Path, opener: Opener) -> Iterator[Accelerator]:
    """Find Qualcomm's compute DSP, which has several nodes; one that may be opened is enough."""
    nodes = [root / "dev" / name for name in files.names(root / "dev") if re.fullmatch(r"fastrpc-cdsp\d*", name)]
    if nodes:
        node = next(filter(opener.may_open, nodes), nodes[0])
        yield Accelerator(
            kind=Kind.NPU,
            vendor=Vendor.QUALCOMM,
            name="Hexagon",
            generation=_chip(root, Vendor.QUALCOMM),
            driver="fastrpc",
            node=f"/dev/{node.name}",
            shares_memory=True,
        )


def _chip(root: Path, vendor: Vendor) -> str | None:
    """Name the chip by the device tree, whose last entry of the chip's maker is the family's."""
    prefix = "qcom," if vendor is Vendor.QUALCOMM else "apple,"
    chips = _after(prefix, files.strings(root / "proc/device-tree/compatible"))
    if vendor is Vendor.APPLE:  # its last entry is `apple,arm-platform`
        chips = [chip for chip in chips if chip.startswith("t")]
    return SNAPDRAGONS.get(chips[-1], chips[-1]) if chips else None


def _after(prefix: str, names: Iterable[str]) -> list[str]:
    return [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
