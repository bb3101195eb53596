"""The probe's rules for accelerators, and that nothing odd, slow or sick in place of a file holds it."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from hardware import bandwidth, files, nvidia
from hardware.machine import Cpu, Kind, Memory, Vendor
from hardware.probe import probe
from tests.machines import build

PCI = "sys/bus/pci/devices"


def write(root, contents):
    for name, text in contents.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def device(root, slot, vendor, number, *, pci_class="0x030000", driver=None, **more):
    uevent = f"DRIVER={driver}\n" if driver else ""
    folder = f"{PCI}/{slot}"
    write(root, {f"{folder}/vendor": f"{vendor}\n", f"{folder}/device": f"{number}\n", f"{folder}/uevent": uevent})
    write(root, {f"{folder}/class": f"{pci_class}\n", **{f"{folder}/{name}": text for name, text in more.items()}})


# Which devices


def test_an_npu_without_a_driver_is_named_and_not_usable(tmp_path):
    """An old kernel lists it on the PCI bus only; no device file, no command that would help."""
    device(tmp_path, "0000:00:0b.0", "0x8086", "0x7d1d", pci_class="0x120000")
    (npu,) = probe(tmp_path).accelerators
    assert (npu.kind, npu.generation, npu.driver, npu.node) == (Kind.NPU, "Meteor Lake", None, None)
    assert (npu.usable, npu.mend) == (False, None)


@pytest.mark.parametrize(
    ("number", "slot", "shares"),
    [
        ("0x56a0", "0000:03:00.0", False),
        ("0xe20b", "0000:00:02.0", False),  # a card passed through to a virtual machine, in the place of a home GPU
        ("0xa780", "0000:00:02.0", True),
        ("0x64a0", "0000:00:10.0", True),
        ("0x9999", "0000:00:02.0", True),
        ("0x9999", "0000:05:00.0", False),
    ],
)
def test_intel_gpus_inside_processors_share_the_memory(tmp_path, number, slot, shares):
    """Known ones by their generation, unknown ones by their place on the bus."""
    device(tmp_path, slot, "0x8086", number)
    (gpu,) = probe(tmp_path).accelerators
    assert gpu.shares_memory is shares


def test_amd_cards_have_memory_and_apus_a_carve_out_that_is_none(tmp_path):
    """Of a GPU inside a processor the kernel tells a part of the machine's memory, which is not its own."""
    device(tmp_path, "0000:03:00.0", "0x1002", "0x744c", driver="amdgpu", mem_info_vram_total="25753026560\n")
    device(tmp_path, "0000:c4:00.0", "0x1002", "0x150e", driver="amdgpu", mem_info_vram_total="536870912\n")
    card, apu = probe(tmp_path).accelerators
    assert (card.memory_bytes, card.shares_memory) == (25_753_026_560, False)
    assert (apu.memory_bytes, apu.shares_memory) == (None, True)


def test_sound_and_foreign_displays_are_no_accelerators(tmp_path):
    """A card's sound device has its vendor; a server's console display has a GPU's class."""
    device(tmp_path, "0000:01:00.1", "0x10de", "0x22ba", pci_class="0x040300")
    device(tmp_path, "0000:03:00.1", "0x1002", "0xab30", pci_class="0x040300")
    device(tmp_path, "0000:04:00.0", "0x1a03", "0x2000")
    assert probe(tmp_path).accelerators == ()


