"""A model in openvino-genai that keeps prompts for as long as it can tell whose they are."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait

from edge_agent.base.errors import EdgeAgentError
from edge_agent.engine.contained import BrokenError
from edge_agent.engine.messages import Event, Failed, Finished, FinishReason, Generation, JobId, Progress, TokenCounts
from edge_agent.engine.openvino.model import OpenvinoModel

ALIVE_S = 5.0
"""How often the parent hears of us while a model is loaded anew."""


class OpenvinoFirst:
    """At the first generation that could find what is another owner's, those under way come to their end.

    Then the model is loaded anew, and keeps nothing for anybody from then on. `first` keeps prompts, `next_one` loads
    the other. See LoadedModel for what it promises.
    """

    def __init__(self, first: OpenvinoModel, next_one: Callable[[], OpenvinoModel]) -> None:
        self._model: OpenvinoModel = first
        self._next_one = next_one
        self._waiting: dict[JobId, Generation] = {}
        self.limits = first.limits
        self.library = first.library
        self.device = first.device

    def start(self, generation: Generation) -> None:
        """Count tokens; of who waits for the other model, once it is there."""
        if self._waiting or not self._model.admits(generation):
            self._waiting[generation.job_id] = generation
        else:
            self._model.start(generation)

    def step(self) -> Iterator[Event]:
        """Make a step, or load the other model when its time has come. Raises BrokenError when it cannot be."""
        if self._waiting and not self._model.busy:
            yield from self._change()
        yield from self._model.step()

    def cancel(self, job_id: JobId) -> Iterator[Event]:
        """Stop a generation."""
        if self._waiting.pop(job_id, None) is not None:
            yield Finished(job_id, FinishReason.CANCELED, TokenCounts(0, 0), prompt_ms=0.0, generate_ms=0.0)
        else:
            yield from self._model.cancel(job_id)

    def close(self) -> None:
        """Free the model."""
        self._model.close()

    def _change(self) -> Iterator[Event]:
        """Load the other model, saying meanwhile that we are alive, and start who waited for it."""
        self._model.close()  # there is no room for two
        with ThreadPoolExecutor(1, "openvino-load") as pool:
            loading = pool.submit(self._next_one)
            while not wait([loading], ALIVE_S).done:
                for job_id in self._waiting:
                    yield Progress(job_id, self.limits.context_tokens)
            try:
                self._model = loading.result()
            except Exception as error:
                raise BrokenError("the model could not be loaded anew") from error
        waited, self._waiting = self._waiting, {}
        for job_id, generation in waited.items():
            try:
                self._model.start(generation)
            except EdgeAgentError as error:
                yield Failed(job_id, error.code, error.message)
