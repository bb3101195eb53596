"""What every model here does alike with the answers under way in it: start, cancel, end, fail."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from edge_agent.base.errors import EdgeAgentError
from edge_agent.engine.contained import contained
from edge_agent.engine.messages import (
    Event,
    Failed,
    Finished,
    FinishReason,
    Generation,
    JobId,
    ModelLimits,
    Text,
    TokenCounts,
)
from edge_agent.engine.text.detokenizer import Words
from edge_agent.engine.text.stops import StopStrings


@dataclass(slots=True, kw_only=True)
class RunningSequence(ABC):
    """One generation under way: begun with the first piece of its prompt, prefilled with the last.

    `words` hold back what might go on to a stop string, or a character.
    """

    generation: Generation
    words: StopStrings | Words
    begun_s: float | None = None
    prefilled_s: float | None = None

    @property
    def job_id(self) -> JobId:
        """Whose it is."""
        return self.generation.job_id

    @property
    @abstractmethod
    def counts(self) -> TokenCounts:
        """Its tokens so far."""

    def finished(self, reason: FinishReason, now_s: float) -> Finished:
        """Return the last word on it."""
        begun_s = now_s if self.begun_s is None else self.begun_s
        prefilled_s = now_s if self.prefilled_s is None else self.prefilled_s
        return Finished(
            self.job_id,
            reason,
            self.counts,
            prompt_ms=(prefilled_s - begun_s) * 1000,
            generate_ms=(now_s - prefilled_s) * 1000,
        )


S = TypeVar("S", bound=RunningSequence)


class AnsweringModel(ABC, Generic[S]):
    """A model in memory; see LoadedModel for what it promises. Who inherits says how to count, compute and give back.

    `library` is the name and version of what computes.
    """

    def __init__(self, *, limits: ModelLimits, library: str, device: str, now_s: Callable[[], float]) -> None:
        self._now_s = now_s
        self._sequences: dict[JobId, S] = {}
        self.limits = limits
        self.library = library
        self.device = device

    def start(self, generation: Generation) -> None:
        """Count the prompt's tokens and compile the guide.

        Raises EdgeAgentError: PROMPT_TOO_LONG with the counts, BAD_REQUEST for a role or a guide, UNSUPPORTED,
        IMAGE_MISSING and INTERNAL.
        """
        with contained(computes=False):
            self._sequences[generation.job_id] = self._counted(generation)

    def cancel(self, job_id: JobId) -> Iterator[Event]:
        """Stop a generation and give back what it held."""
        sequence = self._sequences.get(job_id)
        if sequence is not None:
            yield from self._advance(sequence, self._stop)

    @abstractmethod
    def _counted(self, generation: Generation) -> S:
        """Return what is to be answered, with nothing computed. Raises EdgeAgentError."""

    @abstractmethod
    def _give_back(self, sequence: S) -> None:
        """Give back what a sequence holds of the library."""

    def _advance(self, sequence: S, move: Callable[[S], Iterator[Event]]) -> Iterator[Event]:
        """Make a move; whatever goes wrong in it ends this generation and no other."""
        try:
            with contained():
                yield from move(sequence)
        except EdgeAgentError as error:
            yield self._fail(sequence, error)

    def _stop(self, sequence: S) -> Iterator[Event]:
        if held := sequence.words.rest():
            yield Text(sequence.job_id, held, 0)
        yield self._finish(sequence, FinishReason.CANCELED)

    def _finish(self, sequence: S, reason: FinishReason) -> Finished:
        self._free(sequence)
        return sequence.finished(reason, self._now_s())

    def _fail(self, sequence: S, error: EdgeAgentError) -> Failed:
        self._free(sequence)
        return Failed(sequence.job_id, error.code, error.message)

    def _free(self, sequence: S) -> None:
        self._sequences.pop(sequence.job_id, None)
        self._give_back(sequence)
