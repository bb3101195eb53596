"""What NVIDIA's GPUs do now, as the management library says: asked in a child that stays, for it may hang for ever."""

import json
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from hardware import pci
from hardware.heat import COLDEST_C, HOTTEST_C
from hardware.hwmon import awake
from hardware.machine import Accelerator
from hardware.nvidia import DYING_S, NVIDIA, NVML_PROGRAM
from hardware.usage import Activity, Clock

PATIENCE_S = 1.0
BEGIN_S = 5.0
"""A new child wakes the driver, which without persistence mode takes seconds."""
AGAIN_S = 300.0
"""After a child that failed, the next is begun no sooner: a driver that is sick or away stays so for a while."""
ANSWER_BYTES_MAX = 65_536
WATTS_MAX = 10_000.0


class Gauges:
    """Reads them, from any thread; `close` ends the child, which also ends with us.

    A GPU that sleeps is left asleep, with the others of its kind: the library wakes them all.
    """

    def __init__(
        self,
        root: Path = Path("/"),
        *,
        program: Sequence[str] = (sys.executable, "-I", "-S", str(NVML_PROGRAM), "--follow"),
        patience_s: float = PATIENCE_S,
        begin_s: float = BEGIN_S,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cards = [each.folder for each in pci.devices(root) if each.vendor == NVIDIA and each.is_display]
        self._program = program
        self._patience_s, self._begin_s = patience_s, begin_s
        self._now_s = now_s
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._next_s = 0.0

    def read(self) -> tuple[Activity, ...]:
        """Return what each GPU does now; nothing where the library is not there, or does not answer in time."""
        with self._lock:
            if not all(awake(card) for card in self._cards):
                self._end()
                return ()
            if self._child is None and self._now_s() < self._next_s:
                return ()
            try:
                return tuple(_activity(each) for each in self._ask() if each)
            except (OSError, ValueError, TypeError, KeyError):  # it is not there, is gone, is late, or talks nonsense
                self._end()
                self._next_s = self._now_s() + AGAIN_S
                return ()

    def close(self) -> None:
        """End the child."""
        with self._lock:
            self._end()

    def _ask(self) -> list[dict[str, Any]]:
        patience_s = self._patience_s
        if self._child is None:
            patience_s = self._begin_s
            self._child = subprocess.Popen(
                self._program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0
            )
        child, line, end_s = self._child, b"", time.monotonic() + patience_s
        assert child.stdin is not None  # noqa: S101 - asked for above
        assert child.stdout is not None  # noqa: S101 - asked for above
        child.stdin.write(b"\n")
        while not line.endswith(b"\n"):
            ready, _, _ = select.select([child.stdout], [], [], max(0.0, end_s - time.monotonic()))
            piece = child.stdout.read(ANSWER_BYTES_MAX) if ready else b""
            line += piece or b""
            if not piece or len(line) > ANSWER_BYTES_MAX:
                raise ValueError("no answer")
        answer: list[dict[str, Any]] = json.loads(line)
        return answer

    def _end(self) -> None:
        """End the child; one that cannot even be killed, because it hangs in the driver, is left behind."""
        child, self._child = self._child, None
        if child is None:
            return
        child.kill()
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                pipe.close()
        with suppress(subprocess.TimeoutExpired):
            child.wait(DYING_S)


def gauges(root: Path, accelerators: Sequence[Accelerator]) -> Gauges | None:
    """Return what reads the GPUs of this machine that the library knows; None when it has none, or is another's."""
    known = any((each.node or "").startswith("/dev/nvidia") for each in accelerators)
    return Gauges(root) if known and root == Path("/") else None


def _activity(gpu: dict[str, Any]) -> Activity:
    """Make what nvml.py says of a GPU into an activity; what cannot be believed is unknown."""
    clock = Clock(gpu["clock_mhz"], None, gpu["clock_max_mhz"])
    return Activity(
        str(gpu["name"]),
        busy_percent=_within(gpu["busy_percent"], 0, 100),
        clock=None if clock == Clock(None, None, None) else clock,
        memory_used_bytes=gpu["memory_used_bytes"],
        celsius=_within(gpu["celsius"], COLDEST_C, HOTTEST_C),
        watts=_within(gpu["watts"], 0, WATTS_MAX),
    )


def _within(value: float | None, low: float, high: float) -> float | None:
    return value if value is not None and low <= value <= high else None
