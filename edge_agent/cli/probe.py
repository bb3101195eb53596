"""`edge-agent probe`: what this machine is."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Annotated

import rich
import typer
from rich.table import Table
from rich.text import Text

from hardware.machine import Accelerator, Board, Cpu, Kind, Machine, Memory, Vendor
from hardware.probe import probe as probe_machine

GIB_BYTES = 2**30
UNKNOWN = "unknown"
VENDORS = {
    Vendor.NVIDIA: "NVIDIA",
    Vendor.INTEL: "Intel",
    Vendor.AMD: "AMD",
    Vendor.QUALCOMM: "Qualcomm",
    Vendor.APPLE: "Apple",
}

Rows = Iterator[tuple[str, str]]


def probe(
    *,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object, unknown facts as null.")] = False,
    bandwidth: Annotated[bool, typer.Option("--bandwidth", help="Measure the memory's bandwidth, for 0.2 s.")] = False,
) -> None:
    """Show what this machine is: board, processors, memory, accelerators, and what of them is granted to us."""
    machine = probe_machine(measure_bandwidth=bandwidth)
    if json:
        rich.print_json(data=asdict(machine))
    else:
        rich.print(_table(machine))


def _table(machine: Machine) -> Table:
    table = Table(show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")  # a command is copied whole, never cut short
    sections = (
        _board(machine.board, machine.kernel),
        _cpu(machine.cpu),
        _memory(machine.memory),
        *(_accelerator(each) for each in machine.accelerators),
        _remarks(machine),
    )
    for rows in sections:
        for name, value in rows:
            table.add_row(name, Text(value))
        table.add_section()
    return table


def _board(board: Board, kernel: str | None) -> Rows:
    yield "board", " ".join(part for part in (board.vendor, board.model) if part) or UNKNOWN
    if board.compatible:
        yield "compatible", ", ".join(board.compatible)
    yield "kernel", kernel or UNKNOWN


def _cpu(cpu: Cpu) -> Rows:
    yield "CPU", cpu.model or UNKNOWN
    yield "architecture", cpu.architecture or UNKNOWN
    yield "physical cores", str(cpu.physical_cores or UNKNOWN)
    yield "logical CPUs", str(cpu.logical_cpus or UNKNOWN)
    yield "int4 and bf16 flags", UNKNOWN if cpu.flags is None else " ".join(cpu.flags) or "none"
    yield "quota", "no limit" if cpu.quota_cores is None else f"{cpu.quota_cores:g} cores"
    yield "compute threads", str(cpu.granted_cores)


def _memory(memory: Memory) -> Rows:
    yield "memory", _gib(memory.total_bytes)
    yield "available", _gib(memory.available_bytes)
    yield "swap", _gib(memory.swap_bytes)
    yield "limit", "no limit" if memory.limit_bytes is None else _gib(memory.limit_bytes)
    if memory.bandwidth_bytes_per_s is not None:
        yield "reading bandwidth", f"{memory.bandwidth_bytes_per_s / 1e9:.1f} GB/s"


def _accelerator(found: Accelerator) -> Rows:
    yield "GPU" if found.kind is Kind.GPU else "NPU", _name(found)
    if found.generation and found.generation != found.name:
        yield "generation", found.generation
    yield "driver", " ".join(part for part in (found.driver, found.driver_version) if part) or "none"
    yield "memory", "the machine's" if found.shares_memory else _gib(found.memory_bytes)
    yield "device file", found.node or "none"
    yield "usable", {True: "yes", False: "no", None: UNKNOWN}[found.usable]
    if found.mend:
        yield "to make it usable", found.mend


def _remarks(machine: Machine) -> Rows:
    if not machine.accelerators:
        yield "accelerators", "none found"
    if machine.late:
        yield "did not answer", ", ".join(machine.late)


def _name(found: Accelerator) -> str:
    vendor = VENDORS[found.vendor]
    name = found.name or "without a name"
    return name if name.startswith(vendor) else f"{vendor} {name}"


def _gib(size_bytes: int | None) -> str:
    return UNKNOWN if size_bytes is None else f"{size_bytes / GIB_BYTES:.1f} GiB"
