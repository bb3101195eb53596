"""`edge-agent probe`: what this machine is."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Annotated

import rich
import typer
from rich.table import Table
from rich.text import Text

from hardware.machine import Cpu, Machine, Memory
from hardware.probe import probe as probe_machine

GIB_BYTES = 2**30
UNKNOWN = "unknown"


def probe(
    *,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object, unknown facts as null.")] = False,
) -> None:
    """Show the processors and the memory of this machine, and what of them is granted to us."""
    machine = probe_machine()
    if json:
        rich.print_json(data=asdict(machine))
    else:
        rich.print(_table(machine))


def _table(machine: Machine) -> Table:
    table = Table(show_header=False)
    for name, value in (*_cpu(machine.cpu), *_memory(machine.memory)):
        table.add_row(name, Text(value))
    return table


def _cpu(cpu: Cpu) -> Iterator[tuple[str, str]]:
    yield "CPU", cpu.model or UNKNOWN
    yield "architecture", cpu.architecture or UNKNOWN
    yield "physical cores", str(cpu.physical_cores or UNKNOWN)
    yield "logical CPUs", str(cpu.logical_cpus or UNKNOWN)
    yield "int4 and bf16 flags", UNKNOWN if cpu.flags is None else " ".join(cpu.flags) or "none"
    yield "quota", "no limit" if cpu.quota_cores is None else f"{cpu.quota_cores:g} cores"
    yield "compute threads", str(cpu.granted_cores)


def _memory(memory: Memory) -> Iterator[tuple[str, str]]:
    yield "memory", _gib(memory.total_bytes)
    yield "available", _gib(memory.available_bytes)
    yield "swap", _gib(memory.swap_bytes)
    yield "limit", "no limit" if memory.limit_bytes is None else _gib(memory.limit_bytes)


def _gib(size_bytes: int | None) -> str:
    return UNKNOWN if size_bytes is None else f"{size_bytes / GIB_BYTES:.1f} GiB"