def test_drm_and_accel_folders_alone_are_enough(tmp_path):
    """Where the PCI bus is hidden, /sys/class tells the same; outputs as card0-DP-1 are no cards."""
    write(
        tmp_path,
        {
            "sys/class/drm/card0/device/vendor": "0x1002\n",
            "sys/class/drm/card0/device/device": "0x744c\n",
            "sys/class/drm/card0/device/uevent": "DRIVER=amdgpu\n",
            "sys/class/drm/card0/device/drm/renderD129/uevent": "",
            "sys/class/drm/card0-DP-1/device/vendor": "0x8086\n",
            "sys/class/drm/card0-DP-1/device/device": "0x56a0\n",
            "sys/class/accel/accel0/device/vendor": "0x8086\n",
            "sys/class/accel/accel0/device/device": "0xb03e\n",
            "sys/class/accel/accel0/device/accel/accel0/uevent": "",
            "sys/module/amdgpu/version": "6.10.5\n",
        },
    )
    gpu, npu = probe(tmp_path).accelerators
    assert (gpu.driver, gpu.driver_version, gpu.node) == ("amdgpu", "6.10.5", "/dev/dri/renderD129")
    assert (npu.generation, npu.node, npu.usable) == ("Panther Lake", "/dev/accel/accel0", False)


def test_apple_silicon(tmp_path):
    """Its GPU sits on no PCI bus and is known by its driver; the chip by the device tree."""
    write(
        tmp_path,
        {
            "proc/device-tree/model": "Apple MacBook Air (M1, 2020)\0",
            "proc/device-tree/compatible": "apple,j313\0apple,t8103\0apple,arm-platform\0",
            "sys/class/drm/renderD128/device/uevent": "DRIVER=asahi\n",
        },
    )
    (gpu,) = probe(tmp_path).accelerators
    assert (gpu.vendor, gpu.generation, gpu.node, gpu.shares_memory) == (
        Vendor.APPLE,
        "t8103",
        "/dev/dri/renderD128",
        True,
    )


def test_the_graphics_of_a_raspberry_pi_run_no_model(tmp_path):
    write(tmp_path, {"sys/class/drm/renderD128/device/uevent": "DRIVER=v3d\n"})
    assert probe(tmp_path).accelerators == ()


def test_nvidia_without_its_driver(tmp_path):
    """A card under the free driver is named by the machine's list of PCI devices."""
    device(tmp_path, "0000:01:00.0", "0x10de", "0x2684", driver="nouveau")
    ids = "8086  Intel Corporation\n\t2684  Wrong\n10de  NVIDIA Corporation\n\t2684  AD102 [GeForce RTX 4090]\n"
    write(tmp_path, {"usr/share/misc/pci.ids": f"# comment\n{ids}\t\t10de 1111  Board\n10df  Emulex\n"})
    (gpu,) = probe(tmp_path).accelerators
    assert (gpu.name, gpu.driver, gpu.device_id) == ("AD102 [GeForce RTX 4090]", "nouveau", "0x2684")


def test_nvidia_in_a_container_without_the_pci_bus(tmp_path):
    write(
        tmp_path,
        {
            "proc/driver/nvidia/gpus/0000:06:00.0/information": "Model: \t Tesla V100-SXM2-16GB\nDevice Minor: \t 2\n",
            "sys/module/nvidia/version": "535.129.03\n",
            "dev/nvidia2": "",
        },
    )
    (gpu,) = probe(tmp_path).accelerators
    assert (gpu.name, gpu.driver, gpu.driver_version) == ("Tesla V100-SXM2-16GB", "nvidia", "535.129.03")
    assert (gpu.device_id, gpu.node, gpu.usable) == (None, "/dev/nvidia2", True)


@pytest.mark.parametrize(
    ("vendor", "product", "expected"),
    [
        ("LENOVO", "21MM", ("LENOVO", "21MM")),
        ("System manufacturer", "To be filled by O.E.M.", ("ASUSTeK", "PRIME")),
        ("", "", ("ASUSTeK", "PRIME")),
    ],
)
def test_a_box_without_a_name_has_its_mainboards(tmp_path, vendor, product, expected):
    dmi = "sys/class/dmi/id"
    write(tmp_path, {f"{dmi}/sys_vendor": vendor, f"{dmi}/product_name": product})
    write(tmp_path, {f"{dmi}/board_vendor": "ASUSTeK\n", f"{dmi}/board_name": "PRIME\n"})
    board = probe(tmp_path).board
    assert (board.vendor, board.model) == expected


