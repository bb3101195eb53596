"""What onnxruntime-genai can run models on here."""

import contextlib
import ctypes
from collections.abc import Iterator
from typing import Any

import onnxruntime_genai as og

from edge_agent.base.errors import EdgeAgentError
from edge_agent.engine.onnx import plugins

_NAME_BYTES = 256


def devices() -> Iterator[dict[str, Any]]:
    """Yield the processor, NVIDIA's GPUs where wheel and driver are for them, and what plugins find."""
    yield {"device": "cpu", "name": "CPU"}
    if og.is_cuda_available():
        yield from _cuda()
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
