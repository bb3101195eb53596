"""Accelerators that onnxruntime reaches through a plugin, a package of its own beside it: found, registered, appended.

None of them has ever run a model on an accelerator here. Seen with onnxruntime 1.32 on a machine without one: the
packages of WebGPU, OpenVINO and QNN register and offer no device of theirs, TensorRT-RTX does not load without
NVIDIA's driver. WebGPU ran on a software adapter (lavapipe of Mesa 25.0; 22.3 lacks what it asks for): up to 22 new
tokens in one call its logits are the processor's to within 1e-5, of 32 and more to within 1.4.
"""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import onnxruntime as ort

from edge_agent.base.errors import Code, EdgeAgentError


@dataclass(frozen=True, slots=True)
class Plugin:
    """A package that brings a provider, in the form of onnxruntime's "Plugin EP packaging": its name and library.

    kinds: of the hardware, in the library's words, the better one first. memory: where keys and values lie, in the
    library's word, for calls that read and write them in place. divisible: whether that memory has addresses, so that
    lanes can be told apart.
    """

    module: str
    package: str
    kinds: tuple[str, ...]
    memory: str = "cpu"
    divisible: bool = True


PLUGINS: Mapping[str, Plugin] = {
    "gpu": Plugin("onnxruntime_ep_openvino", "onnxruntime-ep-openvino", ("GPU",)),
    "npu": Plugin("onnxruntime_ep_openvino", "onnxruntime-ep-openvino", ("NPU",)),
    "qnn": Plugin("onnxruntime_qnn", "onnxruntime-qnn", ("NPU",)),
    "trt-rtx": Plugin("onnxruntime_ep_nv_tensorrt_rtx", "onnxruntime-ep-nv-tensorrt-rtx", ("GPU",), "cuda"),
    # It offers the processor where ORT_WEBGPU_EP_ALLOW_SOFTWARE_ADAPTER=1 says so, and nowhere else.
    "webgpu": Plugin("onnxruntime_ep_webgpu", "onnxruntime-ep-webgpu", ("GPU", "CPU"), "webgpu", divisible=False),
}
"""By the device's name in a ModelSpec."""


def hardware(device: str) -> Any:
    """Register the plugin for a device and return what it can use, as the library's OrtEpDevice.

    Raises EdgeAgentError UNSUPPORTED with what to do: it is not installed, does not load, or finds nothing.
    """
    plugin = PLUGINS[device]
    try:
        package = importlib.import_module(plugin.module)
    except ModuleNotFoundError as error:
        raise EdgeAgentError(
            Code.UNSUPPORTED, f"onnxruntime reaches {device} by a plugin; install it with: pip install {plugin.package}"
        ) from error
    try:
        name = _registered(package)
    except Exception as error:  # the library's own exceptions have no class in common
        said = next(iter(str(error).splitlines()), "it does not load")
        raise EdgeAgentError(
            Code.UNSUPPORTED, f"{plugin.package} cannot be used: {said}; install the driver of {device}"
        ) from error
    found = {each.device.type.name: each for each in reversed(ort.get_ep_devices()) if each.ep_name == name}
    if (first := next((found[kind] for kind in plugin.kinds if kind in found), None)) is None:
        raise EdgeAgentError(Code.UNSUPPORTED, f"{plugin.package} finds no {device} here; look at its driver")
    return first


def memory(device: str) -> str:
    """Return where the keys and values of a device's sequences lie, in the library's word."""
    return PLUGINS[device].memory if device in PLUGINS else device


@cache
def _registered(package: Any) -> str:
    """Register a plugin, which can be done once, under the name of its provider; return that."""
    name = str(package.get_ep_name())
    ort.register_execution_provider_library(name, package.get_library_path())
    return name