# NVIDIA's management library

NVML = r"""
#include <string.h>
typedef struct { unsigned long long total, free, used; } memory_t;
typedef struct { char legacy[16]; unsigned domain, bus, device, pci_id, subsystem_id; char bus_id[32]; } pci_t;
int nvmlInit_v2(void) { return 0; }
int nvmlSystemGetDriverVersion(char *to, unsigned size) { strncpy(to, "580.95.05", size); return 0; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = 3; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **gpu) {
    *gpu = (void *)(0x7f0000000000UL + index);
    return index == 1 ? 15 : 0;  /* the second is lost */
}
static int shared(void *gpu) { return (unsigned long)gpu & 2; }
int nvmlDeviceGetName(void *gpu, char *to, unsigned size) {
    strncpy(to, shared(gpu) ? "NVIDIA GB10" : "NVIDIA H200", size); return 0;
}
int nvmlDeviceGetMemoryInfo(void *gpu, memory_t *to) { to->total = 150754820096ULL; return shared(gpu) ? 3 : 0; }
int nvmlDeviceGetPciInfo_v3(void *gpu, pci_t *to) { to->pci_id = 0x233510deu; return shared(gpu) ? 999 : 0; }
int nvmlDeviceGetMinorNumber(void *gpu, unsigned *to) { *to = 5; return shared(gpu) ? 3 : 0; }
int nvmlDeviceGetCudaComputeCapability(void *gpu, int *major, int *minor) { *major = 9; *minor = 0; return 0; }
"""


@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler (cc) to build a library with")
def test_the_management_library_is_asked_in_a_child(tmp_path):
    """Name, memory, capability, PCI device and device file of each GPU it has; a lost one is left out."""
    (tmp_path / "nvml.c").write_text(NVML)
    library = tmp_path / "libnvidia-ml.so.1"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, tmp_path / "nvml.c"], check=True, timeout=60)
    program = (sys.executable, "-I", "-S", str(nvidia.NVML_PROGRAM), str(library))
    device(tmp_path, "0000:01:00.0", "0x10de", "0x2335", pci_class="0x030200")
    card, shared = nvidia.gpus(tmp_path, lambda: nvidia.ask_nvml(program, patience_s=30))
    assert (card.name, card.generation, card.memory_bytes) == ("NVIDIA H200", "sm_90", 150_754_820_096)
    assert (card.device_id, card.node, card.driver_version) == ("0x2335", "/dev/nvidia5", "580.95.05")
    assert not card.shares_memory
    assert (shared.name, shared.memory_bytes, shared.shares_memory) == ("NVIDIA GB10", None, True)
    assert (shared.device_id, shared.node) == (None, None)


def answer(program, patience_s=30.0):
    return nvidia.ask_nvml((sys.executable, "-c", program), patience_s=patience_s)


def test_a_library_that_hangs_is_left_behind():
    """The child is killed, which would never end by itself, and the driver's files answer in its place."""
    assert answer("import threading; threading.Event().wait()", patience_s=0.2) is None


@pytest.mark.parametrize("program", ["raise SystemExit(1)", "print('no json')", "import os; os.abort()"])
def test_a_library_that_fails_says_nothing(program):
    assert answer(program) is None


def test_no_library_and_no_python(tmp_path):
    """The usual case of a machine without it, and one whose interpreter cannot be started again."""
    program = (sys.executable, "-I", "-S", str(nvidia.NVML_PROGRAM), str(tmp_path / "libnvidia-ml.so.1"))
    assert nvidia.ask_nvml(program, patience_s=30) is None
    assert nvidia.ask_nvml((str(tmp_path / "python"),)) is None


def test_without_a_gpu_nobody_is_asked(tmp_path):
    assert nvidia.gpus(tmp_path, lambda: pytest.fail("a child was started for nothing")) == ()


