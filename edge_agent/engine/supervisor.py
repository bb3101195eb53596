"""Keeps the engines of the served models: starts and stops them as needed, watches them, kills them when it must.

`life` decides which models are in memory, `plan` what to do with an engine; both are pure, the rest does what they say.
Everything here runs on the main thread, which must live as long as its children; the callbacks of an engine come on its
own threads and only leave notes.
"""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from edge_agent.engine import life, roster
from edge_agent.engine.backend import ModelSpec
from edge_agent.engine.keeper import BACKOFF_FIRST_S, Keeper, NotYetError, Served
from edge_agent.engine.life import Fate, Verdict
from edge_agent.engine.messages import Event, LoadFailed, Ready, Rest
from edge_agent.engine.plan import CLOSE_S, EXIT_S, SILENCE_S, Act, Action, Phase, plan
from edge_agent.engine.process import EngineProcess
from edge_agent.engine.roster import EngineStatus
from edge_agent.errors import Code, EdgeAgentError
from edge_agent.jobs.job import Failure
from edge_agent.log import get_logger

log = get_logger()


TURN_S = 60.0


@dataclass(frozen=True, slots=True)
class Listener:
    """Whom the supervisor tells, on an engine's thread or its own: `event` of jobs, the others of engines.

    `up` comes with the seconds that the start took, `lost` with the place that was set aside for it, in words; None
    when there is no other place to go to. `unloaded` comes before the engine is asked to go: the jobs in it are to be
    done again. `free`: one takes jobs again that had been about to go. `failed`: a model cannot be loaded, for a reason
    that is new.
    """

    event: Callable[[str, Event], None]
    up: Callable[[str, float], None]
    lost: Callable[[str, Failure, str | None], None]
    unloaded: Callable[[str], None] = lambda _model: None
    free: Callable[[], None] = lambda: None
    failed: Callable[[str], None] = lambda _model: None


