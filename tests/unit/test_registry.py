"""The backends' records: whole, light, and asked for by name."""

import subprocess
import sys
from importlib.util import find_spec

import pytest
from fakes import machine

from edge_agent.base.errors import Code, EdgeAgentError
from edge_agent.engine import registry
from edge_agent.engine.facts import PLAIN, Axis, DeviceFacts
from hardware.machine import Accelerator, Kind, Vendor


@pytest.mark.parametrize("name", registry.names())
def test_what_a_record_names_is_there(name):
    """Looked for without importing it: its library may be absent."""
    facts = registry.facts_of(name)
    loads = [how.load for how in facts.devices.values()]
    for reference in filter(None, [facts.load, facts.guides, facts.sees, *loads]):
        module, function = reference.split(":")
        source = find_spec(module).loader.get_source(module)
        assert f"def {function}(" in source, reference
    assert bool(facts.libraries) == bool(facts.extra)
    for how in facts.devices.values():
        assert how.efficiency is None or (0 < how.efficiency <= 1 and facts.read is not None)


def test_the_records_load_no_library():
    """The agent and every command read them."""
    told = "import sys; from edge_agent.engine.registry import backends; backends(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, timeout=60, check=True)
    libraries = {each for facts in registry.backends().values() for each in facts.libraries} | {"numpy", "pydantic"}
    assert libraries.isdisjoint(done.stdout.split())


def test_a_name_nobody_knows_is_answered_with_the_nearest():
    """And with all there are."""
    assert registry.checked("onnx", registry.names()) == "onnx"
    with pytest.raises(ValueError, match="'opnvino' is unknown; did you mean openvino\\? there is: onnx, openvino"):
        registry.checked("opnvino", registry.names())
    with pytest.raises(ValueError, match="'x' is unknown; there is: onnx"):
        registry.checked("x", registry.names())
    with pytest.raises(EdgeAgentError, match="no backend 'x' in this version; there is: onnx, openvino") as caught:
        registry.facts_of("x")
    assert caught.value.code is Code.UNSUPPORTED


def test_of_a_device_that_nobody_knows_the_most_is_expected_to_be_held_and_nothing_is_chosen():
    assert registry.on("x", "cpu") == registry.on("onnx", "x") == DeviceFacts()
    assert (DeviceFacts().rates, DeviceFacts().efficiency) == (PLAIN, None)
    assert ("llamacpp", "cpu") not in registry.driven()
    assert {"cpu", "cuda", "npu", "qnn"} <= set(registry.devices())
    assert len(set(registry.devices())) == len(registry.devices())


@pytest.mark.parametrize(
    ("kind", "vendor", "meant"),
    [
        (Kind.GPU, Vendor.INTEL, True),
        (Kind.NPU, Vendor.INTEL, False),
        (Kind.GPU, Vendor.NVIDIA, False),
        (Kind.GPU, None, True),
        (None, None, False),
    ],
)
def test_a_device_stands_for_accelerators_of_its_kind_and_vendor(kind, vendor, meant):
    there = Accelerator(kind=Kind.GPU, vendor=Vendor.INTEL, name=None)
    assert DeviceFacts(kind=kind, vendor=vendor).means(there) is meant


@pytest.mark.parametrize(
    ("axis", "fits"),
    [
        (Axis("x"), True),
        (Axis("x", flags=frozenset({"avx2", "bf16"})), True),
        (Axis("x", flags=frozenset({"bf16"})), False),
        (Axis("x", architecture="x86_64"), True),
        (Axis("x", architecture="aarch64"), False),
        (Axis("x", flags=frozenset({"bf16"}), architecture="x86_64"), False),
        (Axis("x", flags=frozenset({"avx2"}), architecture="aarch64"), False),
    ],
)
def test_a_setting_is_worth_trying_where_the_processor_has_what_it_needs(axis, fits):
    from dataclasses import replace

    there = machine()
    assert axis.fits(replace(there, cpu=replace(there.cpu, flags=("avx2",), architecture="x86_64"))) is fits
