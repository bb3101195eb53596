"""What every known machine would run, with 4, 8, 16 and 64 GB, and the settings its library gets."""

from dataclasses import replace
from pathlib import Path

import pytest

from edge_agent.models import catalogue
from edge_agent.models.choose import WantedModel, choose
from edge_agent.models.runtimes import presumed
from hardware.probe import probe
from tests.machines import build, names, outsider

GIB = 2**30
SYSTEM_BYTES = 768 * 2**20
"""What the system holds of the memory."""
CATALOGUE = catalogue.read()
LONGEST = 4096

GROUPS = {"DYNAMIC_QUANTIZATION_GROUP_SIZE": "128"}
ON_CPU = {
    4: ("openvino-int4", "cpu", 3239, GROUPS),
    8: ("openvino-int4", "cpu", LONGEST, GROUPS),
    16: ("openvino-int4", "cpu", LONGEST, GROUPS),
    64: ("openvino-int4", "cpu", LONGEST, GROUPS),
}
ON_ARM = ON_CPU | dict.fromkeys((8, 16, 64), ("onnx-cpu-int4", "cpu", LONGEST, {}))
"""With 4 GB the smaller build is the only one that fits; with more, the one whose kernels are made for Arm."""
EXPECTED = {
    "arc-a770-box": dict.fromkeys((4, 8, 16, 64), ("openvino-fp16", "gpu", LONGEST, {})),
    "epyc-vm-recorded": ON_CPU,
    "jetson-orin-nano": ON_ARM | dict.fromkeys((8, 16, 64), ("onnx-gpu-int4", "cuda", LONGEST, {})),
    "limited-container": dict.fromkeys((4, 8, 16, 64)),
    "lunar-lake-laptop": ON_CPU | dict.fromkeys((8, 16, 64), ("openvino-int8", "gpu", LONGEST, {})),
    "meteor-lake-laptop": ON_CPU | dict.fromkeys((8, 16, 64), ("openvino-int4", "gpu", LONGEST, {})),
    "nvidia-server": dict.fromkeys((4, 8, 16, 64), ("onnx-gpu-int4", "cuda", LONGEST, {})),
    "plain-vm": ON_CPU,
    "raspberry-pi-5": ON_ARM,
    "ryzen-ai-laptop": ON_CPU,
    "snapdragon-x-laptop": ON_ARM,
}
REASONS = {
    ("raspberry-pi-5", 4): {("onnx-cpu-int4", "cpu"): "needs 3630 MiB with the shortest context, 3328 MiB are free"},
    ("limited-container", 64): {
        ("openvino-int4", "cpu"): "needs 2573 MiB with the shortest context, 2048 MiB are free",
    },
    ("meteor-lake-laptop", 16): {
        ("openvino-npu-int4-gq", "npu"): (
            "made for Lunar Lake, Panther Lake, Wildcat Lake; this Intel NPU is Meteor Lake"
        ),
        ("onnx-gpu-int4", "cuda"): "this machine has no NVIDIA GPU",
    },
    ("ryzen-ai-laptop", 16): {
        ("ryzenai-int4", "npu"): (
            "this version has no ryzenai backend for npu: for AMD's own Ryzen AI runtime, which is not on the package "
            "index"
        ),
    },
    ("snapdragon-x-laptop", 16): {
        ("qualcomm-w4a16", "qnn"): (
            "this version has no genie backend for qnn: context binaries per chip for Qualcomm's own Genie runtime"
        ),
    },
}


@pytest.fixture(scope="module")
def decide(tmp_path_factory):
    """Decides for a machine whose device files may be opened, with so much memory and every library installed."""
    probed = {}

    def decide(name, gib):
        if name not in probed:
            may_open = replace(outsider(), may_open=Path.exists)
            probed[name] = probe(build(name, tmp_path_factory.mktemp(name)), opener=may_open)
        there = probed[name]
        memory = replace(there.memory, total_bytes=gib * GIB, available_bytes=gib * GIB - SYSTEM_BYTES)
        there = replace(there, memory=memory)
        return choose(WantedModel("phi-3.5-mini"), machine=there, catalogue=CATALOGUE, runtimes=presumed(there))

    return decide


def test_every_machine_is_in_the_table():
    """A new tree needs a decision."""
    assert set(EXPECTED) == set(names())


@pytest.mark.parametrize("gib", [4, 8, 16, 64])
@pytest.mark.parametrize("name", names())
def test_the_decision_is_the_one_in_the_table(decide, name, gib):
    """Build, device, context and the library's settings; and never more than there is."""
    decision = decide(name, gib)
    best = next(iter(decision.candidates), None)
    found = best and (
        best.variant.name.removeprefix("phi-3.5-mini-"),
        best.device,
        best.context_tokens,
        dict(best.options),
    )
    assert found == EXPECTED[name][gib]
    for each in decision.candidates:
        assert each.free_bytes is None or each.needed_bytes <= each.free_bytes


@pytest.mark.parametrize(("name", "gib"), REASONS)
def test_what_is_turned_down_has_the_reason_in_the_table(decide, name, gib):
    """Memory, generation, absence, a runtime that this version lacks."""
    rejected = decide(name, gib).rejected
    found = {(each.variant.name.removeprefix("phi-3.5-mini-"), each.device): each.reason for each in rejected}
    for where, reason in REASONS[name, gib].items():
        assert found[where] == reason