class Supervisor:
    """The engines. `attend`, `stop` and `freed_bytes` belong to the main thread, the rest to everybody.

    `wake` is called, from any thread, when `attend` has something to do before its time. `unloads` says why no engine
    may be loaded, and is empty while they may; `rest_share` what share of the time they shall rest. `busy` tells
    whether a model's engine has jobs, or gets some in a moment; `free_bytes` how much memory may be taken now, None
    when nobody knows. `turn_s` is how long a model with jobs keeps its place when others wait for it; `pinned` are
    those that keep it whatever comes.
    """

    def __init__(
        self,
        served: Sequence[Served],
        *,
        listener: Listener,
        wake: Callable[[], None],
        now_s: Callable[[], float] = time.monotonic,
        silence_s: float = SILENCE_S,
        backoff_first_s: float = BACKOFF_FIRST_S,
        turn_s: float = TURN_S,
        unloads: Callable[[], str] = lambda: "",
        rest_share: Callable[[], float] = lambda: 0.0,
        busy: Callable[[str], bool] = lambda _model: False,
        free_bytes: Callable[[], int | None] = lambda: None,
        pinned: Collection[str] = (),
    ) -> None:
        keeper = partial(Keeper, now_s=now_s, silence_s=silence_s, backoff_first_s=backoff_first_s)
        self._keepers = {each.name: keeper(each, pinned=each.name in pinned) for each in served}
        self._listener = listener
        self._wake = wake
        self._now_s = now_s
        self._turn_s = turn_s
        self._unloads = unloads
        self._rest_share = rest_share
        self._busy = busy
        self._free_bytes = free_bytes

    # For everybody

    def status(self, model: str) -> EngineStatus:
        """Return how a model's engine is."""
        return self._keepers[model].status()

    def statuses(self) -> list[EngineStatus]:
        """Return how all engines are."""
        return [keeper.status() for keeper in self._keepers.values()]

    def process(self, model: str) -> EngineProcess | None:
        """Return a model's engine when it is ready for jobs."""
        return self._keepers[model].at_work()

    def load_s(self, model: str) -> float:
        """Return how long a model's engine may take until it is ready, by its last load: 0 when it is."""
        status = self.status(model)
        return 0.0 if status.phase is Phase.READY else status.load_s

    def takes_jobs(self, model: str) -> bool:
        """Return whether jobs may be claimed for a model that were not yet."""
        return not self._keepers[model].draining

    def resolve(self, model: str, *, images: int = 0) -> str:
        """Return the served model that a request with so many images means. Raises EdgeAgentError when none."""
        return roster.resolve(model, self.statuses(), images=images)

    def hurry(self) -> None:
        """Let models that were waited for be looked at now."""
        for keeper in self._keepers.values():
            keeper.hurry()
        self._wake()

    def demand(self, ranks: Mapping[str, float | None]) -> None:
        """Note the rank of the first job that waits for each model; None when none does."""
        missing = [model for model, rank in ranks.items() if self._keepers[model].demand(rank)]
        if missing:
            self._wake()

    def ask(self, model: str) -> None:
        """Load a model as soon as there is room, as a job would that waits for it."""
        self._keepers[model].ask()
        self._wake()

    def relent(self, model: str) -> None:
        """Take an `ask` back."""
        self._keepers[model].relent()

    def dismiss(self, model: str) -> None:
        """Unload a model when nothing runs in it; a job that waits for it loads it again."""
        self._keepers[model].dismiss()
        self._wake()

    def pin(self, model: str, *, pinned: bool) -> None:
        """Keep a model loaded whatever else needs the memory, or no longer."""
        self._keepers[model].pin(pinned=pinned)
        self.hurry()

    def condemn(self, model: str, process: EngineProcess, failure: Failure) -> bool:
        """End an engine for what it did, and set its place aside; return False when there is no other place to go to.

        One that is gone already needs no more than that: whoever was in it hears, or has heard, of its loss.
        """
        keeper = self._keepers[model]
        if keeper.process is not process:
            return True
        if not keeper.served.places.spare(process.spec):
            return False
        keeper.condemned = failure
        self._wake()
        return True

    def forgive(self, model: str) -> None:
        """Note that a job was to blame for what places were said to have done."""
        self._keepers[model].served.places.forgive()

    @property
    def freed_bytes(self) -> int:
        """What the engines held that were given up for the machine's sake, without the files they map."""
        return sum(keeper.freed_bytes for keeper in self._keepers.values() if keeper.phase is Phase.UNLOADED)

    # For the main thread

    def attend(self) -> None:
        """Look after every engine once; call it at least every second."""
        unloads = self._unloads()
        verdicts = {} if unloads else self._decide()
        for keeper in self._keepers.values():
            verdict = verdicts.get(keeper.name)
            if verdict is not None or unloads:
                self._keep(keeper, verdict or Verdict(Fate.STAY), unloads)

    def _decide(self) -> Mapping[str, Verdict]:
        """Decide on every model that is loaded or could be."""
        for keeper in self._keepers.values():
            if keeper.due and (keeper.stale or not keeper.known):
                self._appraise(keeper)
        concerned = [each for each in self._keepers.values() if each.process is not None or each.known]
        free_bytes = None
        if any(each.process is None for each in concerned):
            free_bytes = self._free_bytes()
        if free_bytes is not None:
            free_bytes -= sum(each.granted_bytes for each in concerned)
        models = [each.seen(busy=self._busy(each.name)) for each in concerned]
        return life.decide(models, free_bytes=free_bytes, turn_s=self._turn_s)

    def _keep(self, keeper: Keeper, verdict: Verdict, unloads: str) -> None:
        rests = verdict.reason if verdict.fate in (Fate.REST, Fate.DRAIN) else ""
        if keeper.drain(rests if verdict.fate is Fate.DRAIN else ""):
            self._listener.free()
        if verdict.fate is Fate.BARRED:
            self._fail(keeper, Code.NO_FIT, verdict.reason)
            keeper.back_off()
            return
        action = plan(keeper.view(unloads=unloads, rests=rests, busy=self._busy(keeper.name)))
        match action.act:
            case Act.START:
                self._start(keeper)
            case Act.BURY | Act.KILL:
                self._bury(keeper, action)
            case Act.UNLOAD:
                self._unload(keeper, action.reason, strained=bool(unloads))
            case Act.MOVE:
                self._move(keeper, action.reason)
            case Act.KEEP:
                keeper.rest(unloads or rests)
                self._pace(keeper)

    def stop(self) -> None:
        """Ask every engine to exit and wait; kill what does not."""
        for keeper in self._keepers.values():
            process = keeper.leave(Phase.DOWN, "the agent stops")
            if process is not None:
                process.close(CLOSE_S)

    def _prepare(self, keeper: Keeper, taken_bytes: int) -> tuple[ModelSpec, int | None] | None:
        """Return what to load and how much memory that needs; None when there is nothing, which is noted."""
        try:
            return keeper.served.places.prepare(taken_bytes)
        except NotYetError as error:
            keeper.wait(str(error))
        except EdgeAgentError as error:
            self._fail(keeper, error.code, error.message)
            keeper.back_off()
        return None

    def _appraise(self, keeper: Keeper) -> None:
        """Find out what a model needs when all the others make room but for the pinned ones."""
        others = [other for other in self._keepers.values() if other is not keeper]
        taken_bytes = sum(other.granted_bytes if other.pinned else -other.held_bytes for other in others)
        if prepared := self._prepare(keeper, taken_bytes):
            keeper.learn(prepared[1])

    def _start(self, keeper: Keeper) -> None:
        others = [other for other in self._keepers.values() if other is not keeper]
        prepared = self._prepare(keeper, sum(other.granted_bytes for other in others))
        if prepared is None:
            return
        spec, needs_bytes = prepared
        log.info("engine.starting", model=keeper.name, backend=spec.backend, context_tokens=spec.context_tokens)
        tell, gone = partial(self._tell, keeper), partial(self._gone, keeper)
        process = EngineProcess(spec, tell=tell, gone=gone, now_s=self._now_s)
        keeper.load(process, needs_bytes)
        process.listen()

    def _unload(self, keeper: Keeper, reason: str, *, strained: bool) -> None:
        """Let an engine go in order; a model that has none is not loaded. `strained`: for the machine's sake."""
        process = keeper.leave(Phase.UNLOADED, reason)
        keeper.forgive()
        keeper.freed_bytes = process.anonymous_bytes() or 0 if process and strained else 0
        if process is not None or strained:
            say = log.warning if strained else log.info
            say("engine.unloaded", model=keeper.name, reason=reason)
        self._listener.unloaded(keeper.name)
        if process is not None:
            process.close(CLOSE_S)
            self._wake()  # somebody may wait for the room

    def _move(self, keeper: Keeper, reason: str) -> None:
        """Let an engine go in order for another to be started."""
        process = keeper.leave(Phase.DOWN, reason)
        keeper.forgive()
        log.info("engine.moved", model=keeper.name, reason=reason)
        self._listener.unloaded(keeper.name)
        if process is not None:
            process.close(CLOSE_S)
        self._wake()

    def _pace(self, keeper: Keeper) -> None:
        """Tell a running engine how much to rest, when that has changed."""
        share = self._rest_share()
        if keeper.process is not None and keeper.phase is Phase.READY and share != keeper.rest_share:
            keeper.rest_share = share
            keeper.process.send(Rest(share))

    def _bury(self, keeper: Keeper, action: Action) -> None:
        """Make sure an engine is gone, tell whose jobs were in it, set when to start the next."""
        process = keeper.process
        assert process is not None  # noqa: S101 - only engines that were started are buried
        if action.act is Act.BURY:
            process.await_exit(EXIT_S)
        process.kill()
        if keeper.phase is Phase.FAILED:  # it said itself why, and had no jobs yet
            keeper.mourn()
            keeper.back_off()
            return
        reason = action.reason if action.act is Act.KILL else f"{action.reason} ({process.exit_reason()})"
        keeper.leave(Phase.DOWN, reason, action.code)
        moves = keeper.served.places.failed(process.spec, reason)
        retry_s = 0.0 if moves else keeper.back_off()
        if moves:
            keeper.forgive()
            self._wake()
        log.error("engine.lost", model=keeper.name, pid=process.pid, reason=reason, retry_s=retry_s)
        place = f"{process.spec.variant} on {process.spec.device}" if moves else None
        self._listener.lost(keeper.name, Failure.because(action.code, reason), place)

    # On an engine's thread

    def _tell(self, keeper: Keeper, process: EngineProcess, message: Event | Ready | LoadFailed) -> None:
        if keeper.process is not process:
            return
        match message:
            case Ready():
                keeper.served.places.works(process.spec, message.heard)
                took_s = keeper.serve(message)
                log.info(
                    "engine.ready",
                    model=keeper.name,
                    pid=process.pid,
                    load_ms=round(message.load_ms),
                    device=message.device,
                )
                self._listener.up(keeper.name, took_s)
            case LoadFailed(code, reason):
                if not self.condemn(keeper.name, process, Failure.because(code, reason)):
                    self._fail(keeper, code, reason)
            case _:
                self._listener.event(keeper.name, message)

    def _fail(self, keeper: Keeper, code: Code, reason: str) -> None:
        if keeper.fail(code, reason):
            self._listener.failed(keeper.name)

    def _gone(self, keeper: Keeper, process: EngineProcess) -> None:
        if keeper.process is process:
            keeper.exited = True
        self._wake()