def test_a_jetsons_gpu_is_one_though_it_is_also_on_a_bus(tmp_path):
    """Thor lists its own GPU on the PCI bus; a card beside it is a second one."""
    write(tmp_path, {"proc/device-tree/compatible": "nvidia,p3971-0080\0nvidia,tegra264\0"})
    device(tmp_path, "0000:01:00.0", "0x10de", "0x2b00")
    assert [each.name for each in nvidia.gpus(tmp_path, nvidia.no_nvml)] == ["Thor"]
    device(tmp_path, "0005:01:00.0", "0x10de", "0x2684")
    assert [each.device_id for each in nvidia.gpus(tmp_path, nvidia.no_nvml)] == [None, "0x2684"]


# Odd, slow and sick files


def fifo(path):
    os.mkfifo(path)


def folder(path):
    path.mkdir()


def loop(path):
    path.symlink_to(path.name)


def noise(path):
    path.write_bytes(bytes(range(256)) * 400 + b"\nprocessor: 0\nDRIVER=\xff\n")


def huge(path):
    with path.open("wb") as file:
        file.truncate(10 * 2**30)


def secret(path):
    path.touch(0o000)


@pytest.mark.parametrize("odd", [fifo, folder, loop, noise, huge, secret])
@pytest.mark.parametrize("name", ["meteor-lake-laptop", "nvidia-server", "snapdragon-x-laptop"])
def test_odd_things_in_place_of_every_file(name, odd, tmp_path):
    """None of them raises, waits or is waited for; a file as long as 10 GiB is read in its beginning only."""
    root = build(name, tmp_path)
    for path in [path for path in root.rglob("*") if path.is_file() and not path.is_symlink()]:
        if path.name not in {"vendor", "device"}:  # or nothing else would be looked at
            path.unlink()
            odd(path)
    found = probe(root, patience_s=30)
    assert not found.late
    assert found.cpu.granted_cores >= 1
    assert len(found.accelerators) == {"meteor-lake-laptop": 2, "nvidia-server": 1, "snapdragon-x-laptop": 1}[name]


@pytest.mark.parametrize(
    ("held", "late"),
    [
        ("proc/meminfo", ("memory",)),
        ("proc/cpuinfo", ("cpu",)),
        ("proc/sys/kernel/osrelease", ("kernel",)),
        ("proc/device-tree/compatible", ("board", "nvidia")),
        ("mem_info_vram_total", ("gpus",)),
        ("vbnv", ("npus",)),
    ],
)
def test_a_file_that_never_answers_delays_its_part_only(held, late, tmp_path, monkeypatch):
    """A read of a sick driver's file can block for ever; its part is unknown and named, the rest is told."""
    released, read = threading.Event(), files.text

    def text(path):
        if path.as_posix().endswith(held):
            released.wait(30)
        return read(path)

    monkeypatch.setattr(files, "text", text)
    root = build("ryzen-ai-laptop", tmp_path)
    whole = probe(root, patience_s=1.0)
    released.set()
    assert whole.late == late
    assert (whole.cpu.model is None) == ("cpu" in late)
    kinds = [each.kind for each in whole.accelerators]
    assert kinds == [kind for kind, part in ((Kind.GPU, "gpus"), (Kind.NPU, "npus")) if part not in late]


def test_only_regular_files_are_read_and_only_their_beginning(tmp_path):
    """What waits in a pipe stays there for whom it is meant; a file's end may be anywhere."""
    os.mkfifo(tmp_path / "pipe")
    pipe = os.open(tmp_path / "pipe", os.O_RDWR)
    try:
        os.write(pipe, b"secret")
        assert files.text(tmp_path / "pipe") is None
        assert os.read(pipe, 100) == b"secret"
    finally:
        os.close(pipe)
    (tmp_path / "long").write_bytes(b"x" * (files.READ_BYTES + files.PIECE_BYTES + 1))
    assert len(files.text(tmp_path / "long")) == files.READ_BYTES


