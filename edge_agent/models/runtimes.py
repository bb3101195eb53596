"""What the installed libraries can run models on: asked of each in a child of its own, or presumed of a machine."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from hardware.machine import Accelerator, Kind, Machine, Vendor

ASK_S = 60.0
"""Loading a GPU driver for the first time takes seconds; a library that takes longer hangs."""

ACCELERATORS: Mapping[tuple[str, str], tuple[Vendor | None, Kind]] = {
    ("onnx", "cuda"): (Vendor.NVIDIA, Kind.GPU),
    ("onnx", "gpu"): (Vendor.INTEL, Kind.GPU),
    ("onnx", "npu"): (Vendor.INTEL, Kind.NPU),
    ("onnx", "qnn"): (Vendor.QUALCOMM, Kind.NPU),
    ("onnx", "trt-rtx"): (Vendor.NVIDIA, Kind.GPU),
    ("onnx", "webgpu"): (None, Kind.GPU),
    ("openvino", "gpu"): (Vendor.INTEL, Kind.GPU),
    ("openvino", "npu"): (Vendor.INTEL, Kind.NPU),
}
"""Whose accelerator a backend means by a device's name, None for anybody's; `cpu` is the processor."""

PLUGGED = frozenset({("onnx", device) for device in ("gpu", "npu", "qnn", "trt-rtx", "webgpu")})
"""Devices that onnxruntime reaches by packages which users install themselves: used where one is, never presumed."""

RUNS = PLUGGED | {("onnx", "cpu"), ("onnx", "cuda"), ("openvino", "cpu"), ("openvino", "gpu"), ("openvino", "npu")}
"""The backends and devices that builds are chosen for; others run what a folder is given to them."""

BACKENDS = tuple(sorted({backend for backend, _ in RUNS}))


def is_for(accelerator: Accelerator, backend: str, device: str) -> bool:
    """Return whether a backend means an accelerator by a device's name."""
    vendor, kind = ACCELERATORS.get((backend, device), (None, None))
    return accelerator.kind == kind and vendor in {None, accelerator.vendor}


@dataclass(frozen=True, slots=True)
class Runtime:
    """A device that a library says it can use; `memory_bytes` is the device's own, where it has any."""

    backend: str
    device: str
    name: str
    memory_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Runtimes:
    """What can be used. `missing` says of a backend why it offers nothing, with the line that mends it."""

    offered: tuple[Runtime, ...]
    missing: Mapping[str, str] = field(default_factory=dict)

    def of(self, backend: str, device: str) -> Runtime | None:
        """Return what a backend offers under a device's name."""
        return next((each for each in self.offered if (each.backend, each.device) == (backend, device)), None)


def ask(
    backends: Iterable[str] | None = None,
    *,
    run: Callable[..., "subprocess.CompletedProcess[str]"] = subprocess.run,
) -> Runtimes:
    """Ask each library what it can use. One that crashes or hangs is missing, and says so."""
    offered: list[Runtime] = []
    missing: dict[str, str] = {}
    for backend in BACKENDS if backends is None else backends:
        answer = _answer(backend, run)
        if isinstance(answer, str):
            missing[backend] = answer
        else:
            offered += answer
    return Runtimes(tuple(offered), missing)


def _answer(backend: str, run: Callable[..., "subprocess.CompletedProcess[str]"]) -> Sequence[Runtime] | str:
    command = [sys.executable, "-m", "edge_agent.engine.devices", backend]
    try:
        ended = run(command, capture_output=True, text=True, timeout=ASK_S, check=False, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        return f"its library did not say within {ASK_S:.0f} s what it can use; look at the accelerator's driver"
    if ended.returncode:
        return f"its library crashed when asked what it can use (exit status {ended.returncode})"
    answer = json.loads(ended.stdout.splitlines()[-1])
    if "missing" in answer:
        return str(answer["missing"])
    return [Runtime(backend, **device) for device in answer["devices"]]


def presumed(machine: Machine) -> Runtimes:
    """Return what a machine's accelerators could be used for with every library and driver installed (pure)."""
    offered = [Runtime(backend, "cpu", machine.cpu.model or "CPU") for backend in BACKENDS]
    for backend, device in ACCELERATORS.keys() & RUNS - PLUGGED:
        for each in machine.accelerators:
            if is_for(each, backend, device):
                offered.append(Runtime(backend, device, each.name or device, each.memory_bytes))
                break
    return Runtimes(tuple(offered))
