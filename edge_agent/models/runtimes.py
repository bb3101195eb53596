"""What the installed libraries can run models on: asked of each in a child of its own, or presumed of a machine."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from edge_agent.engine.registry import driven
from hardware.machine import Machine

ASK_S = 60.0
"""Loading a GPU driver for the first time takes seconds; a library that takes longer hangs."""


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
    for backend in _driving() if backends is None else backends:
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
    offered: list[Runtime] = []
    for (backend, device), how in driven().items():
        if how.kind is None:
            offered.append(Runtime(backend, device, machine.cpu.model or "CPU"))
        elif not how.plugged and (found := next(filter(how.means, machine.accelerators), None)) is not None:
            offered.append(Runtime(backend, device, found.name or device, found.memory_bytes))
    return Runtimes(tuple(offered))


def _driving() -> list[str]:
    return sorted({backend for backend, _ in driven()})
