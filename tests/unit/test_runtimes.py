"""What the libraries say they can use, asked of them in children that may die."""

import subprocess

import pytest

from edge_agent.models.runtimes import Runtime, ask


@pytest.mark.engine
def test_the_installed_libraries_offer_the_processor():
    """Asked for real."""
    found = ask()
    assert found.missing == {}
    assert {each.backend for each in found.offered if each.device == "cpu"} == {"onnx", "openvino"}
    assert found.of("onnx", "cpu") is not None
    assert found.of("onnx", "cuda") is None


def answering(**ended):
    return lambda command, **_: subprocess.CompletedProcess(command, **{"returncode": 0, "stderr": ""} | ended)


def test_what_a_library_offers_is_taken_over():
    """The last line counts: libraries print where they like."""
    said = 'hello\n{"devices": [{"device": "gpu", "name": "Arc", "memory_bytes": 5}]}\n'
    assert ask(["openvino"], run=answering(stdout=said)).offered == (Runtime("openvino", "gpu", "Arc", 5),)


def test_a_library_that_is_absent_brings_its_install_line():
    """As the child says it."""
    assert ask(["onnx"], run=answering(stdout='{"missing": "install it"}\n')).missing == {"onnx": "install it"}


def test_a_library_that_crashes_or_hangs_is_missing_and_others_are_not():
    """A sick driver costs one backend."""

    def run(command, **_):
        if command[-1] == "onnx":
            return subprocess.CompletedProcess(command, -11, "", "")
        raise subprocess.TimeoutExpired(command, 60)

    missing = ask(["onnx", "openvino"], run=run).missing
    assert "exit status -11" in missing["onnx"]
    assert "look at the accelerator's driver" in missing["openvino"]
