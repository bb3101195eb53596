"""What a LaneModel is put together of: what computes, what reads prompts, what looks at images."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from edge_agent.engine.batching.picture import Features, Picture, woven
from edge_agent.engine.messages import Generation
from edge_agent.engine.text.prompt import PromptMaker

Logits = npt.NDArray[np.float32]


class Decoder(Protocol):
    """A model and the keys and values of its lanes.

    Who may read what of a lane is for the caller to know: a call writes at the end of the lengths it is given.
    """

    @property
    def vocab_size(self) -> int:
        """How many logits a token has."""

    @property
    def longrope(self) -> bool:
        """Whether it changes its rotary factors at prefill.LONGROPE_TOKENS."""

    @property
    def copies(self) -> bool:
        """Whether keys and values can be copied from lane to lane."""

    def run(
        self, lanes: range, tokens: npt.NDArray[np.int64], lengths: Sequence[int], features: Sequence[Features]
    ) -> Logits:
        """Compute tokens, shape [lanes, new]; return the logits of the last of each, shape [lanes, vocabulary].

        `lengths` are those of the sequences with the new tokens; `features` are of those tokens that are below 0.
        Raises EdgeAgentError OUT_OF_MEMORY, MODEL_ERROR.
        """

    def copy(self, source: int, target: int, tokens: int) -> None:
        """Give one lane the first so many tokens of another."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """Token ids; where a picture stands, its own, which are below 0."""

    tokens: list[int]
    pictures: tuple[Picture, ...] = ()

    @classmethod
    def of(cls, generation: Generation, maker: PromptMaker) -> "Prompt":
        """Return a generation's. Raises EdgeAgentError as PromptMaker.make does."""
        return cls(*woven(*maker.make(generation.turns, template=generation.template)))

    @property
    def words(self) -> npt.NDArray[np.int32]:
        """The tokens that are no picture's."""
        return np.array([token for token in self.tokens if token >= 0], np.int32)


class Encoder(Protocol):
    """What sees images."""

    def look(self, picture: Picture) -> None:
        """Compute a bounded part of a picture; with the last its features are there. Raises EdgeAgentError."""
