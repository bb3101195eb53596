"""Prompts as openvino-genai takes them: token ids for a text model, for one that sees what its decoder reads."""

from collections.abc import Sequence
from itertools import zip_longest
from typing import Any, Protocol

import numpy as np
from openvino import Tensor

from edge_agent.engine.batching.picture import Features, Picture
from edge_agent.engine.messages import Turn
from edge_agent.engine.openvino.owners import PLAIN, named
from edge_agent.engine.openvino.vision import Eyes
from edge_agent.engine.text.prompt import IMAGE_TAG, SpecialTokens, images_of, messages


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


class Reader:
    """Makes prompts of conversations. With `eyes` they may have images, `images_most` at most."""

    def __init__(
        self,
        tokenizer: Any,
        special_tokens: SpecialTokens,
        *,
        vocab_size: int,
        eyes: Eyes | None = None,
        images_most: int = 0,
    ) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._special_tokens = special_tokens
        self._eyes = eyes
        self._images_most = images_most

    def read(self, turns: Sequence[Turn], owner: int = PLAIN) -> CountedPrompt:
        """Count a conversation of the owner with this number.

        What lies between images is cut into tokens by itself, as published. Raises EdgeAgentError BAD_REQUEST for a
        role, UNSUPPORTED for more images than the model takes.
        """
        images = images_of(turns, most=self._images_most)
        text = self._tokenizer.apply_chat_template(messages(turns, self._special_tokens), add_generation_prompt=True)
        if self._eyes is None:
            return TextPrompt(self._ids(text), owner, self._vocab_size)
        tokens: list[int] = []
        pictures = []
        for words, image in zip_longest(IMAGE_TAG.split(text), images):
            tokens += self._ids(words)
            if image is not None:
                pictures.append(Picture(image, len(tokens)))
                tokens += [pictures[-1].token] * pictures[-1].grid.tokens
        return SeenPrompt(self._eyes, tokens, pictures)

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).input_ids.data[0].tolist()
        return ids


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
