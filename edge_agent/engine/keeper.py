"""One served model: what is to be loaded, who wants it, the engine that runs, and what became of it so far."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from edge_agent.engine import life
from edge_agent.engine.backend import ModelSpec
from edge_agent.engine.messages import Limits, Ready
from edge_agent.engine.plan import PREFILL_PER_S_UNKNOWN, SILENCE_S, STEADY_S, Phase, View
from edge_agent.engine.process import EngineProcess
from edge_agent.engine.roster import EngineStatus
from edge_agent.errors import Code
from edge_agent.jobs.job import Failure, Fallback
from edge_agent.log import get_logger

BACKOFF_FIRST_S = 1.0
BACKOFF_MOST_S = 60.0

log = get_logger()


class NotYetError(Exception):
    """The build is being chosen or fetched; the message says how far that is."""


class Places(Protocol):
    """Where a model can run, best first, and what became of it there."""

    def prepare(self, reserved_bytes: int) -> tuple[ModelSpec, int | None]:
        """Return what to load and how much memory it may take, anew at every start.

        `reserved_bytes` were granted to other engines, which have not taken them yet; less than none when some of what
        they hold is to be had too. Raises NotYetError while the build is not there yet, EdgeAgentError when the model
        cannot be loaded as things are.
        """

    def spare(self, spec: ModelSpec) -> bool:
        """Return whether there is another place to go to."""

    def failed(self, spec: ModelSpec, reason: str) -> bool:
        """Note that a place failed; return whether the next start is at another one."""

    def works(self, spec: ModelSpec, heard: str) -> None:
        """Note that a model is ready there, and what it began with when it was tried."""

    def better(self, spec: ModelSpec) -> bool:
        """Return whether a better place should be tried again."""

    def fallback(self, spec: ModelSpec) -> Fallback | None:
        """Return the better place that this one stands in for."""

    def forgive(self) -> None:
        """Note that a job was to blame for what places were said to have done."""


@dataclass(frozen=True, slots=True)
class Served:
    """A model to serve, and where.

    `keep_alive_s` is how long it stays loaded with nothing to do, None for as long as there is room. `by_name`: for
    jobs that name it alone.
    """

    name: str
    places: Places
    keep_alive_s: float | None = None
    by_name: bool = False


class Keeper:
    """Changed by the main thread, by the engine's own as far as it tells of itself, by whoever wants it; read by all.

    known: what it needs is known, as `needs_bytes`; stale: it is to be asked for again before the next start.
    """

    def __init__(
        self,
        served: Served,
        *,
        pinned: bool = False,
        now_s: Callable[[], float] = time.monotonic,
        silence_s: float = SILENCE_S,
        backoff_first_s: float = BACKOFF_FIRST_S,
    ) -> None:
        self.served = served
        self.pinned = pinned
        self.process: EngineProcess | None = None
        self.phase = Phase.DOWN
        self.known = False
        self.stale = True
        self.needs_bytes: int | None = None
        self.exited = False
        self.draining = False
        self.starts = 0
        self.freed_bytes = 0
        self.rest_share = 0.0
        self.condemned: Failure | None = None
        """Why the engine is to be ended and the model loaded at another place."""
        self._now_s = now_s
        self._silence_s = silence_s
        self._backoff_first_s = backoff_first_s
        self._lock = threading.Lock()
        self._backend = ""
        self._reason = "not started yet"
        self._code: Code | None = None
        self._since_s = float("-inf")
        self._backoff_s = 0.0
        self._limits: Limits | None = None
        self._ready_s: float | None = None
        self._load_s = 0.0
        self._rank: float | None = None
        self._wanted_s: float | None = None
        self._asked = self._dismissed = self._planned = False
        self._count_wait()

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
                host=process.spec.host if process else None,
                by_name=self.served.by_name,
                phase=self.phase,
                reason=self._reason,
                code=self._code,
                limits=self._limits,
                library=ready.library if ready else "",
                device=ready.device if ready else "",
                load_ms=ready.load_ms if ready else 0.0,
                load_s=self._load_s,
                starts=self.starts,
                fallback=self.served.places.fallback(process.spec) if process else None,
                planned=self._planned,
                pinned=self.pinned,
            )

    def at_work(self) -> EngineProcess | None:
        """Return the engine when it is ready for jobs."""
        with self._lock:
            return self.process if self.phase is Phase.READY else None

    def hurry(self) -> None:
        """Let it be looked at now if it was waited for; what it needs may be another."""
        with self._lock:
            self.stale = True
            if self.phase in (Phase.FETCHING, Phase.FAILED):
                self._backoff_s = 0.0

    def demand(self, rank: float | None) -> bool:
        """Note the rank of the first job that waits for it, None when none does; return whether it must be loaded."""
        with self._lock:
            self._rank = rank
            self._count_wait()
            return rank is not None and self.process is None

    def ask(self) -> None:
        """Want it loaded, as a job would that waits for it; until it is, or cannot be."""
        with self._lock:
            self._asked, self._dismissed = self.phase is not Phase.READY, False
            self._backoff_s = 0.0
            if self.phase is Phase.FAILED and self.process is None:
                self.phase, self._reason, self._code = Phase.DOWN, "is to be tried again", None
            self._count_wait()

    def relent(self) -> None:
        """Want it loaded no longer than jobs do."""
        with self._lock:
            self._asked = False
            self._count_wait()

    def pin(self, *, pinned: bool) -> None:
        """Keep it loaded whatever else needs the memory, or no longer."""
        with self._lock:
            self.pinned = pinned
            self._count_wait()

    def dismiss(self) -> None:
        """Want it gone, and not back before a job waits for it."""
        with self._lock:
            self._asked, self._dismissed = False, True
            self._count_wait()

    def _count_wait(self) -> None:
        """Note since when it is waited for."""
        wanted = self._rank is not None or self._asked or self.pinned
        if self.process is not None or not wanted:
            self._wanted_s = None
        elif self._wanted_s is None:
            self._wanted_s = self._now_s()

    # For the main thread

    def view(self, *, unloads: str, rests: str, busy: bool) -> View:
        """Return what a decision about the engine rests on; `busy`: it has jobs, or gets some in a moment."""
        process = self.process
        if process is None:
            return View(
                phase=self.phase,
                waited_s=self._now_s() - self._since_s,
                backoff_s=self._backoff_s,
                unloads=unloads,
                rests=rests,
            )
        return View(
            phase=self.phase,
            alive=True,
            exited=self.exited,
            busy=process.busy or busy,
            silent_s=process.silent_s,
            unprocessed_tokens=process.unprocessed_tokens,
            prefill_per_s=process.prefill_per_s or PREFILL_PER_S_UNKNOWN,
            anonymous_bytes=process.anonymous_bytes(),
            memory_bytes=self.needs_bytes,
            silence_s=self._silence_s,
            unloads=unloads,
            rests=rests,
            tried=process.tried,
            condemned=self.condemned,
            better=self.phase is Phase.READY and self.served.places.better(process.spec),
        )

    def seen(self, *, busy: bool) -> life.Model:
        """Return what a decision about all models rests on."""
        with self._lock:
            now_s, process = self._now_s(), self.process
            return life.Model(
                self.name,
                loaded=process is not None,
                ready_s=0.0 if self._ready_s is None else now_s - self._ready_s,
                busy=busy or (process is not None and process.busy),
                idle_s=0.0 if process is None else process.silent_s,
                rank=self._rank,
                waited_s=0.0 if self._wanted_s is None else now_s - self._wanted_s,
                keep_alive_s=self.served.keep_alive_s,
                pinned=self.pinned,
                asked=self._asked,
                dismissed=self._dismissed,
                needs_bytes=self.needs_bytes if process is None else self.needs_bytes or self.held_bytes,
                load_s=self._load_s,
            )

    @property
    def held_bytes(self) -> int:
        """What the engine has taken."""
        return 0 if self.process is None else self.process.anonymous_bytes() or 0

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

    def learn(self, needs_bytes: int | None) -> None:
        """Note how much memory it needs."""
        self.known, self.stale, self.needs_bytes = True, False, needs_bytes

    def wait(self, reason: str) -> None:
        """Note that there is nothing to load yet; it is looked for again soon."""
        self._be(Phase.FETCHING, reason, Code.MODEL_MISSING)
        self.known = False
        self._since_s = self._now_s()
        self._backoff_s = self._backoff_first_s

    def load(self, process: EngineProcess, needs_bytes: int | None) -> None:
        """Note which engine loads the model now, within so much memory."""
        with self._lock:
            self.process, self.needs_bytes, self._backend = process, needs_bytes, process.spec.backend
            self._planned = self.phase is Phase.UNLOADED
            self.phase, self._reason = Phase.STARTING, "loading the model"
            self._since_s = self._now_s()
            self._ready_s, self.rest_share, self.condemned = None, 0.0, None
            self.exited = self.draining = self._dismissed = False
            self.starts += 1
            self._count_wait()

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
            self._count_wait()
        return process

    def rest(self, reason: str) -> None:
        """Note why it is not loaded now."""
        with self._lock:
            if self.phase is Phase.UNLOADED and reason:
                self._reason = reason

    def mourn(self) -> None:
        """Note that the engine is gone which had said that it cannot load the model: why stays as it is."""
        with self._lock:
            self.process = None
            self._count_wait()

    def forgive(self) -> None:
        """Let the next start be at once; it may be at another place, with other needs."""
        self._backoff_s = 0.0
        self.stale = True

    def back_off(self) -> float:
        """Put the next start off, longer each time; return for how long, in seconds."""
        steady = self._now_s() - self._since_s > STEADY_S
        self._backoff_s = self._backoff_first_s if steady else max(self._backoff_first_s, self._backoff_s * 2)
        self._backoff_s = min(self._backoff_s, BACKOFF_MOST_S)
        self._since_s = self._now_s()
        self.stale = True
        return self._backoff_s

    # For both

    def fail(self, code: Code, reason: str) -> bool:
        """Note that the model cannot be loaded as it is, and why; return whether that is news."""
        changed = self._be(Phase.FAILED, reason, code)
        self._asked, self.known = False, False
        if changed:
            log.error("model.failed", model=self.name, code=code, reason=reason)
        return changed

    def serve(self, ready: Ready) -> float:
        """Note that the engine is ready for jobs; return how long that took, in seconds."""
        self._be(Phase.READY, "", None)
        with self._lock:
            self._limits = ready.limits
            self._ready_s = self._now_s()
            self._load_s = self._ready_s - self._since_s
            self._asked = False
            return self._load_s

    def _be(self, phase: Phase, reason: str, code: Code | None) -> bool:
        """Note how it is; return whether the reason is another."""
        with self._lock:
            changed = self._reason != reason
            self.phase, self._reason, self._code = phase, reason, code
            return changed
