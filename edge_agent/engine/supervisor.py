"""Keeps one engine running per served model: starts it, watches it, kills it when it must be, starts it again.

`plan` decides, and is pure; the rest does what it says. Everything here runs on the main thread, which must live as
long as its children; the callbacks of an engine come on its own threads and only leave notes.
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from edge_agent.engine.backend import ModelSpec
from edge_agent.engine.messages import Event, Limits, LoadFailed, Ready, Rest
from edge_agent.engine.process import EngineProcess
from edge_agent.errors import Code, EdgeAgentError
from edge_agent.jobs.job import Failure
from edge_agent.log import get_logger

SILENCE_S = 30.0
PROMPT_SLACK = 4.0
"""A child is hung when nothing came for SILENCE_S + PROMPT_SLACK times the time its prompts take as measured."""
PREFILL_PER_S_UNKNOWN = 10.0
"""Prompt tokens per second assumed before any were measured: slower than any device the project is for."""
LOAD_S = 900.0
"""A load from a slow card takes minutes; one that takes longer than this will not end."""
BACKOFF_FIRST_S = 1.0
BACKOFF_MOST_S = 60.0
STEADY_S = 300.0
"""An engine that lived this long begins again with the shortest backoff."""
CLOSE_S = 5.0

log = get_logger()


class Phase(StrEnum):
    """How an engine is."""

    FETCHING = "fetching"
    """Its build is being chosen or fetched."""
    STARTING = "starting"
    READY = "ready"
    DOWN = "down"
    FAILED = "failed"
    """The model cannot be loaded as it is; tried again now and then, in case somebody mends it."""
    UNLOADED = "unloaded"
    """Given up so that the machine stays well; loaded again when it is."""


@dataclass(frozen=True, slots=True)
class View:
    """What a decision about an engine rests on. Seconds and bytes; None: not known.

    `unloads` says why none may be loaded now; empty while they may.
    """

    phase: Phase
    alive: bool = False
    exited: bool = False
    busy: bool = False
    silent_s: float = 0.0
    unprocessed_tokens: int = 0
    prefill_per_s: float = 1.0
    anonymous_bytes: int | None = None
    memory_bytes: int | None = None
    waited_s: float = 0.0
    backoff_s: float = 0.0
    silence_s: float = SILENCE_S
    unloads: str = ""


class Act(StrEnum):
    """What to do with an engine."""

    KEEP = "keep"
    START = "start"
    BURY = "bury"
    KILL = "kill"
    UNLOAD = "unload"


@dataclass(frozen=True, slots=True)
class Action:
    """What to do and why; `code` is what its jobs are told."""

    act: Act
    reason: str = ""
    code: Code = Code.ENGINE_DIED


def plan(view: View) -> Action:
    """Decide what to do with an engine."""
    if view.unloads and not view.exited:
        done = not view.alive and view.phase is Phase.UNLOADED
        return Action(Act.KEEP if done else Act.UNLOAD, view.unloads)
    if not view.alive:
        return Action(Act.START) if view.waited_s >= view.backoff_s else Action(Act.KEEP, "waits to be started again")
    if view.exited:
        return Action(Act.BURY, "the engine ended by itself")
    if view.anonymous_bytes is not None and view.memory_bytes is not None and view.anonymous_bytes > view.memory_bytes:
        mebibytes = view.anonymous_bytes // 2**20, view.memory_bytes // 2**20
        reason = "the engine took {} MiB, its reservation is {} MiB".format(*mebibytes)
        return Action(Act.KILL, reason, Code.OUT_OF_MEMORY)
    stuck = _stuck(view)
    return Action(Act.KILL, stuck) if stuck else Action(Act.KEEP)


def _stuck(view: View) -> str:
    """Return why an engine is not waited for any longer; empty while it is."""
    bound_s = view.silence_s + PROMPT_SLACK * view.unprocessed_tokens / view.prefill_per_s
    if view.phase is Phase.STARTING and view.silent_s > LOAD_S:
        return f"the model was not loaded after {LOAD_S:.0f} s"
    if view.phase is Phase.FAILED and view.silent_s > view.silence_s:
        return "the engine could not load the model and did not exit"
    if view.phase is Phase.READY and view.busy and view.silent_s > bound_s:
        return f"the engine said nothing for {view.silent_s:.0f} s"
    return ""


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """What others may know of an engine."""

    model: str
    backend: str
    phase: Phase
    reason: str = ""
    code: Code | None = None
    limits: Limits | None = None
    library: str = ""
    device: str = ""
    variant: str | None = None
    revision: str | None = None
    load_ms: float = 0.0
    starts: int = 0


@dataclass(frozen=True, slots=True)
class Served:
    """A model to keep running. `prepare` finds what to load and how much memory it may take, anew at every start.

    It is given the bytes that other engines were granted and have not taken yet. It raises NotYetError while the build
    is not there yet, EdgeAgentError when the model cannot be loaded as things are.
    """

    name: str
    prepare: Callable[[int], tuple[ModelSpec, int | None]]


class NotYetError(Exception):
    """The build is being chosen or fetched; the message says how far that is."""


@dataclass(frozen=True, slots=True)
class Listener:
    """Whom the supervisor tells, on an engine's thread or its own: `event` of jobs, the others of engines.

    `unloaded` comes before the engine is asked to go: the jobs in it are to be done again.
    """

    event: Callable[[str, Event], None]
    up: Callable[[str, Ready], None]
    lost: Callable[[str, Failure], None]
    unloaded: Callable[[str], None] = lambda _model: None


class _Keeper:
    """One served model and what became of its engine so far."""

    def __init__(self, served: Served) -> None:
        self.served = served
        self.process: EngineProcess | None = None
        self.memory_bytes: int | None = None
        self.phase = Phase.DOWN
        self.backend = ""
        self.reason = "not started yet"
        self.code: Code | None = None
        self.exited = False
        self.since_s = float("-inf")
        self.backoff_s = 0.0
        self.starts = 0
        self.freed_bytes = 0
        self.rest_share = 0.0
        self.images_per_prompt: int | None = None


def automatic(most: Mapping[str, int | None], *, images: int) -> str:
    """Return the model that `auto` means (pure), given how many images each takes; None: not known yet."""
    known = {name: takes for name, takes in most.items() if takes is not None}
    wanted = [name for name, takes in known.items() if (takes >= images if images else takes == 0)]
    unknown = [name for name in most if name not in known]
    return next(iter([*wanted, *unknown, *most]))


def check_images(name: str, most: Mapping[str, int | None], *, images: int) -> None:
    """Raise EdgeAgentError UNSUPPORTED, saying what would do, when a model is known to take fewer images."""
    takes = most[name]
    if takes is None or images <= takes:
        return
    others = [other for other, count in most.items() if count and count >= images]
    instead = f"; this agent's {', '.join(others)} would" if others else "; no model of this agent does"
    sentence = f"takes at most {takes} images" if takes else "is a text model and takes no images"
    raise EdgeAgentError(Code.UNSUPPORTED, f"messages: {name} {sentence}{instead}")


class Supervisor:
    """The engines. Everything but `status`, `statuses`, `process` and `resolve` belongs to the main thread.

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
        self._keepers = {each.name: _Keeper(each) for each in served}
        self._listener = listener
        self._wake = wake
        self._now_s = now_s
        self._silence_s = silence_s
        self._backoff_first_s = backoff_first_s
        self._unloads = unloads
        self._rest_share = rest_share
        self._lock = threading.Lock()

    # For everybody

    def status(self, model: str) -> EngineStatus:
        """Return how a model's engine is."""
        with self._lock:
            keeper = self._keepers[model]
            process = keeper.process
            ready = process.ready if process else None
            return EngineStatus(
                model=model,
                backend=keeper.backend,
                variant=process.spec.variant if process else None,
                revision=process.spec.revision if process else None,
                phase=keeper.phase,
                reason=keeper.reason,
                code=keeper.code,
                limits=ready.limits if ready else None,
                library=ready.library if ready else "",
                device=ready.device if ready else "",
                load_ms=ready.load_ms if ready else 0.0,
                starts=keeper.starts,
            )

    def statuses(self) -> list[EngineStatus]:
        """Return how all engines are."""
        return [self.status(model) for model in self._keepers]

    def process(self, model: str) -> EngineProcess | None:
        """Return a model's engine when it is ready for jobs."""
        with self._lock:
            keeper = self._keepers[model]
            return keeper.process if keeper.phase is Phase.READY else None

    def resolve(self, model: str, *, images: int = 0) -> str:
        """Return the served model that a request with so many images means.

        `auto` is the first that takes images when there are some, else the first text model if there is one. A model
        that was never loaded may be taken for either, see `images_per_prompt`.
        Raises EdgeAgentError UNKNOWN_MODEL, UNSUPPORTED, or the reason why a known one cannot be loaded.
        """
        if not self._keepers:
            raise EdgeAgentError(Code.MODEL_MISSING, "this agent serves no model; add [[models.serve]] to its settings")
        most = {name: self.images_per_prompt(name) for name in self._keepers}
        name = automatic(most, images=images) if model == "auto" else model
        if name not in self._keepers:
            raise EdgeAgentError(Code.UNKNOWN_MODEL, f"model: this agent serves {', '.join(self._keepers)}")
        check_images(name, most, images=images)
        status = self.status(name)
        if status.phase is Phase.FAILED:
            raise EdgeAgentError(status.code or Code.MODEL_MISSING, f"model: cannot be loaded: {status.reason}")
        if status.phase is Phase.FETCHING:
            raise EdgeAgentError(Code.MODEL_MISSING, f"model: is not here yet: {status.reason}")
        return name

    def images_per_prompt(self, model: str) -> int | None:
        """Return how many images a model takes in one prompt, as it said when it was last loaded; None before that."""
        with self._lock:
            return self._keepers[model].images_per_prompt

    @property
    def freed_bytes(self) -> int:
        """What the unloaded engines held, and will hold again, without the files they map."""
        return sum(keeper.freed_bytes for keeper in self._keepers.values() if keeper.phase is Phase.UNLOADED)

    # For the main thread

    def attend(self) -> None:
        """Look after every engine once; call it at least every second."""
        for keeper in self._keepers.values():
            action = plan(self._view(keeper))
            match action.act:
                case Act.START:
                    self._start(keeper)
                case Act.BURY | Act.KILL:
                    self._bury(keeper, action)
                case Act.UNLOAD:
                    self._unload(keeper, action.reason)
                case Act.KEEP:
                    self._pace(keeper)

    def hurry(self) -> None:
        """Let models that were waited for be looked at now; from any thread."""
        with self._lock:
            for keeper in self._keepers.values():
                if keeper.phase in (Phase.FETCHING, Phase.FAILED):
                    keeper.backoff_s = 0.0
        self._wake()

    def stop(self) -> None:
        """Ask every engine to exit and wait; kill what does not."""
        for keeper in self._keepers.values():
            with self._lock:
                process, keeper.process, keeper.phase = keeper.process, None, Phase.DOWN
            if process is not None:
                process.close(CLOSE_S)

    def _view(self, keeper: _Keeper) -> View:
        process = keeper.process
        if process is None:
            waited_s = self._now_s() - keeper.since_s
            return View(phase=keeper.phase, waited_s=waited_s, backoff_s=keeper.backoff_s, unloads=self._unloads())
        return View(
            phase=keeper.phase,
            alive=True,
            exited=keeper.exited,
            busy=process.busy,
            silent_s=process.silent_s,
            unprocessed_tokens=process.unprocessed_tokens,
            prefill_per_s=process.prefill_per_s or PREFILL_PER_S_UNKNOWN,
            anonymous_bytes=process.anonymous_bytes(),
            memory_bytes=keeper.memory_bytes,
            silence_s=self._silence_s,
            unloads=self._unloads(),
        )

    def _start(self, keeper: _Keeper) -> None:
        keeper.since_s = self._now_s()
        keeper.exited = False
        keeper.rest_share = 0.0
        keeper.starts += 1
        try:
            spec, keeper.memory_bytes = keeper.served.prepare(self._granted_bytes(keeper))
        except NotYetError as error:
            with self._lock:
                keeper.phase, keeper.reason, keeper.code = Phase.FETCHING, str(error), Code.MODEL_MISSING
            keeper.starts -= 1
            keeper.backoff_s = self._backoff_first_s
            return
        except EdgeAgentError as error:
            self._fail(keeper, error.code, error.message)
            self._back_off(keeper)
            return
        log.info(
            "engine.starting",
            model=keeper.served.name,
            backend=spec.backend,
            context_tokens=spec.context_tokens,
        )
        process = EngineProcess(spec, tell=self._tell, gone=self._gone, now_s=self._now_s)
        with self._lock:
            keeper.process, keeper.phase, keeper.reason = process, Phase.STARTING, "loading the model"
            keeper.backend = spec.backend
        process.listen()

    def _unload(self, keeper: _Keeper, reason: str) -> None:
        """Let an engine go in order; a model that has none is not loaded."""
        with self._lock:
            process, keeper.process = keeper.process, None
            keeper.phase, keeper.reason, keeper.code = Phase.UNLOADED, reason, None
        keeper.backoff_s = keeper.rest_share = 0.0
        keeper.freed_bytes = 0
        log.warning("engine.unloaded", model=keeper.served.name, reason=reason)
        if process is not None:
            keeper.freed_bytes = process.anonymous_bytes() or 0
            self._listener.unloaded(keeper.served.name)
            process.close(CLOSE_S)

    def _pace(self, keeper: _Keeper) -> None:
        """Tell a running engine how much to rest, when that has changed."""
        share = self._rest_share()
        if keeper.process is not None and keeper.phase is Phase.READY and share != keeper.rest_share:
            keeper.rest_share = share
            keeper.process.send(Rest(share))

    def _granted_bytes(self, keeper: _Keeper) -> int:
        """Return what other engines may still take of the memory that is free now."""
        granted = 0
        for other in self._keepers.values():
            if other is not keeper and other.process is not None and other.memory_bytes is not None:
                granted += max(0, other.memory_bytes - (other.process.anonymous_bytes() or 0))
        return granted

    def _bury(self, keeper: _Keeper, action: Action) -> None:
        """Make sure an engine is gone, tell whose jobs were in it, set when to start the next."""
        process = keeper.process
        assert process is not None  # noqa: S101 - only engines that were started are buried
        process.kill()
        reason = action.reason if action.act is Act.KILL else f"{action.reason} ({process.exit_reason()})"
        with self._lock:
            keeper.process = None
            failed = keeper.phase is Phase.FAILED  # it said itself why, and had no jobs yet
            if not failed:
                keeper.phase, keeper.reason, keeper.code = Phase.DOWN, reason, action.code
        self._back_off(keeper)
        if not failed:
            log.error(
                "engine.lost",
                model=keeper.served.name,
                pid=process.pid,
                reason=reason,
                retry_s=keeper.backoff_s,
            )
            self._listener.lost(keeper.served.name, Failure.because(action.code, reason))

    def _fail(self, keeper: _Keeper, code: Code, reason: str) -> None:
        with self._lock:
            changed = keeper.reason != reason
            keeper.phase, keeper.reason, keeper.code = Phase.FAILED, reason, code
        if changed:
            log.error("model.failed", model=keeper.served.name, code=code, reason=reason)

    def _back_off(self, keeper: _Keeper) -> None:
        steady = self._now_s() - keeper.since_s > STEADY_S
        keeper.backoff_s = self._backoff_first_s if steady else max(self._backoff_first_s, keeper.backoff_s * 2)
        keeper.backoff_s = min(keeper.backoff_s, BACKOFF_MOST_S)
        keeper.since_s = self._now_s()

    # On an engine's thread

    def _keeper_of(self, process: EngineProcess) -> _Keeper | None:
        return next((keeper for keeper in self._keepers.values() if keeper.process is process), None)

    def _tell(self, process: EngineProcess, message: Event | Ready | LoadFailed) -> None:
        with self._lock:
            keeper = self._keeper_of(process)
        if keeper is None:
            return
        name = keeper.served.name
        match message:
            case Ready():
                with self._lock:
                    keeper.phase, keeper.reason, keeper.code = Phase.READY, "", None
                    keeper.images_per_prompt = message.limits.images_per_prompt
                log.info(
                    "engine.ready",
                    model=name,
                    pid=process.pid,
                    load_ms=round(message.load_ms),
                    device=message.device,
                )
                self._listener.up(name, message)
            case LoadFailed(code, reason):
                self._fail(keeper, code, reason)
            case _:
                self._listener.event(name, message)

    def _gone(self, process: EngineProcess) -> None:
        with self._lock:
            keeper = self._keeper_of(process)
            if keeper is not None:
                keeper.exited = True
        self._wake()
