"""What became of one model's engine so far: whether it is there, starts, serves, failed or is gone, and why."""

import math
import re
import threading
from collections.abc import Callable

from edge_agent.base.awake import awake_s
from edge_agent.base.errors import Code
from edge_agent.engine.hosting.plan import PREFILL_PER_S_UNKNOWN, SILENCE_S, STEADY_S, EngineView
from edge_agent.engine.hosting.process import EngineProcess
from edge_agent.engine.hosting.residency import ModelView
from edge_agent.engine.hosting.status import EngineStatus
from edge_agent.engine.messages import ModelLimits, Ready
from edge_agent.engine.phase import Phase
from edge_agent.jobs.job import Failure, Fallback

BACKOFF_FIRST_S = 1.0
BACKOFF_MOST_S = 60.0


class EngineState:
    """Written by the main thread and, as far as the engine tells of itself, by the engine's own; read by all.

    What an engine tells is taken only while it is the present one. `needs_bytes` is what loading takes, None when
    nobody knows; `strained_bytes` what the engine held that was given up last, if that was for the machine's sake.
    `pinned`: it stays whatever comes; `by_name`: it is for jobs that name it alone.
    """

    def __init__(
        self,
        model: str,
        *,
        by_name: bool = False,
        now_s: Callable[[], float] = awake_s,
        silence_s: float = SILENCE_S,
        backoff_first_s: float = BACKOFF_FIRST_S,
    ) -> None:
        self.process: EngineProcess | None = None
        self.phase = Phase.DOWN
        self.draining = False
        self.needs_bytes: int | None = None
        self.strained_bytes = 0
        self.pinned = False
        self._model = model
        self._by_name = by_name
        self._fallback: Fallback | None = None
        self._now_s = now_s
        self._silence_s = silence_s
        self._backoff_first_s = backoff_first_s
        self._lock = threading.Lock()
        self._backend = ""
        self._reason = "not started yet"
        self._code: Code | None = None
        self._since_s = float("-inf")
        self._backoff_s = 0.0
        self._exited = self._planned = False
        self._marked_for_kill: Failure | None = None
        self._failure: Failure | None = None
        self._limits: ModelLimits | None = None
        self._ready_s: float | None = None
        self._load_s = 0.0
        self._starts = 0

    # For everybody

    def status(self) -> EngineStatus:
        """Return how the engine is."""
        with self._lock:
            process = self.process
            ready = process.ready if process else None
            return EngineStatus(
                model=self._model,
                backend=self._backend,
                variant=process.spec.variant if process else None,
                revision=process.spec.revision if process else None,
                host=process.spec.host if process else None,
                by_name=self._by_name,
                phase=self.phase,
                reason=self._reason,
                code=self._code,
                limits=self._limits,
                library=ready.library if ready else "",
                device=ready.device if ready else "",
                load_ms=ready.load_ms if ready else 0.0,
                load_s=self._load_s,
                starts=self._starts,
                fallback=self._fallback if process else None,
                planned=self._planned,
                pinned=self.pinned,
                failure=self._failure,
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

    def retry(self) -> None:
        """Let it be tried again now, whatever became of it before."""
        with self._lock:
            self._backoff_s = 0.0
            if self.phase is Phase.FAILED and self.process is None:
                self.phase, self._reason, self._code = Phase.DOWN, "is to be tried again", None
                self._failure = None

    def mark_for_kill(self, process: EngineProcess, failure: Failure) -> None:
        """Note why an engine is to be ended, and the model loaded at another place."""
        with self._lock:
            if self.process is process:
                self._marked_for_kill = failure

    # For the main thread

    @property
    def marked_for_kill(self) -> bool:
        """Whether the engine was to be ended for what it did, another place being there."""
        return self._marked_for_kill is not None

    def view(self, *, unloads: str, rests: str, busy: bool, better: bool) -> EngineView:
        """Return what a decision about the engine rests on.

        `busy`: it has jobs, or gets some in a moment; `better`: a better place than its own is to be tried again.
        """
        process = self.process
        if process is None:
            return EngineView(
                phase=self.phase,
                waited_s=self._now_s() - self._since_s,
                backoff_s=self._backoff_s,
                unloads=unloads,
                rests=rests,
            )
        held = process.held()
        return EngineView(
            phase=self.phase,
            alive=True,
            exited=self._exited,
            busy=held.busy or busy,
            silent_s=held.silent_s,
            idle_s=held.idle_s,
            unprocessed_tokens=held.unprocessed_tokens,
            prefill_per_s=process.prefill_per_s or PREFILL_PER_S_UNKNOWN,
            anonymous_bytes=process.anonymous_bytes(),
            memory_bytes=self.needs_bytes,
            silence_s=self._silence_s,
            unloads=unloads,
            rests=rests,
            tried=held.tried,
            marked_for_kill=self._marked_for_kill,
            better=self.phase is Phase.READY and better,
        )

    def seen(self, *, busy: bool) -> ModelView:
        """Return what a decision about all models rests on, but for who wants it."""
        with self._lock:
            process = self.process
            held = None if process is None else process.held()
            ready_s = 0.0 if self._ready_s is None else self._now_s() - self._ready_s
            return ModelView(
                self._model,
                loaded=process is not None,
                ready_s=ready_s,
                job_s=ready_s / process.finished if process is not None and process.finished else math.inf,
                busy=busy or (held is not None and held.busy),
                idle_s=0.0 if held is None else held.idle_s,
                needs_bytes=self.needs_bytes if process is None else self.needs_bytes or self.held_bytes,
                load_s=self._load_s,
                worn=process is not None and process.worn,
            )

    @property
    def held_bytes(self) -> int:
        """What the engine has taken."""
        process = self.process
        return 0 if process is None else process.anonymous_bytes() or 0

    @property
    def granted_bytes(self) -> int:
        """What the engine may still take of the memory that is free now."""
        if self.process is None or self.needs_bytes is None:
            return 0
        return max(0, self.needs_bytes - self.held_bytes)

    @property
    def due(self) -> bool:
        """Whether a start may be tried now."""
        return self.process is None and self._now_s() - self._since_s >= self._backoff_s

    def load(self, process: EngineProcess, needs_bytes: int | None, fallback: Fallback | None) -> None:
        """Note which engine loads the model now, within so much memory, and which better place it stands in for."""
        with self._lock:
            self.process, self.needs_bytes, self._backend = process, needs_bytes, process.spec.backend
            self._planned = self.phase is Phase.UNLOADED
            self._fallback = fallback
            again = f"is tried again, after: {self._failure.message}" if self._failure else ""
            self.phase, self._reason = Phase.STARTING, again or "loading the model"
            self._since_s = self._now_s()
            self._ready_s, self._marked_for_kill = None, None
            self._exited = self.draining = False
            self._starts += 1

    def drain(self, reason: str) -> bool:
        """Note why it takes no new jobs, empty when it does; return whether it does again."""
        with self._lock:
            again = self.draining and not reason
            self.draining = bool(reason)
            if self.phase is Phase.READY:
                self._reason = reason
            return again

    def leave(self, phase: Phase, reason: str, code: Code | None = None) -> EngineProcess | None:
        """Note that the engine is, or shall be, gone and why; return it if there was one."""
        with self._lock:
            process, self.process = self.process, None
            self.phase, self._reason, self._code = phase, reason, code
            self._ready_s, self.draining = None, False
        return process

    def rest(self, reason: str) -> None:
        """Note why it is not loaded now."""
        with self._lock:
            if self.phase is Phase.UNLOADED and reason:
                self._reason = reason

    def clear_failed(self) -> None:
        """Note that the engine is gone which had said that it cannot load the model: why stays as it is."""
        with self._lock:
            self.process = None

    def wait(self, reason: str) -> None:
        """Note that there is nothing to load yet; it is looked for again soon."""
        with self._lock:
            self.phase, self._reason, self._code = Phase.FETCHING, reason, Code.MODEL_MISSING
            self._since_s, self._backoff_s = self._now_s(), self._backoff_first_s

    def reset_backoff(self) -> None:
        """Let the next start be at once."""
        with self._lock:
            self._backoff_s = 0.0

    def back_off(self) -> float:
        """Put the next start off, longer each time; return for how long, in seconds."""
        with self._lock:
            steady = self._now_s() - self._since_s > STEADY_S
            self._backoff_s = self._backoff_first_s if steady else max(self._backoff_first_s, self._backoff_s * 2)
            self._backoff_s = min(self._backoff_s, BACKOFF_MOST_S)
            self._since_s = self._now_s()
            return self._backoff_s

    def fail(self, code: Code, reason: str) -> bool:
        """Note that the model cannot be loaded as things are, and why; return whether that is news."""
        with self._lock:
            return self._fail(code, reason, None)

    # For the engine's own thread

    def serve(self, process: EngineProcess, ready: Ready) -> float | None:
        """Note that an engine is ready for jobs; return how long that took, in seconds, None when it is to go."""
        with self._lock:
            if self.process is not process:
                return None
            self.phase, self._reason, self._code, self._failure = Phase.READY, "", None, None
            self._limits, self._ready_s = ready.limits, self._now_s()
            self._load_s = self._ready_s - self._since_s
            return self._load_s

    def gave_up(self, process: EngineProcess, code: Code, reason: str) -> bool:
        """Note that an engine cannot load the model, and why; return whether that is news."""
        with self._lock:
            failure = Failure.because(code, reason)
            return self.process is process and self._fail(code, reason, None if failure.retryable else failure)

    def gone(self, process: EngineProcess) -> None:
        """Note that an engine has ended."""
        with self._lock:
            if self.process is process:
                self._exited = True

    def _fail(self, code: Code, reason: str, failure: Failure | None) -> bool:
        changed = _without_numbers(self._reason) != _without_numbers(reason)
        self.phase, self._reason, self._code, self._failure = Phase.FAILED, reason, code, failure
        return changed


def _without_numbers(reason: str) -> str:
    """Return what a reason says: that another number of MiB is free now is no other reason."""
    return re.sub(r"\d+", "", reason)
