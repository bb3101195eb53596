"""The probe: everything there is to know about a machine, from its files."""

from collections.abc import Collection, Sequence
from concurrent.futures import Future, wait
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from hardware import accelerators, access, bandwidth, board, cpu, files, memory, nvidia, part
from hardware.access import Opener
from hardware.machine import Accelerator, Board, Cpu, Machine, Memory

T = TypeVar("T")

PATIENCE_S = 2.0
"""What did not answer by then is late. A machine in health answers in a tenth of it."""


def probe(
    root: Path = Path("/"),
    *,
    measure_bandwidth: bool = False,
    patience_s: float = PATIENCE_S,
    opener: Opener | None = None,
) -> Machine:
    """Return what the files below `root` (its dev, etc, proc, sys and usr) say; what they lack is None.

    Whatever stands in the files, nothing raises, and the answer comes within `patience_s`, with the measure of the
    memory's bandwidth some tenths of a second later.
    """
    who = opener or access.ourselves()
    ask = nvidia.ask_nvml if root == Path("/") else nvidia.no_nvml
    boards = part.start("board", partial(board.read, root))
    cpus = part.start("cpu", partial(cpu.read, root))
    memories = part.start("memory", partial(memory.read, root))
    kernels = part.start("kernel", partial(files.line, root / "proc/sys/kernel/osrelease"))
    found = {
        "nvidia": part.start("nvidia", lambda: _opened(root, nvidia.gpus(root, ask), who)),
        "gpus": part.start("gpus", lambda: _opened(root, accelerators.gpus(root), who)),
        "npus": part.start("npus", lambda: _opened(root, accelerators.npus(root, who), who)),
    }
    parts: dict[str, Future[Any]] = {"board": boards, "cpu": cpus, "memory": memories, "kernel": kernels, **found}
    late = wait(parts.values(), timeout=patience_s).not_done
    processors = _result(cpus, Cpu(None, None, None, None, None, None, granted_cores=1), late)
    store = _result(memories, Memory(None, None, None, None), late)
    if measure_bandwidth:
        store = replace(store, bandwidth_bytes_per_s=bandwidth.measure(root, processors, store))
    return Machine(
        board=_result(boards, Board(None, None, ()), late),
        cpu=processors,
        memory=store,
        accelerators=tuple(each for future in found.values() for each in _result(future, (), late)),
        kernel=_result(kernels, None, late),
        late=tuple(name for name, future in parts.items() if future in late),
    )


def _result(future: Future[T], unknown: T, late: Collection[Future[Any]]) -> T:
    return unknown if future in late else future.result()


def _opened(root: Path, found: Sequence[Accelerator], opener: Opener) -> tuple[Accelerator, ...]:
    return tuple(access.with_access(root, each, opener) for each in found)
