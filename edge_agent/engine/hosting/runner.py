"""The life of one model's engine: started, told, let go, buried, as was decided."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from edge_agent.base.awake import awake_s
from edge_agent.base.errors import Code, EdgeAgentError
from edge_agent.base.log import get_logger
from edge_agent.base.signal import Signal
from edge_agent.engine.hosting.blame import is_the_jobs
from edge_agent.engine.hosting.plan import CLOSE_S, EXIT_S, Act, Action, plan
from edge_agent.engine.hosting.process import EngineProcess
from edge_agent.engine.hosting.residency import Fate, ResidencyVerdict
from edge_agent.engine.hosting.served import NotYetError, Served
from edge_agent.engine.hosting.state import EngineState
from edge_agent.engine.messages import Event, LoadFailed, Ready, Rest
from edge_agent.engine.phase import Phase
from edge_agent.jobs.job import Failure

T = TypeVar("T")

log = get_logger()


class EngineEvents:
    """What happens to engines, told on an engine's thread or the main one.

    `on_event` is what an engine says of a job. `on_up` comes with the seconds that the start took, `on_lost` with the
    place that was set aside for it, in words; None when there is no other place to go to. `on_unloaded` comes before
    the engine is asked to go: the jobs in it are to be done again. `on_free`: a draining engine takes jobs again.
    `on_failed`: a model cannot be loaded, for a reason that is new, or once more for one that does not pass by itself.
    """

    def __init__(self) -> None:
        self.on_event: Signal[str, Event] = Signal()
        self.on_up: Signal[str, float] = Signal()
        self.on_lost: Signal[str, Failure, str | None] = Signal()
        self.on_unloaded: Signal[str] = Signal()
        self.on_free: Signal[[]] = Signal()
        self.on_failed: Signal[str, Failure] = Signal()


@dataclass(frozen=True, slots=True)
class Ruling:
    """What was decided on a model, and what its engine is to know.

    `unloads` says why no engine may be there now, and is empty while they may. `rest_share` of the time it shall rest.
    `busy`: it has jobs, or gets some in a moment.
    """

    verdict: ResidencyVerdict
    unloads: str
    rest_share: float
    busy: bool


class EngineRunner:
    """Does with an engine what is decided.

    All but `hurry` and `mark_for_kill` belongs to the main thread; the callbacks of an engine come on its own and only
    leave notes. `wake` is set when there is something to do before its time.
    """

    def __init__(
        self,
        served: Served,
        record: EngineState,
        *,
        events: EngineEvents,
        wake: threading.Event,
        now_s: Callable[[], float] = awake_s,
    ) -> None:
        self.record = record
        self.known = False
        """Whether what it needs is known."""
        self._served = served
        self._name = served.name
        self._events = events
        self._wake = wake
        self._now_s = now_s
        self._stale = True
        self._rest_share = 0.0
        self._fallen: frozenset[str] = frozenset()

    def hurry(self) -> None:
        """Let it be looked at now if it was waited for; what it needs may be another."""
        self._stale = True
        self.record.hurry()

    def mark_for_kill(self, process: EngineProcess, failure: Failure) -> bool:
        """End an engine for what it did, and set its place aside; return False when there is no other place to go to.

        One that is gone already needs no more than that: whoever was in it hears, or has heard, of its loss.
        """
        if self.record.process is not process:
            return True
        if not self._served.places.spare(process.spec):
            return False
        self.record.mark_for_kill(process, failure)
        self._wake.set()
        return True

    # For the main thread

    def appraise(self, taken_bytes: Callable[[], int]) -> None:
        """Find out what the model needs, if that is not known and a start may be tried.

        `taken_bytes` are not to be had whoever makes room, see `Places.prepare`.
        """
        if not self.record.due or (self.known and not self._stale):
            return
        if found := self._found(lambda: (self._served.places.appraise(taken_bytes()),)):
            self.known, self._stale, (self.record.needs_bytes,) = True, False, found

    def follow(self, ruling: Ruling, *, reserved_bytes: Callable[[], int]) -> None:
        """Do what was decided; `reserved_bytes` were granted to other engines, which have not taken them yet."""
        verdict, record = ruling.verdict, self.record
        rests = verdict.reason if verdict.fate in (Fate.REST, Fate.DRAIN) else ""
        if record.drain(rests if verdict.fate is Fate.DRAIN else ""):
            self._events.on_free()
        if verdict.fate is Fate.BARRED:
            self._fail(Code.NO_FIT, verdict.reason)
            return
        better = record.process is not None and self._served.places.better(record.process.spec)
        action = plan(record.view(unloads=ruling.unloads, rests=rests, busy=ruling.busy, better=better))
        match action.act:
            case Act.START:
                self._start(reserved_bytes())
            case Act.BURY | Act.KILL:
                self._bury(action)
            case Act.UNLOAD:
                self._unload(action.reason, strained=bool(ruling.unloads))
            case Act.MOVE:
                self._move(action.reason)
            case Act.KEEP:
                record.rest(ruling.unloads or rests)
                self._pace(ruling.rest_share)

    def stop(self) -> None:
        """Ask the engine to exit and wait; kill it when it does not."""
        if (process := self.record.leave(Phase.DOWN, "the agent stops")) is not None:
            process.close(CLOSE_S)

    def _found(self, look: Callable[[], T]) -> T | None:
        """Return what is found at the places of the model; None when there is nothing, which is noted."""
        try:
            return look()
        except NotYetError as error:
            self.known = False
            self.record.wait(str(error))
        except EdgeAgentError as error:
            self._fail(error.code, error.message)
        return None

    def _start(self, reserved_bytes: int) -> None:
        if (prepared := self._found(lambda: self._served.places.prepare(reserved_bytes))) is None:
            return
        spec, needs_bytes = prepared
        log.info("engine.starting", model=self._name, backend=spec.backend, context_tokens=spec.context_tokens)
        try:
            process = EngineProcess(spec, tell=self._tell, gone=self._gone, now_s=self._now_s)
        except OSError as error:
            reason = f"no process could be started ({error.strerror})"
            self.record.leave(Phase.DOWN, reason, Code.ENGINE_DIED)
            log.error("engine.lost", model=self._name, pid=None, reason=reason, retry_s=self._put_off())
            return
        self._rest_share = 0.0
        self.record.load(process, needs_bytes, self._served.places.fallback(spec))
        process.listen()

    def _unload(self, reason: str, *, strained: bool) -> None:
        """Let an engine go in order; a model that has none is not loaded. `strained`: for the machine's sake."""
        process = self.record.leave(Phase.UNLOADED, reason)
        self._renew()
        self.record.strained_bytes = process.anonymous_bytes() or 0 if process and strained else 0
        if process is not None or strained:
            say = log.warning if strained else log.info
            say("engine.unloaded", model=self._name, reason=reason)
        self._events.on_unloaded(self._name)
        if process is not None:
            process.close(CLOSE_S)
            self._wake.set()  # somebody may wait for the room

    def _move(self, reason: str) -> None:
        """Let an engine go in order for another to be started."""
        process = self.record.leave(Phase.DOWN, reason)
        self._renew()
        log.info("engine.moved", model=self._name, reason=reason)
        self._events.on_unloaded(self._name)
        if process is not None:
            process.close(CLOSE_S)
        self._wake.set()

    def _pace(self, share: float) -> None:
        """Tell a running engine how much to rest, when that has changed."""
        process = self.record.at_work()
        if process is not None and share != self._rest_share:
            self._rest_share = share
            process.send(Rest(share))

    def _bury(self, action: Action) -> None:
        """Make sure an engine is gone, tell whose jobs were in it, set when to start the next."""
        record, process = self.record, self.record.process
        assert process is not None  # noqa: S101 - only engines that were started are buried
        if action.act is Act.BURY:
            process.await_exit(EXIT_S)
        process.kill()
        if record.phase is Phase.FAILED:  # it said itself why, and had no jobs yet
            record.clear_failed()
            self._put_off()
            return
        reason = action.reason if action.act is Act.KILL else f"{action.reason} ({process.exit_reason()})"
        served = process.finished > 0
        rows = process.held().rows
        by_its_job = not record.marked_for_kill and is_the_jobs(rows, served=served, before=self._fallen)
        self._fallen = rows
        record.leave(Phase.DOWN, reason, action.code)
        moves = not by_its_job and self._served.places.failed(process.spec, reason)
        retry_s = 0.0
        if moves or by_its_job or served:
            self._renew()
            self._wake.set()
        else:
            retry_s = self._put_off()
        log.error("engine.lost", model=self._name, pid=process.pid, reason=reason, retry_s=retry_s)
        place = f"{process.spec.variant} on {process.spec.device}" if moves else None
        self._events.on_lost(self._name, Failure.because(action.code, reason), place)

    def _renew(self) -> None:
        """Let the next start be at once; it may be at another place, with other needs."""
        self._stale = True
        self.record.reset_backoff()

    def _put_off(self) -> float:
        """Put the next start off; return for how long, in seconds."""
        self._stale = True
        return self.record.back_off()

    def _fail(self, code: Code, reason: str) -> None:
        """Note that the model cannot be loaded as things are; it is tried again later."""
        self.known = False
        self._tell_failed(code, reason, news=self.record.fail(code, reason))
        self._put_off()

    def _tell_failed(self, code: Code, reason: str, *, news: bool) -> None:
        failure = Failure.because(code, reason)
        if news:
            log.error("model.failed", model=self._name, code=code, reason=reason)
        if news or not failure.retryable:
            self._events.on_failed(self._name, failure)

    # On the engine's thread

    def _tell(self, process: EngineProcess, message: Event | Ready | LoadFailed) -> None:
        if self.record.process is not process:
            return
        match message:
            case Ready():
                self._served.places.works(process.spec, message.heard)
                if (took_s := self.record.serve(process, message)) is None:
                    return
                log.info(
                    "engine.ready",
                    model=self._name,
                    pid=process.pid,
                    load_ms=round(message.load_ms),
                    device=message.device,
                )
                self._events.on_up(self._name, took_s)
            case LoadFailed(code, reason):
                if not self.mark_for_kill(process, Failure.because(code, reason)):
                    self.known = False
                    self._tell_failed(code, reason, news=self.record.gave_up(process, code, reason))
            case _:
                self._events.on_event(self._name, message)

    def _gone(self, process: EngineProcess) -> None:
        self.record.gone(process)
        self._wake.set()
