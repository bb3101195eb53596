"""What a backend's library can run models on, asked of the library itself: `python -m edge_agent.engine.devices NAME`.

Run as a child, because a library that meets a broken driver may die or hang. Prints one JSON object and ends.
"""

import argparse
import contextlib
import ctypes
import importlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from edge_agent.base.errors import BackendMissingError, EdgeAgentError
from edge_agent.engine.backend import find

_NAME_BYTES = 256


def main(arguments: Sequence[str] | None = None) -> int:
    """Print `{"devices": [{"device", "name", "memory_bytes"}]}`, or `{"missing": sentence}` without the library."""
    parser = argparse.ArgumentParser(prog="python -m edge_agent.engine.devices", description=__doc__)
    parser.add_argument("backend", choices=sorted(_ASKED))
    backend = parser.parse_args(arguments).backend
    try:
        find(backend)
    except BackendMissingError as error:
        answer: dict[str, Any] = {"missing": str(error)}
    else:
        answer = {"devices": list(_ASKED[backend]())}
    sys.stdout.write(json.dumps(answer) + "\n")
    return 0


def _onnx() -> Iterator[dict[str, Any]]:
    """The processor, NVIDIA's GPUs when the wheel was built for CUDA and the driver finds one, what plugins find."""
    og = importlib.import_module("onnxruntime_genai")
    yield {"device": "cpu", "name": "CPU"}
    if og.is_cuda_available():
        yield from _cuda()
    plugins = importlib.import_module("edge_agent.engine.onnx.plugins")
    for device in plugins.PLUGINS:
        with contextlib.suppress(EdgeAgentError):  # not installed, or of no use here
            yield {"device": device, "name": str(plugins.hardware(device).device.vendor or device)}


def _cuda() -> Iterator[dict[str, Any]]:
    """Ask the driver's own library: the wheel says that it was built for CUDA, not that there is a device."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return
    count, memory, handle = ctypes.c_int(), ctypes.c_size_t(), ctypes.c_int()
    if cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count)):
        return
    for number in range(count.value):
        name = ctypes.create_string_buffer(_NAME_BYTES)
        failed = (
            cuda.cuDeviceGet(ctypes.byref(handle), number)
            or cuda.cuDeviceGetName(name, _NAME_BYTES, handle)
            or cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), handle)
        )
        if not failed:
            yield {"device": "cuda", "name": name.value.decode(errors="replace"), "memory_bytes": memory.value}


def _openvino() -> Iterator[dict[str, Any]]:
    openvino = importlib.import_module("openvino")
    core = openvino.Core()
    for device in core.available_devices:  # CPU, GPU or GPU.0 …, NPU
        kind, _, number = device.partition(".")
        if number not in {"", "0"}:
            continue  # the backend runs on the first of several
        found = {"device": kind.lower(), "name": str(core.get_property(device, "FULL_DEVICE_NAME"))}
        if kind == "GPU":
            found["memory_bytes"] = int(core.get_property(device, "GPU_DEVICE_TOTAL_MEM_SIZE"))
        yield found


_ASKED: dict[str, Callable[[], Iterator[dict[str, Any]]]] = {"onnx": _onnx, "openvino": _openvino}


if __name__ == "__main__":
    sys.exit(main())
