"""A model in openvino-genai that keeps prompts for the first owner who asks, while there is no other."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

from edge_agent.engine.messages import Event, Failed, Finished, FinishReason, Generation, JobId, Progress, Usage
from edge_agent.engine.openvino_model import OpenvinoModel
from edge_agent.errors import EdgeAgentError

ALIVE_S = 5.0
"""How often the parent hears of us while a model is loaded anew."""


class OpenvinoFirst:
    """For a model that sees: what stands for its tokens has no other names, so owners cannot be told apart.

    When a second owner asks, those under way come to their end, the model is loaded anew, and keeps nothing for
    anybody from then on. `first` keeps prompts, `next_one` loads the other. See LoadedModel for what it promises.
    """

    def __init__(self, first: OpenvinoModel, next_one: Callable[[], OpenvinoModel]) -> None:
        self._model: OpenvinoModel = first
        self._next_one: Callable[[], OpenvinoModel] | None = next_one
        self._owner = ""
        self._waiting: dict[JobId, Generation] = {}
        self.limits = first.limits
        self.library = first.library
        self.device = first.device

    def start(self, generation: Generation) -> None:
        """Count tokens; of who waits for the other model, once it is there."""
        self._owner = self._owner or generation.owner
        if self._next_one is not None and (self._waiting or generation.owner not in {"", self._owner}):
            self._waiting[generation.job_id] = generation
        else:
            self._model.start(generation)

    def step(self) -> Iterator[Event]:
        """Make a step, or load the other model when its time has come."""
        if self._waiting and not self._model.busy:
            yield from self._change()
        yield from self._model.step()

    def cancel(self, job_id: JobId) -> Iterator[Event]:
        """Stop a generation."""
        if self._waiting.pop(job_id, None) is not None:
            yield Finished(job_id, FinishReason.CANCELED, Usage(0, 0), prompt_ms=0.0, generate_ms=0.0)
        else:
            yield from self._model.cancel(job_id)

    def close(self) -> None:
        """Free the model."""
        self._model.close()

    def _change(self) -> Iterator[Event]:
        """Load the other model, saying meanwhile that we are alive, and start who waited for it."""
        next_one, self._next_one = self._next_one, None
        if next_one is None:
            raise RuntimeError("it was changed already")
        self._model.close()  # there is no room for two
        with ThreadPoolExecutor(1, "openvino-load") as pool:
            loading = pool.submit(next_one)
            while True:
                for job_id in self._waiting:
                    yield Progress(job_id, self.limits.context_tokens)
                try:
                    self._model = loading.result(ALIVE_S)
                    break
                except TimeoutError:
                    continue
        waited, self._waiting = self._waiting, {}
        for job_id, generation in waited.items():
            try:
                self._model.start(generation)
            except EdgeAgentError as error:
                yield Failed(job_id, error.code, error.message)
