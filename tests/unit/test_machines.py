"""The probe on the trees of tests/machines: for each the exact machine, and what no file tells is unknown."""

import pytest

from hardware.machine import Accelerator, Board, Cpu, Kind, Machine, Memory, Vendor
from hardware.probe import probe
from tests.machines import build, entries, names, outsider

NOBODY = Board(vendor=None, model=None, compatible=())
NO_MEMORY = Memory(total_bytes=None, available_bytes=None, swap_bytes=None, limit_bytes=None)
NO_CPU = Cpu(
    model=None,
    architecture=None,
    physical_cores=None,
    logical_cpus=None,
    flags=None,
    quota_cores=None,
    granted_cores=1,
)


def cpu(model, architecture, physical_cores, logical_cpus, flags, granted_cores, quota_cores=None):
    return Cpu(
        model=model,
        architecture=architecture,
        physical_cores=physical_cores,
        logical_cpus=logical_cpus,
        flags=flags,
        quota_cores=quota_cores,
        granted_cores=granted_cores,
    )


def machine(board=NOBODY, processors=NO_CPU, memory=NO_MEMORY, accelerators=(), kernel=None):
    return Machine(board=board, cpu=processors, memory=memory, accelerators=accelerators, kernel=kernel)


METEOR_LAKE_GPU = {
    "kind": Kind.GPU,
    "vendor": Vendor.INTEL,
    "name": "Meteor Lake-P [Intel Arc Graphics]",
    "generation": "Meteor Lake",
    "device_id": "0x7d55",
    "driver": "i915",
    "node": "/dev/dri/renderD128",
    "usable": False,
    "shares_memory": True,
}
METEOR_LAKE_NPU = {
    "kind": Kind.NPU,
    "vendor": Vendor.INTEL,
    "name": "Meteor Lake",
    "generation": "Meteor Lake",
    "device_id": "0x7d1d",
    "driver": "intel_vpu",
    "node": "/dev/accel/accel0",
    "usable": False,
    "shares_memory": True,
}
ZEN_5_FLAGS = ("avx2", "avx512_bf16", "avx512_vnni", "avx512bw", "avx_vnni")