def test_our_own_mistakes_are_not_hidden(tmp_path, monkeypatch):
    """An error that is no odd file comes out of the probe as it is."""
    monkeypatch.setattr(files, "fields", lambda _: 1 / 0)
    write(tmp_path, {"proc/meminfo": "MemTotal: 1 kB\n"})
    with pytest.raises(ZeroDivisionError):
        probe(tmp_path)


def test_a_machine_without_proc_and_sys():
    """As on macOS: nothing is known, one thread is granted."""
    found = probe(Path("/nonexistent"))
    assert (found.cpu.granted_cores, found.accelerators, found.late) == (1, (), ())


# The memory's bandwidth

CPU = Cpu(None, None, None, None, None, None, granted_cores=2)
GIB = 2**30


def memory(available_bytes, room_bytes=None):
    return Memory(None, available_bytes, swap_bytes=None, limit_bytes=None, room_bytes=room_bytes)


def test_bandwidth_is_measured_when_asked(tmp_path):
    """More than a hundredth and less than a hundred times what memory of these years does."""
    write(tmp_path, {"proc/meminfo": "MemAvailable: 4194304 kB\n"})
    assert probe(tmp_path).memory.bandwidth_bytes_per_s is None
    assert 1e8 < probe(tmp_path, measure_bandwidth=True).memory.bandwidth_bytes_per_s < 1e13


@pytest.mark.parametrize(
    ("free", "l3_kib"),
    [
        (memory(None), 0),
        (memory(128 * 2**20), 0),
        (memory(8 * GIB), 600 * 1024),
        (memory(8 * GIB, room_bytes=12 * 2**20), 0),
    ],
)
def test_nothing_is_measured_where_it_would_not_be_true_or_not_fit(tmp_path, free, l3_kib):
    """Unknown memory, too little, more caches than a buffer may exceed, or a cgroup that is nearly full."""
    write(tmp_path, {"sys/devices/system/cpu/cpu0/cache/index3/size": f"{l3_kib}K\n", "proc/self/cgroup": "0::/\n"})
    assert bandwidth.measure(tmp_path, CPU, free) is None


def test_caches_are_counted_once_however_many_share_them(tmp_path):
    for number in range(4):
        cache = f"sys/devices/system/cpu/cpu{number}/cache"
        sharing = f"{number // 2 * 2}-{number // 2 * 2 + 1}"
        write(tmp_path, {f"{cache}/index0/size": "32K\n", f"{cache}/index0/shared_cpu_list": f"{number}\n"})
        write(tmp_path, {f"{cache}/index3/size": "1024K\n", f"{cache}/index3/shared_cpu_list": f"{sharing}\n"})
    assert bandwidth.cache_bytes(tmp_path) == 2 * 2**20


# Speed, and this very machine


def test_the_probe_of_this_machine_is_quick():
    """Well below 300 ms; the best of five, for a machine that is busy with other things."""

    def took_s():
        began_s = time.perf_counter()
        probe()
        return time.perf_counter() - began_s

    assert min(took_s() for _ in range(5)) < 0.3


def test_a_probe_can_be_printed_whole(tmp_path):
    """`python -m hardware` names what is in lists of things by its number."""
    program = (
        "import runpy, sys; from functools import partial; from pathlib import Path; import hardware.probe as p; "
        "p.probe = partial(p.probe, Path(sys.argv.pop(1))); runpy.run_module('hardware', run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(build("meteor-lake-laptop", tmp_path))],
        capture_output=True,
        check=True,
        text=True,
        timeout=60,
    )
    lines = dict(line.split(": ", 1) for line in done.stdout.splitlines())
    assert json.loads(lines["accelerators.1.generation"]) == "Meteor Lake"
    assert json.loads(lines["cpu.flags"]) == ["avx2", "avx_vnni"]
