"""The engines of the served models, as everybody may see them."""

from collections.abc import Callable, Mapping

from edge_agent.base.awake import awake_s
from edge_agent.engine.backend import ModelSpec
from edge_agent.engine.hosting import status
from edge_agent.engine.hosting.plan import SILENCE_S
from edge_agent.engine.hosting.process import EngineProcess
from edge_agent.engine.hosting.state import BACKOFF_FIRST_S, EngineState
from edge_agent.engine.hosting.status import EngineStatus
from edge_agent.engine.phase import Phase


class Engines:
    """Made first, from names alone: whoever works with engines looks them up here, and the supervisor keeps them.

    `models` are those that are served, and of each whether it is for jobs that name it alone.
    """

    def __init__(
        self,
        models: Mapping[str, bool],
        *,
        now_s: Callable[[], float] = awake_s,
        silence_s: float = SILENCE_S,
        backoff_first_s: float = BACKOFF_FIRST_S,
    ) -> None:
        self.states: Mapping[str, EngineState] = {
            name: EngineState(name, by_name=by_name, now_s=now_s, silence_s=silence_s, backoff_first_s=backoff_first_s)
            for name, by_name in models.items()
        }
        """By model; only the supervisor writes there."""

    def status(self, model: str) -> EngineStatus:
        """Return how a model's engine is."""
        return self.states[model].status()

    def statuses(self) -> list[EngineStatus]:
        """Return how all engines are."""
        return [each.status() for each in self.states.values()]

    def process(self, model: str) -> EngineProcess | None:
        """Return a model's engine when it is ready for jobs."""
        return self.states[model].at_work()

    def load_s(self, model: str) -> float:
        """Return how long a model's engine may take until it is ready, by its last load: 0 when it is."""
        now = self.status(model)
        return 0.0 if now.phase is Phase.READY else now.load_s

    def takes_jobs(self, model: str) -> bool:
        """Return whether jobs may be claimed for a model that were not yet."""
        return not self.states[model].draining

    def resolve(self, model: str, *, images: int = 0) -> str:
        """Return the served model that a request with so many images means. Raises EdgeAgentError when none."""
        return status.resolve(model, self.statuses(), images=images)

    @property
    def freed_bytes(self) -> int:
        """What the engines held that were given up for the machine's sake, without the files they map."""
        return sum(each.strained_bytes for each in self.states.values() if each.phase is Phase.UNLOADED)

    def loaded(self) -> dict[str, ModelSpec]:
        """Return what is loaded, or being loaded, by model."""
        there = ((name, each.process) for name, each in self.states.items())
        return {name: process.spec for name, process in there if process is not None}

    @property
    def granted_bytes(self) -> int:
        """What the engines may still take of the memory that is free now."""
        return sum(each.granted_bytes for each in self.states.values())
