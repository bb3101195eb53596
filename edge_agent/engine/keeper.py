"""One served model: what is to be loaded, the engine that runs, and what became of it so far."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from edge_agent.engine.backend import ModelSpec
from edge_agent.engine.messages import Ready
from edge_agent.engine.plan import PREFILL_PER_S_UNKNOWN, SILENCE_S, STEADY_S, Phase, View
from edge_agent.engine.process import EngineProcess
from edge_agent.engine.roster import EngineStatus
from edge_agent.errors import Code
from edge_agent.log import get_logger

BACKOFF_FIRST_S = 1.0
BACKOFF_MOST_S = 60.0

log = get_logger()


class NotYetError(Exception):
    """The build is being chosen or fetched; the message says how far that is."""


@dataclass(frozen=True, slots=True)
class Served:
    """A model to keep running. `prepare` finds what to load and how much memory it may take, anew at every start.

    It is given the bytes that other engines were granted and have not taken yet. It raises NotYetError while the build
    is not there yet, EdgeAgentError when the model cannot be loaded as things are.
    """

    name: str
    prepare: Callable[[int], tuple[ModelSpec, int | None]]


class Keeper:
    """Changed by the main thread, and by the engine's own as far as the engine tells of itself; read by all."""

    def __init__(
        self,
        served: Served,
        *,
        now_s: Callable[[], float] = time.monotonic,
        silence_s: float = SILENCE_S,
        backoff_first_s: float = BACKOFF_FIRST_S,
    ) -> None:
        self.served = served
        self.process: EngineProcess | None = None
        self.memory_bytes: int | None = None
        self.phase = Phase.DOWN
        self.exited = False
        self.starts = 0
        self.freed_bytes = 0
        self.rest_share = 0.0
        self._now_s = now_s
        self._silence_s = silence_s
        self._backoff_first_s = backoff_first_s
        self._lock = threading.Lock()
        self._backend = ""
        self._reason = "not started yet"
        self._code: Code | None = None
        self._since_s = float("-inf")
        self._backoff_s = 0.0
        self._images_per_prompt: int | None = None

    @property
    def name(self) -> str:
        """What requests call the model."""
        return self.served.name

    # For everybody

    def status(self) -> EngineStatus:
        """Return how the engine is."""
        with self._lock:
            process = self.process
            ready = process.ready if process else None
            return EngineStatus(
                model=self.name,
                backend=self._backend,
                variant=process.spec.variant if process else None,
                revision=process.spec.revision if process else None,
                phase=self.phase,
                reason=self._reason,
                code=self._code,
                limits=ready.limits if ready else None,
                images_per_prompt=self._images_per_prompt,
                library=ready.library if ready else "",
                device=ready.device if ready else "",
                load_ms=ready.load_ms if ready else 0.0,
                starts=self.starts,
            )

    def at_work(self) -> EngineProcess | None:
        """Return the engine when it is ready for jobs."""
        with self._lock:
            return self.process if self.phase is Phase.READY else None

    def hurry(self) -> None:
        """Let it be looked at now if it was waited for."""
        with self._lock:
            if self.phase in (Phase.FETCHING, Phase.FAILED):
                self._backoff_s = 0.0

    # For the main thread

    def view(self, *, unloads: str) -> View:
        """Return what a decision about the engine rests on."""
        process = self.process
        if process is None:
            waited_s = self._now_s() - self._since_s
            return View(phase=self.phase, waited_s=waited_s, backoff_s=self._backoff_s, unloads=unloads)
        return View(
            phase=self.phase,
            alive=True,
            exited=self.exited,
            busy=process.busy,
            silent_s=process.silent_s,
            unprocessed_tokens=process.unprocessed_tokens,
            prefill_per_s=process.prefill_per_s or PREFILL_PER_S_UNKNOWN,
            anonymous_bytes=process.anonymous_bytes(),
            memory_bytes=self.memory_bytes,
            silence_s=self._silence_s,
            unloads=unloads,
        )

    @property
    def granted_bytes(self) -> int:
        """What the engine may still take of the memory that is free now."""
        if self.process is None or self.memory_bytes is None:
            return 0
        return max(0, self.memory_bytes - (self.process.anonymous_bytes() or 0))

    def begin(self) -> None:
        """Note that a start is tried."""
        self._since_s = self._now_s()
        self.exited = False
        self.rest_share = 0.0
        self.starts += 1

    def wait(self, reason: str) -> None:
        """Note that there is nothing to load yet: that start was none."""
        self._be(Phase.FETCHING, reason, Code.MODEL_MISSING)
        self.starts -= 1
        self._backoff_s = self._backoff_first_s

    def load(self, process: EngineProcess, memory_bytes: int | None) -> None:
        """Note which engine loads the model now, within so much memory."""
        with self._lock:
            self.process, self.memory_bytes, self._backend = process, memory_bytes, process.spec.backend
            self.phase, self._reason = Phase.STARTING, "loading the model"

    def leave(self, phase: Phase, reason: str, code: Code | None = None) -> EngineProcess | None:
        """Note that the engine is, or shall be, gone and why; return it if there was one."""
        with self._lock:
            process, self.process = self.process, None
            self.phase, self._reason, self._code = phase, reason, code
        return process

    def mourn(self) -> None:
        """Note that the engine is gone which had said that it cannot load the model: why stays as it is."""
        with self._lock:
            self.process = None

    def forgive(self) -> None:
        """Let the next start be at once."""
        self._backoff_s = self.rest_share = 0.0

    def back_off(self) -> float:
        """Put the next start off, longer each time; return for how long, in seconds."""
        steady = self._now_s() - self._since_s > STEADY_S
        self._backoff_s = self._backoff_first_s if steady else max(self._backoff_first_s, self._backoff_s * 2)
        self._backoff_s = min(self._backoff_s, BACKOFF_MOST_S)
        self._since_s = self._now_s()
        return self._backoff_s

    # For both

    def fail(self, code: Code, reason: str) -> None:
        """Note that the model cannot be loaded as it is, and why."""
        changed = self._be(Phase.FAILED, reason, code)
        if changed:
            log.error("model.failed", model=self.name, code=code, reason=reason)

    def serve(self, ready: Ready) -> None:
        """Note that the engine is ready for jobs."""
        self._be(Phase.READY, "", None)
        with self._lock:
            self._images_per_prompt = ready.limits.images_per_prompt

    def _be(self, phase: Phase, reason: str, code: Code | None) -> bool:
        """Note how it is; return whether the reason is another."""
        with self._lock:
            changed = self._reason != reason
            self.phase, self._reason, self._code = phase, reason, code
            return changed
