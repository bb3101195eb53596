"""One generation under way in a LaneModel."""

from dataclasses import dataclass, field

from edge_agent.engine.answering import RunningSequence
from edge_agent.engine.batching.lane_guide import Constraint
from edge_agent.engine.batching.lane_parts import Logits
from edge_agent.engine.batching.lanes import NOWHERE, Lane
from edge_agent.engine.batching.picture import Features, Picture
from edge_agent.engine.batching.sampling import Sampler
from edge_agent.engine.messages import FinishReason, TokenCounts
from edge_agent.engine.text.detokenizer import Words


@dataclass(slots=True, kw_only=True)
class LaneSequence(RunningSequence):
    """A prompt, its answer so far, and the lane that holds its keys and values.

    `tokens` are the ids of both, the first `prompt_tokens` of them the prompt's; those of `pictures`, in order, are
    below 0. `lane` is one of the model's once its
    turn has come; `logits`, shape [vocabulary], are there while they wait for a token to be chosen by them.
    """

    tokens: list[int]
    prompt_tokens: int
    max_tokens: int
    words: Words
    sampler: Sampler
    constraint: Constraint | None
    pictures: tuple[Picture, ...] = ()
    lane: Lane = field(default_factory=lambda: Lane(NOWHERE))
    logits: Logits | None = None
    cached_tokens: int = 0

    @property
    def counts(self) -> TokenCounts:
        """Its tokens so far."""
        return TokenCounts(self.prompt_tokens, self.completion_tokens, self.cached_tokens)

    @property
    def completion_tokens(self) -> int:
        """Tokens of the answer so far."""
        return len(self.tokens) - self.prompt_tokens

    @property
    def unprocessed_tokens(self) -> int:
        """Tokens whose keys and values are still to be computed."""
        return len(self.tokens) - len(self.lane.tokens)

    @property
    def unfilled_tokens(self) -> int:
        """The same for who takes turns: a text that must be computed anew goes first, for somebody reads it."""
        return 0 if self.prefilled_s is not None else self.unprocessed_tokens

    @property
    def has_images(self) -> bool:
        """Whether its prompt has any."""
        return bool(self.pictures)

    @property
    def generating(self) -> bool:
        """Whether its next step is one token, not a piece of prompt."""
        return self.logits is not None or (self.prefilled_s is not None and self.unprocessed_tokens == 1)

    def unseen(self, begin: int, end: int) -> Picture | None:
        """Return the first picture with a token between these whose features are not there."""
        return next((each for each in self._pictures(begin, end) if each.features is None), None)

    def features(self, begin: int, end: int) -> list[Features]:
        """Return the features of the tokens between these."""
        return [
            each.features[max(0, begin - each.begin) : end - each.begin]
            for each in self._pictures(begin, end)
            if each.features is not None
        ]

    def forget(self, end: int) -> None:
        """Drop the features of pictures that end there or before: they take 12 kB a token."""
        for picture in self.pictures:
            if picture.end <= end:
                picture.keep(None)

    def choose(self) -> int:
        """Return the next token by the logits, which are used up. Raises EdgeAgentError."""
        logits, self.logits = self.logits, None
        if logits is None:
            raise RuntimeError("nothing was computed to choose by")
        return self.sampler.choose(logits, None if self.constraint is None else self.constraint.allowed())

    def take(self, token: int, end_ids: frozenset[int]) -> tuple[str, FinishReason | None]:
        """Add a token; return the text that is certain with it, and the reason when it was the last."""
        self.tokens.append(token)
        if token in end_ids:
            return self.words.rest(), FinishReason.STOP
        text = self.words.feed(token)
        if self.words.stopped:
            return text, FinishReason.STOP
        if self.constraint is not None:
            self.constraint.take(token)
            if self.constraint.complete:
                return text + self.words.rest(), FinishReason.STOP
        if self.completion_tokens == self.max_tokens:
            return text + self.words.rest(), FinishReason.LENGTH
        return text, None

    def _pictures(self, begin: int, end: int) -> list[Picture]:
        return [each for each in self.pictures if each.begin < end and begin < each.end]
