"""Machines that do not exist, and how they are from report to report: warm while they work, sometimes in trouble. PURE.

What such a machine would run is decided by the agent's own rules; only the readings are made up.
"""

import math
import random
from dataclasses import dataclass
from functools import cache

from edge_agent.engine.hosting.status import EngineStatus
from edge_agent.engine.messages import ModelLimits
from edge_agent.engine.phase import Phase
from edge_agent.models import catalogue
from edge_agent.models.choose import Candidate, Decision, choose
from edge_agent.models.provision import wanted
from edge_agent.models.runtimes import presumed
from edge_agent.protocol.payloads import EngineReading, MachineReading
from edge_agent.settings.load import ServeSection
from hardware.machine import Accelerator, Board, Cpu, Kind, Machine, Memory, Vendor

GIB_BYTES = 2**30
MODEL = "phi-3.5-mini"
SERVE = ServeSection(name=MODEL, context_tokens=2048, parallel=2)
TOKENS = 80
"""Of a made-up answer."""
WARM_S = 90.0
"""In which a machine comes most of the way to the heat of its load."""
LEANING_S = 300.0
"""In which the load wanders from calm to busy and back."""
HOT_MARGIN_C = 5.0
"""The agent's own default: nearer to the limit, it runs fewer lanes."""


@dataclass(frozen=True, slots=True)
class Make:
    """A sort of machine: what it is, its heat idle and how much full load adds, its limit, what it draws."""

    machine: Machine
    idle_c: float
    load_c: float
    limit_c: float
    idle_watts: float
    load_watts: float


def _machine(board: str, cpu: str, cores: int, memory_gib: int, gb_per_s: float, *accelerators: Accelerator) -> Machine:
    architecture = "aarch64" if cpu.startswith("Cortex") else "x86_64"
    total_bytes = memory_gib * GIB_BYTES
    return Machine(
        board=Board(None, board, ()),
        cpu=Cpu(cpu, architecture, cores, cores, (), None, cores),
        memory=Memory(total_bytes, int(0.85 * total_bytes), 0, None, bandwidth_bytes_per_s=gb_per_s * 1e9),
        accelerators=accelerators,
        kernel=None,
    )


_ORIN = Accelerator(Kind.GPU, Vendor.NVIDIA, "Orin", generation="tegra234", usable=True, shares_memory=True)
_ARC = Accelerator(Kind.GPU, Vendor.INTEL, "Arc", generation="Meteor Lake", usable=True, shares_memory=True)
_NPU = Accelerator(Kind.NPU, Vendor.INTEL, "AI Boost", generation="Meteor Lake", usable=True, shares_memory=True)
_RTX = Accelerator(
    Kind.GPU, Vendor.NVIDIA, "GeForce RTX 4060", generation="sm_89", usable=True, memory_bytes=8 * GIB_BYTES
)

MAKES = (
    Make(_machine("Raspberry Pi 5 Model B", "Cortex-A76", 4, 8, 12.0), 48, 30, 85, 3.0, 6.5),
    Make(_machine("N100 box", "Intel N100", 4, 16, 26.0), 41, 34, 105, 6.0, 14.0),
    Make(_machine("Jetson Orin Nano", "Cortex-A78AE", 6, 8, 60.0, _ORIN), 45, 25, 99, 5.0, 12.0),
    Make(_machine("Core Ultra laptop", "Intel Core Ultra 7 155H", 6, 16, 60.0, _ARC, _NPU), 44, 38, 110, 9.0, 34.0),
    Make(_machine("RTX box", "AMD Ryzen 5 7600", 6, 32, 60.0, _RTX), 40, 30, 95, 35.0, 150.0),
    Make(_machine("EPYC server", "AMD EPYC 9354", 32, 64, 220.0), 38, 26, 96, 90.0, 240.0),
)
"""Round figures of such machines, so that their numbers look like numbers."""
SMALL = Make(_machine("Raspberry Pi 4 Model B", "Cortex-A72", 4, 2, 4.0), 50, 25, 85, 2.5, 5.5)
"""No build fits into it."""


@cache
def decided(make: Make) -> Decision:
    """Return what the agent's own rules run there."""
    return choose(
        wanted(SERVE, images_bytes=0), machine=make.machine, catalogue=catalogue.read(), runtimes=presumed(make.machine)
    )


