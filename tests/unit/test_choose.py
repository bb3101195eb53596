"""Which build runs where, and why every other does not."""

from dataclasses import replace

import pytest
from fakes import GIB, machine

from edge_agent.base.errors import Code, EdgeAgentError
from edge_agent.models import catalogue
from edge_agent.models.choose import Measurement, WantedModel, choose
from edge_agent.models.runtimes import Runtime, Runtimes, presumed
from hardware.machine import Accelerator, Kind, Vendor

CATALOGUE = catalogue.read()
MINI = "phi-3.5-mini"
BOTH = (Runtime("onnx", "cpu", "CPU"), Runtime("openvino", "cpu", "CPU"))
ARC = Accelerator(Kind.GPU, Vendor.INTEL, "Arc A770", usable=True, memory_bytes=16 * GIB)
NPU = Accelerator(Kind.NPU, Vendor.INTEL, "NPU", generation="Meteor Lake", usable=True, shares_memory=True)
NVIDIA = Accelerator(Kind.GPU, Vendor.NVIDIA, "NVIDIA L4", usable=True, memory_bytes=24 * GIB)


def decide(there=None, *, offered=BOTH, missing=None, model=MINI, installed=(), measured=None, **wanted):
    return choose(
        WantedModel(model, **wanted),
        machine=there or machine(),
        catalogue=CATALOGUE,
        runtimes=Runtimes(tuple(offered), missing or {}),
        installed=installed,
        measured=measured,
    )


def order(decision):
    return [(each.variant.name.removeprefix("phi-3.5-mini-"), each.device) for each in decision.candidates]


def reason(decision, variant, device):
    (found,) = (
        each.reason for each in decision.rejected if (each.variant.name, each.device) == (f"{MINI}-{variant}", device)
    )
    return found


def test_every_build_and_device_of_the_model_is_accounted_for():
    """Each is a candidate or turned down, once."""
    decision = decide()
    judged = [(each.variant.name, each.device) for each in (*decision.candidates, *decision.rejected)]
    assert sorted(judged) == sorted((each.name, on) for each in CATALOGUE.builds_of(MINI) for on in each.devices)
    assert all(each.reason for each in decision.rejected)


def test_where_memory_is_slow_the_fastest_wins():
    """None of them answers as fast as people need, so quality must wait."""
    decision = decide(machine(bandwidth_gb_per_s=40))
    assert order(decision) == [
        ("openvino-int4", "cpu"),
        ("onnx-cpu-int4", "cpu"),
        ("openvino-int8", "cpu"),
        ("openvino-fp16", "cpu"),
    ]
    first, second, *_ = decision.candidates
    assert first.tokens_per_s == pytest.approx(40e9 * 0.8 / 2.08e9)
    assert second.behind == "slower (12.9 after 15.4 tokens/s)"


def test_where_memory_is_fast_the_best_wins():
    """All that are fast enough come by quality, the others after them by speed."""
    decision = decide(machine(bandwidth_gb_per_s=120))
    assert order(decision)[:2] == [("openvino-int8", "cpu"), ("onnx-cpu-int4", "cpu")]
    assert decision.candidates[1].behind == "lower quality (int4 awq after int8)"
    assert order(decision)[-1] == ("openvino-fp16", "cpu")
    assert decision.candidates[-1].behind == "slower than 20 tokens/s"


def test_without_a_known_speed_the_smallest_weights_come_first():
    """They are read for every token."""
    decision = decide(machine(bandwidth_gb_per_s=None))
    assert order(decision)[0] == ("openvino-int4", "cpu")
    assert decision.candidates[0].tokens_per_s is None
    assert decision.candidates[1].behind == "slower by the size of its weights"


