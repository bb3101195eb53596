"""How fast a build can answer at most (pure): every token reads all weights once, so memory decides."""

from collections.abc import Mapping

from edge_agent.engine.registry import on
from edge_agent.models.catalogue import Variant
from edge_agent.models.runtimes import Runtime
from hardware.machine import Accelerator, Machine

CORES_SHARE = 0.5
"""What processor cores reach of their memory's nominal speed: a Raspberry Pi 5 is said to give 3 to 4 tokens/s."""

GB_PER_S = 1e9
NOMINAL_BYTES_PER_S: Mapping[str, float] = {
    "brcm,bcm2712": 17.1 * GB_PER_S,  # Raspberry Pi 5: 32 bits of LPDDR4X-4267
    "nvidia,tegra234": 68 * GB_PER_S,  # Jetson Orin Nano 8 GB data sheet; larger modules have more
    "Meteor Lake": 89.6 * GB_PER_S,  # two channels of DDR5-5600, Intel's data sheet; LPDDR5x has more
    "Lunar Lake": 136.5 * GB_PER_S,  # 128 bits of LPDDR5X-8533, Intel's data sheet
    "Strix Point": 89.6 * GB_PER_S,  # two channels of DDR5-5600, AMD's data sheet; LPDDR5x has more
    "X Elite": 135 * GB_PER_S,  # Qualcomm's product brief
}
"""Memory of boards and of accelerators that share it, by device tree and generation; used until it was measured."""
OWN_MEMORY_BYTES_PER_S: Mapping[str, float] = {
    "A770": 560 * GB_PER_S,
    "RTX 4090": 1008 * GB_PER_S,
    "A10G": 600 * GB_PER_S,
    "A100": 1555 * GB_PER_S,
    "L40": 864 * GB_PER_S,
    "L4": 300 * GB_PER_S,
    "H100": 3350 * GB_PER_S,
    "H200": 4800 * GB_PER_S,
}
"""Memory of accelerators by a part of their names, from their makers' data sheets."""
OWN_MEMORY_LEAST_BYTES_PER_S = 190 * GB_PER_S
"""Of accelerators with other names: the cards of the last years that hold such a model have at least so much."""


def expected_per_s(
    variant: Variant, runtime: Runtime, machine: Machine, accelerator: Accelerator | None
) -> float | None:
    """Return the tokens per second of one sequence that the memory's speed allows; None when that is not known.

    `accelerator` is what the runtime's device is; None for the processor.
    """
    bandwidth = _bandwidth(runtime, machine, accelerator)
    if bandwidth is None:
        return None
    return bandwidth * efficiency(runtime, machine) / variant.weight_bytes


def efficiency(runtime: Runtime, machine: Machine) -> float:
    """Return the share of the memory's speed that is made use of."""
    how = on(runtime.backend, runtime.device)
    return (how.efficiency or 0.0) * (how.arm_share if machine.cpu.architecture == "aarch64" else 1.0)


def _bandwidth(runtime: Runtime, machine: Machine, accelerator: Accelerator | None) -> float | None:
    if accelerator is not None and not accelerator.shares_memory:
        names = f"{runtime.name} {accelerator.name}"
        known = (speed for part, speed in OWN_MEMORY_BYTES_PER_S.items() if part in names)
        return next(known, OWN_MEMORY_LEAST_BYTES_PER_S)
    measured = machine.memory.bandwidth_bytes_per_s
    nominal = _nominal(machine)
    if accelerator is not None:
        return nominal if nominal is not None else measured  # cores measure less than what the memory gives
    if measured is not None or nominal is None:
        return measured
    return nominal * CORES_SHARE


def _nominal(machine: Machine) -> float | None:
    known = (*machine.board.compatible, *(each.generation or "" for each in machine.accelerators))
    return next((NOMINAL_BYTES_PER_S[name] for name in known if name in NOMINAL_BYTES_PER_S), None)