EXPECTED = {
    "arc-a770-box": machine(
        accelerators=(
            Accelerator(
                kind=Kind.GPU,
                vendor=Vendor.INTEL,
                name="DG2 [Arc A770]",
                generation="Alchemist",
                device_id="0x56a0",
                driver="i915",
                node="/dev/dri/renderD128",
                usable=True,
            ),
        ),
    ),
    "epyc-vm-recorded": machine(
        processors=cpu("AMD EPYC", "x86_64", 2, 2, ZEN_5_FLAGS, 2),
        memory=Memory(total_bytes=25_276_502_016, available_bytes=24_821_489_664, swap_bytes=0, limit_bytes=None),
        kernel="6.18.44",
    ),
    "jetson-orin-nano": machine(
        board=Board(
            vendor=None,
            model="NVIDIA Orin Nano Developer Kit",
            compatible=(
                "nvidia,p3768-0000+p3767-0003",
                "nvidia,p3768-0000+p3767-0005",
                "nvidia,p3767-0003",
                "nvidia,p3767-0005",
                "nvidia,tegra234",
                "nvidia,tegra23x",
            ),
        ),
        processors=cpu("Cortex-A78AE", "aarch64", 6, 6, ("asimddp", "asimdhp"), 6),
        accelerators=(
            Accelerator(
                kind=Kind.GPU,
                vendor=Vendor.NVIDIA,
                name="Orin",
                generation="tegra234",
                driver="nvgpu",
                driver_version="35.3.1",
                node="/dev/nvhost-ctrl-gpu",
                usable=False,
                mend="sudo usermod -aG video pi",
                shares_memory=True,
            ),
        ),
        kernel="5.10.104-tegra",
    ),
    "limited-container": machine(
        processors=cpu("Intel(R) Core(TM) Ultra 7 155H", "x86_64", 16, 22, ("avx2", "avx_vnni"), 1, quota_cores=1.5),
        memory=Memory(
            total_bytes=None, available_bytes=None, swap_bytes=None, limit_bytes=2 * 2**30, room_bytes=2 * 2**30
        ),
        accelerators=(
            Accelerator(**METEOR_LAKE_GPU, mend="docker run --device=/dev/dri/renderD128"),
            Accelerator(**METEOR_LAKE_NPU, mend="docker run --device=/dev/accel/accel0"),
        ),
        kernel="6.8.0-35-generic",
    ),
    "lunar-lake-laptop": machine(
        processors=cpu("Intel(R) Core(TM) Ultra 7 268V", "x86_64", 8, 8, ("avx2", "avx_vnni"), 8),
        accelerators=(
            Accelerator(
                kind=Kind.GPU,
                vendor=Vendor.INTEL,
                name="Lunar Lake",
                generation="Lunar Lake",
                device_id="0x64a0",
                driver="xe",
                node="/dev/dri/renderD128",
                usable=True,
                shares_memory=True,
            ),
            Accelerator(
                kind=Kind.NPU,
                vendor=Vendor.INTEL,
                name="Lunar Lake",
                generation="Lunar Lake",
                device_id="0x643e",
                driver="intel_vpu",
                node="/dev/accel/accel0",
                usable=False,
                mend="sudo chown root:render /dev/accel/accel0 && sudo chmod g+rw /dev/accel/accel0"
                " && sudo usermod -aG render pi",
                shares_memory=True,
            ),
        ),
    ),
    "meteor-lake-laptop": machine(
        processors=cpu("Intel(R) Core(TM) Ultra 7 155H", "x86_64", 16, 22, ("avx2", "avx_vnni"), 16),
        accelerators=(
            Accelerator(**METEOR_LAKE_GPU, mend="sudo usermod -aG render pi"),
            Accelerator(**METEOR_LAKE_NPU, mend="sudo usermod -aG render pi"),
        ),
        kernel="6.8.0-35-generic",
    ),
    "nvidia-server": machine(
        accelerators=(
            Accelerator(
                kind=Kind.GPU,
                vendor=Vendor.NVIDIA,
                name="NVIDIA A10G",
                device_id="0x2237",
                driver="nvidia",
                node="/dev/nvidia3",
                usable=True,
            ),
        ),
    ),
    "plain-vm": machine(
        board=Board(vendor="QEMU", model="Standard PC (Q35 + ICH9, 2009)", compatible=()),
        processors=cpu("QEMU Virtual CPU version 2.5+", None, 2, 2, None, 2),
    ),
    "raspberry-pi-5": machine(
        board=Board(
            vendor=None,
            model="Raspberry Pi 5 Model B Rev 1.0",
            compatible=("raspberrypi,5-model-b", "brcm,bcm2712"),
        ),
        processors=cpu("Cortex-A76", "aarch64", 4, 4, ("asimddp", "asimdhp"), 4),
    ),
    "ryzen-ai-laptop": machine(
        processors=cpu("AMD Ryzen AI 9 HX 370 w/ Radeon 890M", "x86_64", 12, 24, ZEN_5_FLAGS, 12),
        accelerators=(
            Accelerator(
                kind=Kind.GPU,
                vendor=Vendor.AMD,
                name="Strix [Radeon 880M / 890M]",
                generation="Strix Point",
                device_id="0x150e",
                driver="amdgpu",
                node="/dev/dri/renderD128",
                usable=False,
                mend="sudo usermod -aG render pi",
                shares_memory=True,
            ),
            Accelerator(
                kind=Kind.NPU,
                vendor=Vendor.AMD,
                name="RyzenAI-npu4",
                generation="XDNA2",
                device_id="0x17f0",
                driver="amdxdna",
                node="/dev/accel/accel0",
                usable=False,
                mend="sudo usermod -aG render pi",
                shares_memory=True,
            ),
        ),
    ),
    "snapdragon-x-laptop": machine(
        board=Board(
            vendor=None,
            model="Lenovo ThinkPad T14s Gen 6 (OLED)",
            compatible=("lenovo,thinkpad-t14s-oled", "lenovo,thinkpad-t14s", "qcom,x1e78100", "qcom,x1e80100"),
        ),
        processors=cpu("Oryon", "aarch64", 12, 12, ("asimddp", "asimdhp", "bf16", "i8mm"), 12),
        accelerators=(
            Accelerator(
                kind=Kind.GPU,
                vendor=Vendor.QUALCOMM,
                name="Adreno",
                generation="X Elite",
                driver="msm_dpu",
                node="/dev/dri/renderD128",
                usable=False,
                mend="sudo usermod -aG render pi",
                shares_memory=True,
            ),
            Accelerator(
                kind=Kind.NPU,
                vendor=Vendor.QUALCOMM,
                name="Hexagon",
                generation="X Elite",
                driver="fastrpc",
                node="/dev/fastrpc-cdsp",
                usable=True,
                shares_memory=True,
            ),
        ),
    ),
}


@pytest.mark.parametrize("name", names())
def test_machine(name, tmp_path):
    """What the probe says of a machine is exactly this, for a user in no group."""
    assert probe(build(name, tmp_path), opener=outsider()) == EXPECTED[name]


@pytest.mark.parametrize("name", names())
def test_every_file_of_a_tree_may_be_missing(name, tmp_path):
    """Without any one of its files a machine is still told of, and never as a bigger one."""
    root = build(name, tmp_path)
    whole = probe(root, opener=outsider())
    for path in [root / entry["path"] for entry in entries(name)]:
        aside = root / "aside"
        path.rename(aside)
        less = probe(root, opener=outsider())
        assert len(less.accelerators) <= len(whole.accelerators)
        assert less.cpu.logical_cpus in {whole.cpu.logical_cpus, None}
        assert not less.late
        aside.rename(path)


def test_a_new_group_counts_from_the_next_session(tmp_path):
    """Who was put into the group already needs no second usermod."""
    found = probe(build("meteor-lake-laptop", tmp_path), opener=outsider(groups=["render"]))
    assert {each.mend for each in found.accelerators} == {"newgrp render"}


def test_a_node_passed_into_a_container_needs_its_group_there(tmp_path):
    root = build("limited-container", tmp_path)
    (root / "dev/accel").mkdir(parents=True)
    (root / "dev/accel/accel0").touch()
    (root / "dev/accel/accel0").chmod(0o660)
    npu = probe(root, opener=outsider()).accelerators[1]
    assert npu.mend == "docker run --device=/dev/accel/accel0 --group-add=render"


def test_of_several_dsp_nodes_one_that_may_be_opened_is_enough(tmp_path):
    root = build("snapdragon-x-laptop", tmp_path)
    (root / "dev/fastrpc-cdsp1").touch()
    (root / "dev/fastrpc-cdsp1").chmod(0o666)
    (root / "dev/fastrpc-cdsp").chmod(0o600)
    npu = probe(root, opener=outsider()).accelerators[1]
    assert (npu.node, npu.usable) == ("/dev/fastrpc-cdsp1", True)