def test_what_holds_everything_asked_for_comes_before_what_must_be_cut():
    """Better quality with a third of the context is not what was wanted."""
    decision = decide(machine(4.9, bandwidth_gb_per_s=200))
    assert order(decision)[0] == ("openvino-int4", "cpu")
    cut = next(each for each in decision.candidates if each.variant.name.endswith("onnx-cpu-int4"))
    assert cut.context_tokens < 4096
    assert cut.notes == (f"memory holds {cut.context_tokens} of 4096 tokens of context",)


def test_lanes_that_do_not_fit_are_said():
    """The context is kept."""
    decision = decide(machine(9), offered=BOTH[:1], parallel=8)
    assert decision.candidates[0].context_tokens == 4096
    assert decision.candidates[0].notes == (f"memory holds {decision.candidates[0].parallel} of 8 lanes",)


def test_what_does_not_fit_is_turned_down_with_the_numbers():
    """Also under a cgroup's limit, whatever the machine has."""
    decision = decide(machine(64, limit_gib=2))
    assert decision.candidates == ()
    assert reason(decision, "onnx-cpu-int4", "cpu").endswith("MiB with the shortest context, 2048 MiB are free")


def test_a_measurement_beats_an_expectation_and_brings_its_settings():
    """It was seen on this very machine."""
    measured = {(f"{MINI}-onnx-cpu-int4", "cpu"): Measurement(22.5, {"session.x": "1"}, 2)}
    decision = decide(machine(bandwidth_gb_per_s=40), measured=measured)
    best = decision.candidates[0]
    assert (best.variant.name, best.tokens_per_s, best.measured) == (f"{MINI}-onnx-cpu-int4", 22.5, True)
    assert (best.options, best.threads) == ({"session.x": "1"}, 2)
    assert decision.candidates[1].behind == "slower than 20 tokens/s"


def test_a_card_is_used_when_it_is_there_and_may_be_opened():
    """With its own memory as the bound."""
    offered = (*BOTH, Runtime("openvino", "gpu", "Arc A770", 16 * GIB))
    decision = decide(machine(accelerators=(ARC,), bandwidth_gb_per_s=40), offered=offered)
    assert order(decision)[0] == ("openvino-fp16", "gpu")
    assert decision.candidates[0].free_bytes == 16 * GIB
    assert {each.free_bytes for each in decision.candidates if each.device == "cpu"} == {
        machine().memory.available_bytes
    }
    small = replace(ARC, memory_bytes=6 * GIB)
    assert "6144 MiB of the gpu's own are free" in reason(
        decide(machine(accelerators=(small,)), offered=offered), "openvino-fp16", "gpu"
    )


def test_an_accelerator_in_the_processors_chip_takes_the_machines_memory():
    """What the library calls its memory is not its own."""
    chip = replace(ARC, memory_bytes=None, shares_memory=True)
    offered = (*BOTH, Runtime("openvino", "gpu", "Arc 140V", 16 * GIB))
    decision = decide(machine(2, accelerators=(chip,)), offered=offered, device="gpu")
    assert decision.candidates == ()
    assert "2048 MiB are free" in reason(decision, "openvino-int4", "gpu")


@pytest.mark.parametrize(
    ("accelerators", "variant", "device", "said"),
    [
        ((), "onnx-gpu-int4", "cuda", "this machine has no NVIDIA GPU"),
        ((), "openvino-npu-int4-cw", "npu", "this machine has no Intel NPU"),
        ((ARC,), "openvino-int4", "gpu", "the library of openvino sees no gpu; sudo apt install intel-opencl-icd"),
        (
            (NVIDIA,),
            "onnx-gpu-int4",
            "cuda",
            (
                "the library of onnx sees no cuda; install the extra [cuda] in place of [cpu], and NVIDIA's driver for "
                "CUDA 13"
            ),
        ),
        (
            (NPU,),
            "openvino-npu-int4-gq",
            "npu",
            "made for Lunar Lake, Panther Lake, Wildcat Lake; this Intel NPU is Meteor Lake",
        ),
    ],
)
def test_an_accelerator_that_cannot_be_used_is_said_with_what_mends_it(accelerators, variant, device, said):
    """The reader learns what to install or that there is nothing to hope for."""
    assert reason(decide(machine(accelerators=accelerators)), variant, device) == said


