"""One bench of one model: engines are loaded one after the other, never two at once, and measured."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from edge_agent.base.errors import Code, EdgeAgentError
from edge_agent.bench import calibrate, workload
from edge_agent.bench.calibrate import Calibration, Options, Tried
from edge_agent.bench.workload import Figure, Plan, WorkloadPrompts
from edge_agent.engine.backend import ModelSpec
from edge_agent.engine.facts import THREADS, Axis
from edge_agent.engine.hosting.one_shot import OneShotEngine
from edge_agent.engine.messages import Ready
from edge_agent.engine.selftest.canary import ANSWER_TOKENS, beginning
from edge_agent.models.load import Placed, prepare
from edge_agent.models.memory import CONTEXT_TOKENS_MIN
from edge_agent.settings.load import ServeSection
from hardware.machine import Machine

ROOM_TOKENS = 64
"""Prompts come out a little longer or shorter than wanted."""


@dataclass(frozen=True, slots=True)
class Subject:
    """What is measured. `name` is what a measurement is kept under, `label` what people call it.

    `meaning`: its weights are not random, so its texts tell whether a setting does harm.
    """

    placed: Placed
    name: str
    label: str
    meaning: bool


@dataclass(frozen=True, slots=True)
class Report:
    """Everything a bench has found out. `heard` is what the answer to the bench's question begins with."""

    subject: Subject
    plan: Plan
    options: Options
    spec: ModelSpec
    ready: Ready
    rows: tuple[Figure, ...]
    calibration: Calibration | None
    kept: Path | None = None
    heard: str = ""

    def row(self, name: str) -> Figure:
        """Return the engine's row of a name; an empty one when it was not measured."""
        return next((row for row in self.rows if row.name == name), Figure(name, ()))


def context_tokens(plan: Plan) -> int:
    """Return the context that a plan takes."""
    return max(plan.prompt_tokens + plan.answer_tokens + ROOM_TOKENS, CONTEXT_TOKENS_MIN)


class NothingSoundError(EdgeAgentError):
    """It does not run, or under no setting with the texts of plain arithmetic; `calibration` says what was tried."""

    def __init__(self, calibration: Calibration) -> None:
        faults = [each.tried.fault for each in calibration.verdicts if each.tried.fault]
        nonsense = "under no setting does this build answer as with plain arithmetic; take another build"
        super().__init__(Code.MODEL_ERROR, faults[-1] if len(faults) == len(calibration.verdicts) else nonsense)
        self.calibration = calibration


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """A bench. `machine` is asked anew before every load; `tell` hears what is done next.

    `question` is what builds are asked when they are tried; None: nobody wants to know what this one says.
    """

    subject: Subject
    plan: Plan
    machine: Callable[[], Machine]
    tell: Callable[[str], None]
    question: str | None = None

    @property
    def context_tokens(self) -> int:
        """What every lane must hold."""
        return context_tokens(self.plan)

    def calibrate(self, along: tuple[Axis, ...], default: Options) -> Calibration:
        """Find the best settings. Raises NothingSoundError."""
        place = self.subject.placed
        found = calibrate.walk(
            default,
            along,
            reference=calibrate.plain(place.backend, place.device),
            meaning=self.subject.meaning,
            attempt=self._attempt,
        )
        if found.best is None:
            raise NothingSoundError(found)
        return found

    def measure(self, options: Options, calibration: Calibration | None = None) -> Report:
        """Measure the engine with these settings, from its start on. Raises EdgeAgentError."""
        jobs_most = max(self.plan.jobs)
        self.tell("first start")
        with self._trial(self._spec(options, parallel=jobs_most)) as trial:
            first_s = trial.ready_s
        self.tell("second start")
        spec = self._spec(options, parallel=jobs_most)
        with self._trial(spec) as trial:
            started = (
                Figure("ready_first_start_s", (first_s,)),
                Figure("ready_second_start_s", (trial.ready_s,)),
                Figure("load_ms", (trial.ready.load_ms,)),
            )
            rows = workload.rows(trial, self.plan, WorkloadPrompts.fitted(trial), tell=self.tell)
            heard = self._hear(trial)
            return Report(
                self.subject, self.plan, options, spec, trial.ready, (*started, *rows), calibration, heard=heard
            )

    def _hear(self, trial: OneShotEngine) -> str:
        """Return what the answer to the question begins with, as it would at a trial."""
        if self.question is None:
            return ""
        (spell,) = trial.ask([self.question], max_tokens=ANSWER_TOKENS)
        return beginning(spell.text)

    def _attempt(self, options: Options) -> Tried:
        self.tell(f"tries {in_words(options)}")
        try:
            with self._trial(self._spec(options, parallel=1)) as trial:
                return Tried(options, workload.decode_per_s(trial, self.plan), workload.answers(trial))
        except EdgeAgentError as error:
            return Tried(options, fault=error.message)

    @contextmanager
    def _trial(self, spec: ModelSpec) -> Iterator[OneShotEngine]:
        with OneShotEngine(spec) as trial:
            known_tokens = trial.ready.limits.context_tokens
            if known_tokens < self.context_tokens:
                raise EdgeAgentError(
                    Code.PROMPT_TOO_LONG,
                    f"this build takes {known_tokens} tokens of context here, and this takes {self.context_tokens}; "
                    "ask for fewer --prompt-tokens or --tokens",
                )
            yield trial

    def _spec(self, options: Options, *, parallel: int) -> ModelSpec:
        """Return what to load, as memory is now. Raises EdgeAgentError NO_FIT."""
        place = self.subject.placed
        library = {name: value for name, value in options.items() if name != THREADS}
        serve = ServeSection(
            name="bench",
            path=place.path,
            context_tokens=self.context_tokens,
            parallel=parallel,
            threads=int(options[THREADS]) if THREADS in options else None,
        )
        try:
            spec, _ = prepare(replace(place, options=library), serve, self.machine())
        except EdgeAgentError as error:
            raise EdgeAgentError(error.code, f"{self.subject.label} cannot be loaded: {error.message}") from error
        if spec.context_tokens < self.context_tokens:
            raise EdgeAgentError(
                Code.NO_FIT,
                f"memory holds {spec.context_tokens} tokens of context, and this takes {self.context_tokens}; ask for "
                "fewer --prompt-tokens or --tokens",
            )
        return spec


def in_words(options: Options) -> str:
    """Return settings as `name=value`; without any they are the backend's own."""
    return ", ".join(f"{name}={value}" for name, value in options.items()) or "the backend's own"
