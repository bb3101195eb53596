"""What OpenVINO can run models on here."""

from collections.abc import Iterator
from typing import Any

import openvino


def devices() -> Iterator[dict[str, Any]]:
    """Yield the devices whose plugins find one, the first of each kind."""
    core = openvino.Core()
    for device in core.available_devices:  # CPU, GPU or GPU.0 …, NPU
        kind, _, number = device.partition(".")
        if number not in {"", "0"}:
            continue  # the backend runs on the first of several
        found = {"device": kind.lower(), "name": str(core.get_property(device, "FULL_DEVICE_NAME"))}
        if kind == "GPU":
            found["memory_bytes"] = int(core.get_property(device, "GPU_DEVICE_TOTAL_MEM_SIZE"))
        yield found