def test_a_device_file_that_is_closed_to_us_is_said_with_the_command():
    """The library would only say that it sees nothing."""
    closed = Accelerator(
        Kind.NPU,
        Vendor.INTEL,
        "NPU",
        generation="Meteor Lake",
        node="/dev/accel/accel0",
        usable=False,
        mend="sudo usermod -aG render edge-agent",
    )
    decision = decide(machine(accelerators=(closed, replace(closed, node="/dev/accel/accel1"))))
    assert reason(decision, "openvino-npu-int4-cw", "npu") == (
        "the Intel NPU is there but /dev/accel/accel0 may not be opened; sudo usermod -aG render edge-agent"
    )


def test_an_npu_takes_the_build_made_for_it_one_answer_at_a_time():
    """Where it is asked for, or nothing else is there; by itself it is slower than the processor beside it."""
    there, offered = machine(accelerators=(NPU,)), (*BOTH, Runtime("openvino", "npu", "NPU"))
    (found,) = decide(there, offered=offered, device="npu", parallel=4).candidates
    assert (found.variant.name, found.device, found.parallel) == (f"{MINI}-openvino-npu-int4-cw", "npu", 1)
    assert found.notes == ("this build takes 1 at once",)
    assert ("openvino-npu-int4-cw", "npu") in order(decide(there, offered=offered))
    found = reason(decide(there, offered=BOTH), "openvino-npu-int4-cw", "npu")
    assert found.startswith("the library of openvino sees no npu; install Intel's Linux NPU driver")


AMD = Accelerator(Kind.GPU, Vendor.AMD, "Radeon", usable=True, memory_bytes=16 * GIB)


def test_a_plugin_is_used_where_it_is_installed_and_never_presumed():
    """On anybody's GPU; what it takes is said where it is not."""
    there, offered = machine(accelerators=(AMD,)), (*BOTH, Runtime("onnx", "webgpu", "AMD"))
    assert ("onnx-gpu-int4", "webgpu") in order(decide(there, offered=offered))
    assert "onnxruntime's plugin" in reason(decide(there), "onnx-gpu-int4", "webgpu")
    assert reason(decide(), "onnx-gpu-int4", "webgpu") == "this machine has no GPU"
    assert {each.device for each in presumed(there).offered} == {"cpu"}


def test_a_build_that_only_a_path_can_serve_says_so():
    """The backend is there, and nothing is fetched for it."""
    (turned_down,) = decide(model="phi-3.5-moe-gguf-q4-k-m").rejected
    said = "llamacpp runs what is put there: name a file or folder by path in a models.serve table"
    assert turned_down.reason == said


def test_a_library_that_is_missing_says_how_to_get_it():
    """In the words of whoever looked for it."""
    missing = {"openvino": "openvino_genai is not installed; install it with: pip install …"}
    assert reason(decide(offered=BOTH[:1], missing=missing), "openvino-int4", "cpu") == missing["openvino"]


def test_what_is_asked_for_is_obeyed():
    """A backend, a device, one very build."""
    assert {each.variant.backend for each in decide(backend="openvino").candidates} == {"openvino"}
    assert decide(device="npu").candidates == ()
    assert order(decide(model=f"{MINI}-openvino-int8")) == [("openvino-int8", "cpu")]


def test_what_the_catalogue_does_not_have_is_said_with_the_nearest():
    """A typing error should cost no search."""
    with pytest.raises(EdgeAgentError, match=r"did you mean phi-3\.5-mini\?") as caught:
        decide(model="phi-3.5-mni")
    assert caught.value.code is Code.UNKNOWN_MODEL


