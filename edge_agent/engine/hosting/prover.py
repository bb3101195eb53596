"""Whether an engine can take a guide: tried beside it, in a process that may die of it; the verdicts are remembered.

A guide is compiled in one go that nobody can interrupt, and what it takes shows only then. So each is tried before its
job is claimed, see child.py, with the library and the vocabulary of the engine. What passes stops the engine's
lanes for no longer than guide.STEP_S.
"""

import hashlib
import signal
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from os import getpid

from edge_agent.base.awake import awake_s
from edge_agent.base.disposable import Disposable, GoneError, LateError
from edge_agent.base.errors import Code, EdgeAgentError
from edge_agent.base.log import get_logger
from edge_agent.engine.backend import ModelSpec, compiles
from edge_agent.engine.guides import guide as bounds
from edge_agent.engine.hosting.process import EngineProcess
from edge_agent.engine.messages import Guide, GuideKind
from edge_agent.jobs.request import Request

START_S = 15.0
"""What the child may take to load a library and a vocabulary: a second or two on a board with a slow card."""
TRIAL_S = 10.0
"""By the clock, what one guide may take: several times its processor time, for a machine that has other work."""
ENOUGH_S = 3 * bounds.STEP_S
"""Processor time that the trial of no good guide takes: for compiling it, for following it, and a last step."""
KEPT = 4096
"""Verdicts remembered, of about 300 bytes each."""

Verdict = EdgeAgentError | int
"""Why an engine cannot take a guide, or how many bytes it keeps of it."""

log = get_logger()


class NotTriedError(Exception):
    """There was no process or no time for a trial, through no fault of the guide; the message says which."""


@dataclass(frozen=True, slots=True)
class GuideCompiler:
    """What a guide is compiled with: the library of a backend, and the vocabulary of a model."""

    backend: str
    path: str
    library: str

    @classmethod
    def of(cls, engine: EngineProcess) -> "GuideCompiler":
        """Return that of an engine that is ready."""
        spec, ready = engine.spec, engine.ready
        return cls(spec.backend, f"{spec.path}@{spec.revision or ''}", ready.library if ready else "")


class Prover:
    """Tries guides. `prove` and `close` are for one thread; `proven` may be called from any."""

    def __init__(
        self,
        *,
        trial_s: float = TRIAL_S,
        command: Callable[[ModelSpec], tuple[str, ...]] | None = None,
        kept: int = KEPT,
        now_s: Callable[[], float] = awake_s,
    ) -> None:
        self._trial_s = trial_s
        self._command = command or _command
        self._most = kept
        self._now_s = now_s
        self._lock = threading.Lock()
        self._verdicts: OrderedDict[tuple[GuideCompiler, bytes], Verdict] = OrderedDict()
        self._build: GuideCompiler | None = None
        self._child: Disposable | None = None

    @property
    def pid(self) -> int | None:
        """The child's process id; None while there is none."""
        return self._child.pid if self._child else None

    def proven(self, guide: Guide, engine: EngineProcess) -> int | None:
        """Return how many bytes an engine keeps of a guide that it is known to be able to take; None for any other."""
        if not compiles(engine.spec.backend):
            return 0
        verdict = self._recall((GuideCompiler.of(engine), _digest(guide)))
        return verdict if isinstance(verdict, int) else None

    def prove(self, guide: Guide, engine: EngineProcess) -> None:
        """Try a guide, unless that was done before.

        Raises EdgeAgentError BAD_REQUEST or UNSUPPORTED when an engine cannot take it, NotTriedError.
        """
        if not compiles(engine.spec.backend):
            return
        key = (GuideCompiler.of(engine), _digest(guide))
        verdict = self._recall(key)
        if verdict is None:
            verdict = self._tried(guide, engine)
            self._note(key, verdict)
        if isinstance(verdict, EdgeAgentError):
            raise EdgeAgentError(verdict.code, verdict.message)

    def refuse(self, guide: Guide, engine: EngineProcess, error: EdgeAgentError) -> None:
        """Note that a guide turned out to be one that an engine cannot take."""
        self._note((GuideCompiler.of(engine), _digest(guide)), error)

    def close(self) -> None:
        """End the child, if there is one."""
        if self._child is not None:
            self._child.close()
            self._child = None

    def _note(self, key: tuple[GuideCompiler, bytes], verdict: Verdict) -> None:
        with self._lock:
            self._verdicts[key] = verdict
            self._verdicts.move_to_end(key)
            while len(self._verdicts) > self._most:
                self._verdicts.popitem(last=False)

    def _recall(self, key: tuple[GuideCompiler, bytes]) -> Verdict | None:
        with self._lock:
            if key in self._verdicts:
                self._verdicts.move_to_end(key)
            return self._verdicts.get(key)

    def _tried(self, guide: Guide, engine: EngineProcess) -> Verdict:
        """Return what comes of a trial. Raises NotTriedError.

        A child that dies may have been killed for others: a second one is tried.
        """
        try:
            bounds.check(guide)
        except EdgeAgentError as error:
            return error
        reason = ""
        for _ in range(2):
            child = self._started(engine)
            try:
                answer = child.ask({"kind": guide.kind, "text": guide.text}, end_s=self._now_s() + self._trial_s)
                return (
                    EdgeAgentError(Code(answer["code"]), answer["message"])
                    if "code" in answer
                    else answer["kept_bytes"]
                )
            except LateError as error:
                if error.cpu_s < ENOUGH_S:
                    raise NotTriedError("the machine has no time for it") from None
                return _refused(f"is not compiled after {self._trial_s:g} s")
            except GoneError as error:
                reason = str(error)
                log.warning("guides.died", reason=reason)
                if reason == signal.SIGXCPU.name:
                    return _refused("takes over 2 s to compile")
        return _refused(f"ended the program that tries it, twice ({reason})")

    def _started(self, engine: EngineProcess) -> Disposable:
        """Return a child with an engine's vocabulary. Raises NotTriedError."""
        build = GuideCompiler.of(engine)
        if self._child is None or self._build != build:
            self.close()
            command = self._command(engine.spec)
            self._child, self._build = Disposable(command, now_s=self._now_s, starts_s=START_S), build
        try:
            self._child.start()
        except (OSError, GoneError) as error:  # a LateError is an OSError
            raise NotTriedError(f"the program that tries it cannot be started ({error})") from error
        return self._child


def guide_of(request: Request, owner: str) -> Guide | None:
    """Return what the answer to a request of an owner must keep to; None for free text."""
    shape = request.response_format
    if shape is None or shape.guide is None:
        return None
    kind, text = shape.guide
    return Guide(GuideKind(kind), text, owner)


def _command(spec: ModelSpec) -> tuple[str, ...]:
    program = (sys.executable, "-m", "edge_agent.engine.guides.child")
    return (*program, "--backend", spec.backend, "--path", str(spec.path), "--parent", str(getpid()))


def _digest(guide: Guide) -> bytes:
    return hashlib.sha256(f"{guide.kind}\n{guide.owner}\n{guide.text}".encode()).digest()


def _refused(what: str) -> EdgeAgentError:
    return EdgeAgentError(Code.BAD_REQUEST, f"response_format: {what}; simplify it")
