"""Keeps the engines of the served models: who is wanted, what is decided on all of them, and that it is done.

`residency` decides which models are in memory, `plan` what to do with an engine; both are pure. `ModelDemand` knows who
wants a model, an `EngineRunner` leads the life of its engine. The main thread, which must live as long as its children,
attends.
"""

import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from edge_agent.base.awake import awake_s
from edge_agent.engine.hosting import residency
from edge_agent.engine.hosting.demand import ModelDemand
from edge_agent.engine.hosting.engines import Engines
from edge_agent.engine.hosting.process import EngineProcess
from edge_agent.engine.hosting.residency import Fate, ResidencyVerdict
from edge_agent.engine.hosting.runner import EngineEvents, EngineRunner, Ruling
from edge_agent.engine.hosting.served import Served
from edge_agent.engine.hosting.state import EngineState
from edge_agent.engine.phase import Phase
from edge_agent.jobs.job import Failure
from edge_agent.jobs.overview import Demand

TURN_S = 60.0


class MachineStrain(Protocol):
    """What the machine can bear."""

    @property
    def unloads(self) -> str:
        """Why no engine may be loaded; empty while they may."""

    @property
    def rest_share(self) -> float:
        """The share of the time an engine shall rest between its steps."""


class Work(Protocol):
    """What a model's engine has to do."""

    @property
    def busy(self) -> bool:
        """Whether it has jobs, or gets some in a moment."""


@dataclass(frozen=True, slots=True)
class _ServedModel:
    """One served model."""

    served: Served
    wants: ModelDemand
    record: EngineState
    runner: EngineRunner
    work: Work


class Supervisor:
    """Keeps the engines. `attend` and `stop` belong to the main thread, the rest to everybody.

    `wake` is set, from any thread, when `attend` has something to do before its time. `work` is by model; `free_bytes`
    tells how much memory may be taken now, None when nobody knows. `turn_s` is how long a model with jobs keeps its
    place when others wait for it; `pinned` are those that keep it whatever comes.
    """

    def __init__(
        self,
        served: Sequence[Served],
        *,
        engines: Engines,
        wake: threading.Event,
        strain: MachineStrain,
        work: Mapping[str, Work],
        free_bytes: Callable[[], int | None] = lambda: None,
        now_s: Callable[[], float] = awake_s,
        turn_s: float = TURN_S,
        pinned: Collection[str] = (),
    ) -> None:
        self.events = EngineEvents()

        def model(each: Served) -> _ServedModel:
            wants = ModelDemand(keep_alive_s=each.keep_alive_s, pinned=each.name in pinned, now_s=now_s)
            record = engines.states[each.name]
            record.pinned = wants.pinned
            runner = EngineRunner(each, record, events=self.events, wake=wake, now_s=now_s)
            return _ServedModel(each, wants, record, runner, work[each.name])

        self._models = {each.name: model(each) for each in served}
        self._engines = engines
        self._wake = wake
        self._turn_s = turn_s
        self._strain = strain
        self._free_bytes = free_bytes

    # What is wanted

    def hurry(self) -> None:
        """Let models that were waited for be looked at now."""
        for each in self._models.values():
            each.runner.hurry()
        self._wake.set()

    def demand(self, demands: Mapping[str, Demand | None]) -> None:
        """Note the jobs that wait for each model."""
        for model, jobs in demands.items():
            self._models[model].wants.demand(jobs)
        if any(jobs is not None and self._models[model].record.process is None for model, jobs in demands.items()):
            self._wake.set()

    def ask(self, model: str) -> None:
        """Load a model as soon as there is room, as a job would that waits for it."""
        self._models[model].record.retry()
        self._models[model].wants.ask()
        self._wake.set()

    def relent(self, model: str) -> None:
        """Take an `ask` back."""
        self._models[model].wants.relent()

    def dismiss(self, model: str) -> None:
        """Unload a model when nothing runs in it; a job that waits for it loads it again."""
        self._models[model].wants.dismiss()
        self._wake.set()

    def keep(self, model: str) -> None:
        """Take a `dismiss` back: it takes jobs again."""
        self._models[model].wants.keep()
        self._wake.set()

    def pin(self, model: str, *, pinned: bool) -> None:
        """Keep a model loaded whatever else needs the memory, or no longer."""
        each = self._models[model]
        each.wants.pin(pinned=pinned)
        each.record.pinned = pinned
        self.hurry()

    def mark_for_kill(self, model: str, process: EngineProcess, failure: Failure) -> bool:
        """End an engine for what it did, and set its place aside; return False when there is no other place to go to.

        One that is gone already needs no more than that: whoever was in it hears, or has heard, of its loss.
        """
        return self._models[model].runner.mark_for_kill(process, failure)

    def reset_backoff(self, model: str) -> None:
        """Note that a job was to blame for what places were said to have done."""
        self._models[model].served.places.reset_backoff()

    # For the main thread

    def attend(self) -> None:
        """Look after every engine once; call it at least every second."""
        unloads = self._strain.unloads
        verdicts = {} if unloads else self._decide()
        for name, each in self._models.items():
            verdict = ResidencyVerdict(Fate.STAY) if unloads else verdicts.get(name)
            if verdict is not None:
                ruling = Ruling(verdict, unloads, self._strain.rest_share, each.work.busy)
                each.runner.follow(ruling, reserved_bytes=partial(self._granted_beside, each))

    def stop(self) -> None:
        """Ask every engine to exit and wait; kill what does not."""
        for each in self._models.values():
            each.runner.stop()

    def _decide(self) -> Mapping[str, ResidencyVerdict]:
        """Decide on every model that is loaded or could be."""
        concerned = []
        for each in self._models.values():
            each.runner.appraise(partial(self._taken_beside, each))
            if each.record.phase in (Phase.READY, Phase.FAILED):
                each.wants.relent()  # it is there, or cannot be
            seen = each.wants.join(each.record.seen(busy=each.work.busy))
            if seen.loaded or each.runner.known:
                concerned.append(seen)
        free_bytes = None if all(seen.loaded for seen in concerned) else self._free_bytes()
        if free_bytes is not None:
            free_bytes -= self._engines.granted_bytes
        return residency.decide(concerned, free_bytes=free_bytes, turn_s=self._turn_s)

    def _granted_beside(self, model: _ServedModel) -> int:
        """Return what all others were granted and have not taken yet."""
        return sum(each.record.granted_bytes for each in self._models.values() if each is not model)

    def _taken_beside(self, model: _ServedModel) -> int:
        """Return what would be taken when all others make room but for the pinned ones."""
        others = [each for each in self._models.values() if each is not model]
        return sum(each.record.granted_bytes if each.wants.pinned else -each.record.held_bytes for each in others)
