"""One generation under way in openvino-genai."""

import secrets
from dataclasses import dataclass, field
from typing import Any

import openvino_genai as genai

from edge_agent.base.errors import Code, EdgeAgentError
from edge_agent.engine.answering import RunningSequence
from edge_agent.engine.messages import FinishReason, Generation, TokenCounts
from edge_agent.engine.openvino.prompt import CountedPrompt
from edge_agent.engine.text.detokenizer import Words

_SEEDS = 2**32
"""The library's generator takes 32 bits of a seed."""


@dataclass(slots=True, kw_only=True)
class OpenvinoSequence(RunningSequence):
    """One generation under way. `handle` is the library's, of the piece being computed and then of the whole.

    `position` of the `prompt`'s tokens have keys and values; those of `cached_tokens` were there before, None while
    nobody looked. They stay until `kept_until` tokens were written since the load.
    """

    prompt: CountedPrompt
    max_tokens: int
    words: Words
    guide: Any
    handle: Any = None
    cached_tokens: int | None = None
    position: int = 0
    kept_until: int = 0
    answer: list[int] = field(default_factory=list)

    @property
    def counts(self) -> TokenCounts:
        """Its tokens so far."""
        return TokenCounts(len(self.prompt.tokens), len(self.answer), self.cached_tokens or 0)

    @property
    def computed(self) -> list[int]:
        """The tokens that have keys and values; the last one of an answer gets them with the next."""
        return [*self.prompt.tokens[: self.position], *self.answer[:-1]]

    @property
    def prefilled(self) -> bool:
        """Whether its next step is one token, not a piece of prompt."""
        return self.prefilled_s is not None

    @property
    def unfilled_tokens(self) -> int:
        """Tokens of the prompt that have no keys and values yet."""
        return len(self.prompt.tokens) - self.position

    @property
    def has_images(self) -> bool:
        """Whether its prompt has any."""
        return any(turn.images for turn in self.generation.turns)

    def take(self, token: int, end: Any) -> tuple[str, FinishReason | None]:
        """Count a token; return the text that is certain with it, and the reason when it was the last."""
        self.answer.append(token)
        text = self.words.feed(token)
        if self.words.stopped:
            return text, FinishReason.STOP
        if end == genai.GenerationFinishReason.NONE:
            return text, None
        text += self.words.rest()
        stopped = self.words.stopped or end != genai.GenerationFinishReason.LENGTH
        return text, FinishReason.STOP if stopped else FinishReason.LENGTH


def sampling(generation: Generation) -> dict[str, Any]:
    """Return the library's names for how the next token is chosen. Its `top_k` 0 is no limit, as ours.

    Raises EdgeAgentError MODEL_ERROR for a negative one, which the library would take for a very large one.
    """
    if generation.top_k < 0:
        raise EdgeAgentError(Code.MODEL_ERROR, "openvino-genai takes no negative top_k; use 0 for no limit")
    if not generation.temperature:
        return {"do_sample": False, "repetition_penalty": generation.repetition_penalty}
    seed = secrets.randbelow(_SEEDS) if generation.seed is None else generation.seed % _SEEDS
    return {
        "do_sample": True,
        "temperature": generation.temperature,
        "top_p": generation.top_p,
        "top_k": generation.top_k,
        "repetition_penalty": generation.repetition_penalty,
        "rng_seed": seed,
    }
