"""A second engine child beside the one that serves: loads a build on the processor, is asked once, and exits."""

import contextlib
import os
import queue as stdlib_queue
import threading
import time
from collections.abc import Callable

from edge_agent.engine.backend import ModelSpec
from edge_agent.engine.messages import LoadFailed, Ready
from edge_agent.engine.plan import CLOSE_S, EXIT_S
from edge_agent.engine.process import EngineProcess
from edge_agent.errors import Code, EdgeAgentError

BOUND_S = 600.0
"""A load from a slow card and an answer take minutes; nothing waits for them."""
LOOK_S = 1.0
"""How often its memory is looked at, and a sign of life given."""
NICE = 19
"""It gets the processor time that nobody else wants."""


class DismissedError(Exception):
    """It was ended before it had answered, to be asked another time."""


class Witness:
    """One child, for one `ask`, which belongs to a thread that lives as long; `dismiss` to any."""

    def __init__(
        self,
        spec: ModelSpec,
        *,
        limit_bytes: int,
        bound_s: float = BOUND_S,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._spec = spec
        self.limit_bytes = limit_bytes
        self._bound_s = bound_s
        self._now_s = now_s
        self._heard: stdlib_queue.SimpleQueue[object] = stdlib_queue.SimpleQueue()
        self._process: EngineProcess | None = None
        self._gone = threading.Event()

    @property
    def held_bytes(self) -> int:
        """What it has taken of the memory."""
        process = self._process
        return 0 if process is None or self._gone.is_set() else process.anonymous_bytes() or 0

    def dismiss(self, timeout_s: float) -> None:
        """End it, and wait until its memory is free."""
        self._heard.put(DismissedError())
        self._gone.wait(timeout_s)

    def ask(self, beat: Callable[[], None]) -> str:
        """Return what its answer begins with.

        Raises EdgeAgentError when the build does not answer soundly there, within its time and memory, and
        DismissedError. However it ends, the child is gone.
        """
        end_s = self._now_s() + self._bound_s
        try:
            process = self._process = self._start()
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, process.pid, NICE)
            process.listen()
            return self._answer(process, end_s, beat)
        finally:
            if self._process is not None:
                self._process.kill()
            self._gone.set()

    def _start(self) -> EngineProcess:
        try:
            return EngineProcess(
                self._spec,
                tell=lambda _engine, message: self._heard.put(message),
                gone=lambda _engine: self._heard.put(None),
            )
        except OSError as error:
            reason = f"no process could be started ({error.strerror})"
            raise EdgeAgentError(Code.ENGINE_DIED, reason) from error

    def _answer(self, process: EngineProcess, end_s: float, beat: Callable[[], None]) -> str:
        while self._now_s() < end_s:
            beat()
            if (process.anonymous_bytes() or 0) > self.limit_bytes:
                raise EdgeAgentError(Code.OUT_OF_MEMORY, f"it took more than {self.limit_bytes // 2**20} MiB")
            try:
                message = self._heard.get(timeout=LOOK_S)
            except stdlib_queue.Empty:
                continue
            match message:
                case Ready():
                    process.close(CLOSE_S)
                    return message.heard
                case LoadFailed(code, reason):
                    raise EdgeAgentError(code, reason)
                case DismissedError():
                    raise message
                case _:
                    process.await_exit(EXIT_S)
                    process.kill()  # its library may hang on the way out
                    raise EdgeAgentError(Code.ENGINE_DIED, f"the engine ended by itself ({process.exit_reason()})")
        raise EdgeAgentError(Code.TIMEOUT, f"it did not answer within {self._bound_s:.0f} s")
