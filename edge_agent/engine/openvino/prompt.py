"""Prompts as openvino-genai takes them: token ids for a text model, for one that sees what its decoder reads."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from openvino import Tensor

from edge_agent.engine.batching.picture import Features, Picture, woven
from edge_agent.engine.messages import Generation
from edge_agent.engine.openvino.owners import PLAIN, named
from edge_agent.engine.openvino.vision import Eyes
from edge_agent.engine.text.prompt import PromptMaker


class CountedPrompt(Protocol):
    """A prompt, counted."""

    @property
    def tokens(self) -> Sequence[int]:
        """Its ids; where a picture stands, the picture's own, which is below 0."""

    @property
    def owner(self) -> int:
        """The number of its owner, see Owners."""

    @property
    def unseen(self) -> bool:
        """Whether something is to be computed before the prompt can be given to the library."""

    def see(self) -> None:
        """Compute a bounded part of that. Raises EdgeAgentError IMAGE_MISSING."""

    def tensor(self, end: int) -> Tensor:
        """Return the first `end` tokens."""

    def forget(self) -> None:
        """Free what only `tensor` needs."""


@dataclass(frozen=True, slots=True)
class Reader:
    """Makes prompts of conversations. With `eyes` they may have images."""

    maker: PromptMaker
    vocab_size: int
    eyes: Eyes | None = None

    def read(self, generation: Generation, owner: int = PLAIN) -> CountedPrompt:
        """Count a conversation of the owner with this number. Raises EdgeAgentError as PromptMaker.make does."""
        tokens, pictures = woven(*self.maker.make(generation.turns, template=generation.template))
        if self.eyes is None:
            return TextPrompt(tokens, owner, self.vocab_size)
        return SeenPrompt(self.eyes, tokens, pictures)


class TextPrompt:
    """Token ids."""

    unseen = False

    def __init__(self, tokens: Sequence[int], owner: int, vocab_size: int) -> None:
        self.tokens = tokens
        self.owner = owner
        self._vocab_size = vocab_size

    def see(self) -> None:
        """Nothing is to be seen."""

    def tensor(self, end: int) -> Tensor:
        """Return the first ids."""
        return Tensor(named(self.tokens[:end], self.owner, self._vocab_size))

    def forget(self) -> None:
        """Ids are small."""


class SeenPrompt:
    """Token ids, and pictures in places of their own."""

    owner = PLAIN  # what stands for tokens has no other name

    def __init__(self, eyes: Eyes, tokens: Sequence[int], pictures: Sequence[Picture]) -> None:
        self.tokens = tokens
        self._eyes = eyes
        self._pictures = pictures
        self._embedded: Features | None = None

    @property
    def unseen(self) -> bool:
        """Whether a picture is not encoded yet."""
        return any(picture.features is None for picture in self._pictures)

    def see(self) -> None:
        """Encode a tile of the first such picture."""
        self._eyes.look(next(picture for picture in self._pictures if picture.features is None))

    def tensor(self, end: int) -> Tensor:
        """Return what the decoder reads first: [1, end, hidden]."""
        if self._embedded is None:
            ids = np.array([max(token, -1) for token in self.tokens])
            words = self._eyes.embed(ids[ids >= 0].tolist())
            self._embedded = np.empty((len(ids), words.shape[1]), np.float32)
            self._embedded[ids >= 0] = words
            for picture in self._pictures:
                self._embedded[picture.begin : picture.end] = picture.features
        return Tensor(self._embedded[None, :end])

    def forget(self) -> None:
        """Free the features, of which the library has its own copy; they take 12 kB a token."""
        self._embedded = None
        for picture in self._pictures:
            picture.keep(None)