class SimulatedMachine:
    """One made-up machine. `pass_s` lets time pass; the rest says how it is then.

    `chance` decides how busy and how warm it is; `asked` of its lanes answer real requests.
    """

    def __init__(self, make: Make, chance: random.Random) -> None:
        self.make = make
        self._chance = chance
        self._leaning = chance.random()
        self._busy_mean = chance.uniform(0.02, 0.9)
        self._room_c = chance.gauss(0.0, 4.0) + (14.0 if chance.random() < 0.05 else 0.0)
        self._memory_share = chance.uniform(0.55, 0.85)
        self._backlog_tokens = 0.0
        self._celsius = make.idle_c + self._room_c
        self._load = 0.0
        self.asked = 0
        self.uptime_s = 0.0
        self.tokens = 0
        self.succeeded = 0

    @property
    def candidate(self) -> Candidate | None:
        """What it runs; None when nothing fits."""
        return next(iter(decided(self.make).candidates), None)

    @property
    def tokens_per_s(self) -> float:
        """How fast one answer comes; 0 where nothing runs."""
        return (self.candidate.tokens_per_s or 0.0) if self.candidate else 0.0

    @property
    def running(self) -> int:
        """Answers that are made at once now, the real ones included."""
        return min(self._lanes, self.asked + math.ceil(self._backlog_tokens / TOKENS))

    @property
    def waiting(self) -> int:
        """Made-up jobs that wait."""
        return max(0, self.asked + math.ceil(self._backlog_tokens / TOKENS) - self._lanes)

    @property
    def strained(self) -> tuple[str, ...]:
        """Why it holds back, in the words of the governor."""
        limit_c = self.make.limit_c
        if limit_c - self._celsius > HOT_MARGIN_C:
            return ()
        return (f"fewer lanes: cpu-thermal is at {self._celsius:.0f} °C, its limit is {limit_c:.0f} °C",)

    @property
    def engine(self) -> EngineStatus:
        """The engine that would run there."""
        best = self.candidate
        if best is None:
            reason = "no build fits into this machine's memory; see evt/decision"
            return EngineStatus(model=MODEL, backend="", phase=Phase.FAILED, reason=reason, starts=1)
        return EngineStatus(
            model=MODEL,
            backend=best.variant.backend,
            phase=Phase.READY,
            limits=ModelLimits(best.context_tokens, best.parallel),
            device=best.device,
            variant=best.variant.name,
            starts=1,
        )

    def pass_s(self, seconds: float) -> None:
        """Let time pass: jobs come and are done, the machine warms up and cools down."""
        self.uptime_s += seconds
        wave = 0.5 + 0.5 * math.sin(2 * math.pi * (self.uptime_s / LEANING_S + self._leaning))
        able = self._lanes * self.tokens_per_s * seconds
        coming = self._chance.expovariate(1.0) * 2 * wave * self._busy_mean * able
        free = able * max(0, self._lanes - self.asked) / max(1, self._lanes)
        done = min(free, self._backlog_tokens + coming)
        self._backlog_tokens = min(self._backlog_tokens + coming - done, 40.0 * TOKENS)
        self.tokens += int(done)
        self.succeeded += round(done / TOKENS)
        self._load = done / able if able else 0.0
        aim_c = self.make.idle_c + self._room_c + self.make.load_c * self._load
        self._celsius += (aim_c - self._celsius) * (1 - math.exp(-seconds / WARM_S))
        self._celsius = min(self._celsius, self.make.limit_c)

    def machine_reading(self) -> MachineReading:
        """Return how the machine is."""
        make, total_bytes = self.make, self.make.machine.memory.total_bytes or 0
        noise = self._chance.uniform(-0.01, 0.01)
        taken = min(0.97, self._memory_share + 0.05 * self._load + noise)
        watts = make.idle_watts + self._load * (make.load_watts - make.idle_watts)
        return MachineReading(
            cpu_percent=round(min(100.0, 2.0 + 96.0 * self._load), 1),
            load_1m=round(self._load * make.machine.cpu.granted_cores, 2),
            memory_total_bytes=total_bytes,
            memory_available_bytes=int(total_bytes * (1 - taken)),
            disk_free_bytes=20 * GIB_BYTES,
            hottest="cpu-thermal",
            hottest_celsius=round(self._celsius, 1),
            heat_margin_c=round(make.limit_c - self._celsius, 1),
            slowed=(),
            power_watts=round(watts, 2),
            power_of="machine",
        )

    def engine_reading(self) -> EngineReading:
        """Return what its engine does."""
        best = self.candidate
        if best is None:
            return EngineReading(model=MODEL, state=Phase.FAILED, running=0)
        first_ms = 40 * 1000 / max(1.0, 20 * self.tokens_per_s)
        return EngineReading(
            model=MODEL,
            state=Phase.READY,
            device=best.device,
            running=self.running,
            lanes=best.parallel,
            context_tokens=best.context_tokens,
            anonymous_bytes=best.needed_bytes // 3,
            mapped_bytes=2 * best.needed_bytes // 3,
            prompt_per_second=round(20 * self.tokens_per_s, 1),
            generate_per_second=round(self.tokens_per_s * self._chance.uniform(0.95, 1.0), 1),
            first_token_p50_ms=round(first_ms, 1),
            first_token_p95_ms=round(3 * first_ms, 1),
            cached_share=0.2,
        )

    @property
    def _lanes(self) -> int:
        return self.candidate.parallel if self.candidate else 0