def test_of_builds_equally_fast_the_better_comes_first():
    """Also when the other is here already: it is fetched once and answers for years."""
    measured = {(f"{MINI}-{name}", "cpu"): Measurement(10.0) for name in ("onnx-cpu-int4", "openvino-int4")}
    first, second, *_ = decide(measured=measured, installed={f"{MINI}-openvino-int4"}).candidates
    assert [each.variant.name for each in (first, second)] == [f"{MINI}-onnx-cpu-int4", f"{MINI}-openvino-int4"]
    assert (first.installed, second.installed) == (False, True)


def twin(name, **changed):
    (one,) = CATALOGUE.builds_of(f"{MINI}-onnx-cpu-int4")
    return one.model_copy(update={"name": name} | changed)


def decide_of(*variants, speeds=(), there=None, **more):
    return choose(
        WantedModel(MINI),
        machine=there or machine(),
        catalogue=CATALOGUE.model_copy(update={"variant": variants}),
        runtimes=Runtimes(BOTH, {}),
        measured={(each.name, "cpu"): Measurement(speed) for each, speed in zip(variants, speeds, strict=False)},
        **more,
    )


@pytest.mark.parametrize(
    ("speeds", "installed", "behind"),
    [
        ((30.0, 25.0), (), "slower (25 after 30 tokens/s)"),
        ((9.0, 8.0), (), "slower (8 after 9 tokens/s)"),
        ((9.0, 9.0), ("one",), "equal, but not installed"),
        ((9.0, 9.0), ("one", "two"), "equal"),
        ((9.0, 9.0), (), "equal"),
    ],
)
def test_builds_of_one_quality_differ_in_speed_then_in_being_there(speeds, installed, behind):
    decision = decide_of(twin("one"), twin("two"), speeds=speeds, installed=installed)
    assert [each.variant.name for each in decision.candidates] == ["one", "two"]
    assert decision.candidates[1].behind == behind


def test_among_slow_ones_quality_is_no_reason():
    """The one before it is faster, that is all."""
    worse = twin("worse", precision="int4", method="rtn")
    best, second = decide_of(worse, twin("better"), speeds=(9.0, 8.0)).candidates
    assert best.variant.quality < second.variant.quality
    assert second.behind == "slower (8 after 9 tokens/s)"
    best, second = decide_of(worse, twin("better", precision="int8", method=None), speeds=(9.0, 8.0)).candidates
    assert (best.variant.name, second.behind) == ("worse", "slower (8 after 9 tokens/s)")
    slower = decide_of(twin("better", precision="int8", method=None), worse, speeds=(9.0, 8.0)).candidates[1]
    assert slower.behind == "slower (8 after 9 tokens/s)"


@pytest.mark.parametrize(("note", "said"), [("", ""), ("for another program", ": for another program")])
def test_a_backend_that_is_not_here_is_said_with_the_builds_note(note, said):
    (turned_down,) = decide_of(twin("theirs", backend="theirs", devices=("cpu",), note=note)).rejected
    assert turned_down.reason == f"this version has no theirs backend for cpu{said}"


def test_a_build_with_less_context_than_is_wanted_says_so():
    decision = decide(model=f"{MINI}-openvino-int4", context_tokens=8192)
    assert decision.candidates[0].context_tokens == 4096
    assert decision.candidates[0].notes == ("this build takes 4096 tokens of context",)


def test_runtimes_presumed_of_a_machine_are_those_of_its_accelerators():
    """For planning: as if every driver and library were there."""
    offered = presumed(machine(accelerators=(ARC, NPU, NVIDIA))).offered
    assert {(each.backend, each.device) for each in offered} >= {
        ("onnx", "cpu"),
        ("onnx", "cuda"),
        ("openvino", "gpu"),
        ("openvino", "npu"),
    }


def test_beside_a_build_that_sees_memory_is_left_for_decoding_images():
    """Beside one for text none is."""
    for model, less in (("phi-3.5-vision", True), (MINI, False)):
        plain, leaving = (
            decide(machine(9), model=model, parallel=8, images_bytes=size).candidates[0].parallel for size in (0, 2**30)
        )
        assert (leaving < plain) == less
