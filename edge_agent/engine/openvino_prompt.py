"""Prompts as openvino-genai takes them: token ids for a text model, for one that sees what its decoder reads."""

from collections.abc import Hashable, Sequence
from typing import Any, Protocol

import numpy as np
from openvino import Tensor

from edge_agent.engine.messages import Turn
from edge_agent.engine.openvino_vision import Encoding, Eyes, Seen
from edge_agent.engine.pixels import Floats
from edge_agent.engine.prompt import IMAGE_TAG, SpecialTokens, images_of, messages


class Prompt(Protocol):
    """A prompt, counted."""

    @property
    def tokens(self) -> Sequence[Hashable]:
        """What it consists of: equal where the model reads the same, and only there."""

    @property
    def unseen(self) -> bool:
        """Whether something is to be computed before the prompt can be given to the library."""

    def see(self) -> None:
        """Compute a bounded part of that. Raises EdgeAgentError when an image cannot be read."""

    def tensor(self, end: int) -> Tensor:
        """Return the first `end` tokens."""

    def forget(self) -> None:
        """Free what only `tensor` needs."""


class Reader(Protocol):
    """Makes prompts of conversations."""

    def read(self, turns: Sequence[Turn], *, images_most: int) -> Prompt:
        """Count a conversation. Raises EdgeAgentError BAD_REQUEST for a role, UNSUPPORTED for too many images."""


class TextReader:
    """That of a model that reads text only."""

    def __init__(self, tokenizer: Any, special_tokens: SpecialTokens) -> None:
        self._tokenizer = tokenizer
        self._special_tokens = special_tokens

    def read(self, turns: Sequence[Turn], *, images_most: int) -> "TextPrompt":
        """Count a conversation."""
        images_of(turns, most=images_most)
        text = self._tokenizer.apply_chat_template(messages(turns, self._special_tokens), add_generation_prompt=True)
        return TextPrompt(self._tokenizer.encode(text, add_special_tokens=False).input_ids.data[0].tolist())


class TextPrompt:
    """Token ids."""

    unseen = False

    def __init__(self, ids: list[int]) -> None:
        self.tokens: Sequence[int] = ids

    def see(self) -> None:
        """Nothing is to be seen."""

    def tensor(self, end: int) -> Tensor:
        """Return the first ids."""
        return Tensor(np.array([self.tokens[:end]], np.int64))

    def forget(self) -> None:
        """Ids are small."""


class SeeingReader:
    """That of a model that sees. As its published processor does, each text between images begins with `<s>`."""

    def __init__(self, tokenizer: Any, special_tokens: SpecialTokens, eyes: Eyes) -> None:
        self._tokenizer = tokenizer
        self._special_tokens = special_tokens
        self._eyes = eyes

    def read(self, turns: Sequence[Turn], *, images_most: int) -> "SeenPrompt":
        """Count a conversation, the tokens of images by the arithmetic of their tiles."""
        images = images_of(turns, most=images_most)
        text = self._tokenizer.apply_chat_template(messages(turns, self._special_tokens), add_generation_prompt=True)
        texts = [self._tokenizer.encode(each).input_ids.data[0].tolist() for each in IMAGE_TAG.split(text)]
        return SeenPrompt(self._eyes, texts, [Seen.of(image) for image in images])


class SeenPrompt:
    """Texts with an image after each but the last."""

    def __init__(self, eyes: Eyes, texts: Sequence[Sequence[int]], images: Sequence[Seen]) -> None:
        self._eyes = eyes
        self._texts = texts
        self._images = images
        self._features: list[Floats] = []
        self._encoding: Encoding | None = None
        self._embedded: Floats | None = None
        tokens: list[Hashable] = list(texts[0])
        for image, after in zip(images, texts[1:], strict=True):
            tokens += [(image.key, number) for number in range(image.grid.tokens)]
            tokens += after
        self.tokens: Sequence[Hashable] = tokens

    @property
    def unseen(self) -> bool:
        """Whether an image is not encoded yet."""
        return len(self._features) < len(self._images)

    def see(self) -> None:
        """Encode a tile, or find an image encoded of late."""
        seen = self._images[len(self._features)]
        if self._encoding is None:
            if (known := self._eyes.features(seen)) is not None:
                self._features.append(known)
                return
            self._encoding = self._eyes.begin(seen)
        features = self._eyes.encode_tile(self._encoding)
        if features is not None:
            self._features.append(features)
            self._encoding = None

    def tensor(self, end: int) -> Tensor:
        """Return what the decoder reads first: [1, end, hidden]."""
        if self._embedded is None:
            parts = [self._eyes.embed(self._texts[0])]
            for features, after in zip(self._features, self._texts[1:], strict=True):
                parts += [features, self._eyes.embed(after)]
            self._embedded = np.concatenate(parts)[None]
        return Tensor(np.ascontiguousarray(self._embedded[:, :end]))

    def forget(self) -> None:
        """Free the features: the library has its own copy."""
        self._features, self._embedded = [], None
