"""A child process that may be given up: it answers one line at a time, is waited for no longer than a bound, replaced.

For what comes from anybody and may take all time and memory, or end the process that takes it in.
"""

import contextlib
import json
import os
import select
import signal
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from edge_agent.base.awake import wait_awake

ANSWER_BYTES_MAX = 4096


class GoneError(Exception):
    """The child ended, or said what is no answer; the message says how it ended, as `SIGKILL` or `exit 1`."""


class LateError(TimeoutError):
    """The child has not answered in time; `cpu_s` is the processor time that it used for the order."""

    def __init__(self, cpu_s: float) -> None:
        super().__init__(f"no answer after {cpu_s:.1f} s of processor time")
        self.cpu_s = cpu_s


class Disposable:
    """A child that is started when it is asked; `close` ends it. For one thread.

    The child reads a JSON object per line and answers each with one. It lives at most as long as its standard input,
    which is ours. `starts_s`: it says one line when it has started, for which it has so long; 0: it says none.
    """

    def __init__(self, command: Sequence[str], *, now_s: Callable[[], float], starts_s: float = 0.0) -> None:
        self._command = tuple(command)
        self._now_s = now_s
        self._starts_s = starts_s
        self._child: subprocess.Popen[bytes] | None = None
        self.served = 0
        """How often this child was asked."""

    @property
    def pid(self) -> int | None:
        """The child's process id; None while there is none."""
        return self._child.pid if self._child else None

    @property
    def cpu_s(self) -> float:
        """Return the processor time that the child has used; 0 while there is none."""
        try:
            stat = Path(f"/proc/{self.pid}/stat").read_text(encoding="ascii", errors="replace")
        except OSError:
            return 0.0
        user, system = stat.rpartition(")")[2].split()[11:13]  # proc(5): utime and stime
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

    def start(self) -> None:
        """Have a child. Raises OSError when it cannot be started, GoneError or LateError when it does not come up."""
        if self._child is not None and self._child.poll() is not None:
            self.close()
        if self._child is None:
            self.served = 0
            self._child = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,  # libraries complain there of what they read
                bufsize=0,
            )
            if self._starts_s:
                self._hear(self._child, self._now_s() + self._starts_s)

    def ask(self, order: dict[str, Any], *, end_s: float) -> dict[str, Any]:
        """Return the child's answer. Raises what `start` does; afterwards there is no child then.

        LateError when there is none at `end_s`, by our clock.
        """
        self.start()
        assert self._child is not None  # noqa: S101 - it was started
        self.served += 1
        line = json.dumps(order).encode() + b"\n"
        return self._hear(self._child, end_s, line)

    def close(self) -> None:
        """End the child, if there is one."""
        if self._child is not None:
            self._child.kill()
            self._child.wait()
            for pipe in (self._child.stdin, self._child.stdout):
                with contextlib.suppress(OSError):  # what was not written has nobody to read it
                    if pipe is not None:
                        pipe.close()
            self._child = None

    def _hear(self, child: subprocess.Popen[bytes], end_s: float, order: bytes = b"") -> dict[str, Any]:
        """Say an order, if there is one, and return what the child says; end it when that is nothing."""
        begun_cpu_s = self.cpu_s
        try:
            self._write(child.stdin.fileno(), order, end_s)  # type: ignore[union-attr]  # a pipe
            line = self._read(child.stdout.fileno(), end_s)  # type: ignore[union-attr]
            answer: dict[str, Any] = json.loads(line)
        except TimeoutError:
            cpu_s = self.cpu_s - begun_cpu_s
            self.close()
            raise LateError(cpu_s) from None
        except (OSError, ValueError):
            reason = self._exit_reason(child)
            self.close()
            raise GoneError(reason) from None
        return answer

    def _write(self, descriptor: int, order: bytes, end_s: float) -> None:
        """Write all of an order, which may be more than a pipe holds."""
        os.set_blocking(descriptor, False)
        while order:
            self._await(descriptor, select.POLLOUT, end_s)
            order = order[os.write(descriptor, order) :]

    def _read(self, descriptor: int, end_s: float) -> bytes:
        """Return a line. Raises OSError when the child has closed its end, ValueError for chatter."""
        line = b""
        while not line.endswith(b"\n"):
            self._await(descriptor, select.POLLIN, end_s)
            piece = os.read(descriptor, ANSWER_BYTES_MAX)
            line += piece
            if not piece or len(line) > ANSWER_BYTES_MAX:
                raise ValueError("no line")
        return line

    def _await(self, descriptor: int, event: int, end_s: float) -> None:
        poll = select.poll()
        poll.register(descriptor, event)
        left_s = end_s - self._now_s()
        if left_s <= 0 or not wait_awake(lambda wait_s: bool(poll.poll(wait_s * 1000)), left_s, now_s=self._now_s):
            raise TimeoutError

    @staticmethod
    def _exit_reason(child: subprocess.Popen[bytes]) -> str:
        try:
            code = child.wait(0.5)
        except subprocess.TimeoutExpired:
            return "said something else"
        return signal.Signals(-code).name if code < 0 else f"exit {code}"
