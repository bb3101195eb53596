"""Keeps the engines of the served models: who is wanted, what is decided on all of them, and that it is done.

`residency` decides which models are in memory, `plan` what to do with an engine; both are pure. `ModelDemand` knows who
wants a model, an `EngineRunner` leads the life of its engine. The main thread, which must live as long as its children,
attends.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from edge_agent.base.awake import awake_s
from edge_agent.engine.backend import ModelSpec
from edge_agent.engine.hosting import residency
from edge_agent.engine.hosting import status as roster
from edge_agent.engine.hosting.demand import ModelDemand
from edge_agent.engine.hosting.plan import SILENCE_S
from edge_agent.engine.hosting.process import EngineProcess
from edge_agent.engine.hosting.residency import Fate, ResidencyVerdict
from edge_agent.engine.hosting.runner import EngineRunner, Listener, Ruling
from edge_agent.engine.hosting.served import Served
from edge_agent.engine.hosting.state import BACKOFF_FIRST_S, Record
from edge_agent.engine.hosting.status import EngineStatus
from edge_agent.engine.phase import Phase
from edge_agent.jobs.job import Failure
from edge_agent.jobs.overview import Demand

TURN_S = 60.0


@dataclass(frozen=True, slots=True)
class _ServedModel:
    """One served model."""

    served: Served
    wants: ModelDemand
    record: Record
    runner: EngineRunner

    def status(self) -> EngineStatus:
        return self.record.status(pinned=self.wants.pinned)


class Supervisor:
    """The engines. `attend` and `stop` belong to the main thread, the rest to everybody.

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
        now_s: Callable[[], float] = awake_s,
        silence_s: float = SILENCE_S,
        backoff_first_s: float = BACKOFF_FIRST_S,
        turn_s: float = TURN_S,
        unloads: Callable[[], str] = lambda: "",
        rest_share: Callable[[], float] = lambda: 0.0,
        busy: Callable[[str], bool] = lambda _model: False,
        free_bytes: Callable[[], int | None] = lambda: None,
        pinned: Collection[str] = (),
    ) -> None:
        def model(each: Served) -> _ServedModel:
            wants = ModelDemand(keep_alive_s=each.keep_alive_s, pinned=each.name in pinned, now_s=now_s)
            record = Record(each, now_s=now_s, silence_s=silence_s, backoff_first_s=backoff_first_s)
            return _ServedModel(
                each, wants, record, EngineRunner(each, record, listener=listener, wake=wake, now_s=now_s)
            )

        self._models = {each.name: model(each) for each in served}
        self._wake = wake
        self._turn_s = turn_s
        self._unloads = unloads
        self._rest_share = rest_share
        self._busy = busy
        self._free_bytes = free_bytes

    # How engines are

    def status(self, model: str) -> EngineStatus:
        """Return how a model's engine is."""
        return self._models[model].status()

    def statuses(self) -> list[EngineStatus]:
        """Return how all engines are."""
        return [each.status() for each in self._models.values()]

    def process(self, model: str) -> EngineProcess | None:
        """Return a model's engine when it is ready for jobs."""
        return self._models[model].record.at_work()

    def load_s(self, model: str) -> float:
        """Return how long a model's engine may take until it is ready, by its last load: 0 when it is."""
        status = self.status(model)
        return 0.0 if status.phase is Phase.READY else status.load_s

    def takes_jobs(self, model: str) -> bool:
        """Return whether jobs may be claimed for a model that were not yet."""
        return not self._models[model].record.draining

    def resolve(self, model: str, *, images: int = 0) -> str:
        """Return the served model that a request with so many images means. Raises EdgeAgentError when none."""
        return roster.resolve(model, self.statuses(), images=images)

    @property
    def freed_bytes(self) -> int:
        """What the engines held that were given up for the machine's sake, without the files they map."""
        given_up = (each for each in self._models.values() if each.record.phase is Phase.UNLOADED)
        return sum(each.runner.strained_bytes for each in given_up)

    def loaded(self) -> dict[str, ModelSpec]:
        """Return what is loaded, or being loaded, by model."""
        there = ((name, each.record.process) for name, each in self._models.items())
        return {name: process.spec for name, process in there if process is not None}

    @property
    def granted_bytes(self) -> int:
        """What the engines may still take of the memory that is free now."""
        return sum(each.record.granted_bytes for each in self._models.values())

    # What is wanted

    def hurry(self) -> None:
        """Let models that were waited for be looked at now."""
        for each in self._models.values():
            each.runner.hurry()
        self._wake()

    def demand(self, demands: Mapping[str, Demand | None]) -> None:
        """Note the jobs that wait for each model."""
        for model, jobs in demands.items():
            self._models[model].wants.demand(jobs)
        if any(jobs is not None and self._models[model].record.process is None for model, jobs in demands.items()):
            self._wake()

    def ask(self, model: str) -> None:
        """Load a model as soon as there is room, as a job would that waits for it."""
        self._models[model].record.retry()
        self._models[model].wants.ask()
        self._wake()

    def relent(self, model: str) -> None:
        """Take an `ask` back."""
        self._models[model].wants.relent()

    def dismiss(self, model: str) -> None:
        """Unload a model when nothing runs in it; a job that waits for it loads it again."""
        self._models[model].wants.dismiss()
        self._wake()

    def keep(self, model: str) -> None:
        """Take a `dismiss` back: it takes jobs again."""
        self._models[model].wants.keep()
        self._wake()

    def pin(self, model: str, *, pinned: bool) -> None:
        """Keep a model loaded whatever else needs the memory, or no longer."""
        self._models[model].wants.pin(pinned=pinned)
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
        unloads = self._unloads()
        verdicts = {} if unloads else self._decide()
        for name, each in self._models.items():
            verdict = ResidencyVerdict(Fate.STAY) if unloads else verdicts.get(name)
            if verdict is not None:
                ruling = Ruling(verdict, unloads, self._rest_share(), self._busy(name))
                each.runner.follow(ruling, reserved_bytes=partial(self._granted_beside, each))

    def stop(self) -> None:
        """Ask every engine to exit and wait; kill what does not."""
        for each in self._models.values():
            each.runner.stop()

    def _decide(self) -> Mapping[str, ResidencyVerdict]:
        """Decide on every model that is loaded or could be."""
        concerned = []
        for name, each in self._models.items():
            each.runner.appraise(partial(self._taken_beside, each))
            if each.record.phase in (Phase.READY, Phase.FAILED):
                each.wants.relent()  # it is there, or cannot be
            seen = each.wants.join(each.record.seen(busy=self._busy(name)))
            if seen.loaded or each.runner.known:
                concerned.append(seen)
        free_bytes = None if all(seen.loaded for seen in concerned) else self._free_bytes()
        if free_bytes is not None:
            free_bytes -= self.granted_bytes
        return residency.decide(concerned, free_bytes=free_bytes, turn_s=self._turn_s)

    def _granted_beside(self, model: _ServedModel) -> int:
        """Return what all others were granted and have not taken yet."""
        return sum(each.record.granted_bytes for each in self._models.values() if each is not model)

    def _taken_beside(self, model: _ServedModel) -> int:
        """Return what would be taken when all others make room but for the pinned ones."""
        others = [each for each in self._models.values() if each is not model]
        return sum(each.record.granted_bytes if each.wants.pinned else -each.record.held_bytes for each in others)
