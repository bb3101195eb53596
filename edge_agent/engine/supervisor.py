"""Keeps one engine running per served model: starts it, watches it, kills it when it must be, starts it again.

`plan` decides, and is pure; the rest does what it says. Everything here runs on the main thread, which must live as
long as its children; the callbacks of an engine come on its own threads and only leave notes.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from edge_agent.engine import roster
from edge_agent.engine.keeper import BACKOFF_FIRST_S, Keeper, NotYetError, Served
from edge_agent.engine.messages import Event, LoadFailed, Ready, Rest
from edge_agent.engine.plan import CLOSE_S, SILENCE_S, Act, Action, Phase, plan
from edge_agent.engine.process import EngineProcess
from edge_agent.engine.roster import EngineStatus
from edge_agent.errors import EdgeAgentError
from edge_agent.jobs.job import Failure
from edge_agent.log import get_logger

log = get_logger()


@dataclass(frozen=True, slots=True)
class Listener:
    """Whom the supervisor tells, on an engine's thread or its own: `event` of jobs, the others of engines.

    `unloaded` comes before the engine is asked to go: the jobs in it are to be done again.
    """

    event: Callable[[str, Event], None]
    up: Callable[[str, Ready], None]
    lost: Callable[[str, Failure], None]
    unloaded: Callable[[str], None] = lambda _model: None


class Supervisor:
    """The engines. Everything but `status`, `statuses`, `process`, `resolve` and `hurry` belongs to the main thread.

    `wake` is called, from any thread, when `attend` has something to do before its time. `unloads` says why no engine
    may be loaded, and is empty while they may; `rest_share` what share of the time they shall rest.
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
        unloads: Callable[[], str] = lambda: "",
        rest_share: Callable[[], float] = lambda: 0.0,
    ) -> None:
        keeper = partial(Keeper, now_s=now_s, silence_s=silence_s, backoff_first_s=backoff_first_s)
        self._keepers = {each.name: keeper(each) for each in served}
        self._listener = listener
        self._wake = wake
        self._now_s = now_s
        self._unloads = unloads
        self._rest_share = rest_share

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

    def resolve(self, model: str, *, images: int = 0) -> str:
        """Return the served model that a request with so many images means. Raises EdgeAgentError when none."""
        return roster.resolve(model, self.statuses(), images=images)

    def hurry(self) -> None:
        """Let models that were waited for be looked at now."""
        for keeper in self._keepers.values():
            keeper.hurry()
        self._wake()

    @property
    def freed_bytes(self) -> int:
        """What the unloaded engines held, and will hold again, without the files they map."""
        return sum(keeper.freed_bytes for keeper in self._keepers.values() if keeper.phase is Phase.UNLOADED)

    # For the main thread

    def attend(self) -> None:
        """Look after every engine once; call it at least every second."""
        for keeper in self._keepers.values():
            action = plan(keeper.view(unloads=self._unloads()))
            match action.act:
                case Act.START:
                    self._start(keeper)
                case Act.BURY | Act.KILL:
                    self._bury(keeper, action)
                case Act.UNLOAD:
                    self._unload(keeper, action.reason)
                case Act.KEEP:
                    self._pace(keeper)

    def stop(self) -> None:
        """Ask every engine to exit and wait; kill what does not."""
        for keeper in self._keepers.values():
            process = keeper.leave(Phase.DOWN, "the agent stops")
            if process is not None:
                process.close(CLOSE_S)

    def _start(self, keeper: Keeper) -> None:
        keeper.begin()
        others = [other for other in self._keepers.values() if other is not keeper]
        try:
            spec, memory_bytes = keeper.served.prepare(sum(other.granted_bytes for other in others))
        except NotYetError as error:
            keeper.wait(str(error))
            return
        except EdgeAgentError as error:
            keeper.fail(error.code, error.message)
            keeper.back_off()
            return
        log.info("engine.starting", model=keeper.name, backend=spec.backend, context_tokens=spec.context_tokens)
        tell, gone = partial(self._tell, keeper), partial(self._gone, keeper)
        process = EngineProcess(spec, tell=tell, gone=gone, now_s=self._now_s)
        keeper.load(process, memory_bytes)
        process.listen()

    def _unload(self, keeper: Keeper, reason: str) -> None:
        """Let an engine go in order; a model that has none is not loaded."""
        process = keeper.leave(Phase.UNLOADED, reason)
        keeper.forgive()
        keeper.freed_bytes = 0
        log.warning("engine.unloaded", model=keeper.name, reason=reason)
        if process is not None:
            keeper.freed_bytes = process.anonymous_bytes() or 0
            self._listener.unloaded(keeper.name)
            process.close(CLOSE_S)

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
        process.kill()
        if keeper.phase is Phase.FAILED:  # it said itself why, and had no jobs yet
            keeper.mourn()
            keeper.back_off()
            return
        reason = action.reason if action.act is Act.KILL else f"{action.reason} ({process.exit_reason()})"
        keeper.leave(Phase.DOWN, reason, action.code)
        retry_s = keeper.back_off()
        log.error("engine.lost", model=keeper.name, pid=process.pid, reason=reason, retry_s=retry_s)
        self._listener.lost(keeper.name, Failure.because(action.code, reason))

    # On an engine's thread

    def _tell(self, keeper: Keeper, process: EngineProcess, message: Event | Ready | LoadFailed) -> None:
        if keeper.process is not process:
            return
        match message:
            case Ready():
                keeper.serve(message)
                log.info(
                    "engine.ready",
                    model=keeper.name,
                    pid=process.pid,
                    load_ms=round(message.load_ms),
                    device=message.device,
                )
                self._listener.up(keeper.name, message)
            case LoadFailed(code, reason):
                keeper.fail(code, reason)
            case _:
                self._listener.event(keeper.name, message)

    def _gone(self, keeper: Keeper, process: EngineProcess) -> None:
        if keeper.process is process:
            keeper.exited = True
        self._wake()
