"""From a conversation to tokens, and to the pictures among them."""

from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

from edge_agent.engine.batching.lane_parts import Prompt
from edge_agent.engine.batching.picture import Picture
from edge_agent.engine.messages import Turn
from edge_agent.engine.onnx.decoder import library
from edge_agent.engine.text.prompt import IMAGE_TAG, SpecialTokens, images_of, messages_json


class OnnxPrompts:
    """Makes prompts with a model's chat template and tokenizer."""

    def __init__(self, tokenizer: Any, special_tokens: SpecialTokens, *, images_most: int) -> None:
        self._tokenizer = tokenizer
        self._images_most = images_most
        self._special_tokens = special_tokens

    def encode(self, turns: Sequence[Turn]) -> Prompt:
        """Return the tokens of a conversation. What lies between images is cut into tokens by itself, as published.

        Raises EdgeAgentError BAD_REQUEST for a role, UNSUPPORTED for more images than the model takes.
        """
        images = images_of(turns, most=self._images_most)
        messages = messages_json(turns, self._special_tokens)
        with library():
            text = self._tokenizer.apply_chat_template(messages, add_generation_prompt=True)
        tokens: list[int] = []
        pictures = []
        for words, image in zip_longest(IMAGE_TAG.split(text), images):
            with library():
                tokens += self._tokenizer.encode(words).tolist()
            if image is not None:
                pictures.append(Picture(image, len(tokens)))
                tokens += [pictures[-1].token] * (pictures[-1].end - pictures[-1].begin)
        return Prompt(tokens, tuple(pictures))
