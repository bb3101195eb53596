"""From the turns of a conversation to a prompt in which only the chat template speaks control tokens."""

import json
import re
from collections.abc import Iterable, Sequence
from itertools import count
from pathlib import Path

from edge_agent.base.errors import Code, EdgeAgentError
from edge_agent.engine.messages import Image, Turn

ROLES = ("system", "user", "assistant")
IMAGE_TAG = re.compile(r"<\|image_\d+\|>")
"""What stands in a prompt for an image: the libraries look for it, no tokenizer does."""
_NUL, _REPLACEMENT = "\0", "\N{REPLACEMENT CHARACTER}"


class SpecialTokens:
    """The strings that a tokenizer turns into control tokens, such as `<|end|>`, and what stands for an image."""

    def __init__(self, tokens: Iterable[str]) -> None:
        # A look-ahead, so that every occurrence is broken, also those that overlap.
        obeyed = "|".join([*map(re.escape, tokens), IMAGE_TAG.pattern])
        self._first_character = re.compile(f"(?={obeyed}).", re.DOTALL)

    @classmethod
    def read(cls, folder: Path) -> "SpecialTokens":
        """Return those that a model folder's tokenizer.json names.

        Raises EdgeAgentError MODEL_ERROR when it cannot be read: without it no prompt is safe.
        """
        try:
            tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
            return cls(token["content"] for token in tokenizer["added_tokens"] if token["special"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise EdgeAgentError(
                Code.MODEL_ERROR, f"tokenizer.json in {folder} cannot be read ({error!r}); fetch the model again"
            ) from error

    def break_in(self, text: str) -> str:
        """Return the text with a space after the first character of each: they become plain words, nothing is lost."""
        return self._first_character.sub(lambda match: f"{match[0]} ", text)


def messages(turns: Sequence[Turn], special_tokens: SpecialTokens) -> list[dict[str, str]]:
    """Return the turns as chat templates take them, with nothing in them that the tokenizer obeys.

    Images stand before their turn's text, numbered from 1 through the conversation.

    Raises EdgeAgentError BAD_REQUEST for an unknown role: it would be pasted into a control token.
    """
    for turn in turns:
        if turn.role not in ROLES:
            raise EdgeAgentError(Code.BAD_REQUEST, f"messages: role must be one of {', '.join(ROLES)}")
    numbers = count(1)
    return [
        {
            "role": turn.role,
            "content": "".join(f"<|image_{next(numbers)}|>\n" for _ in turn.images) + _plain(turn.text, special_tokens),
        }
        for turn in turns
    ]


def messages_json(turns: Sequence[Turn], special_tokens: SpecialTokens) -> str:
    """Return the same as JSON."""
    return json.dumps(messages(turns, special_tokens))


def images_of(turns: Sequence[Turn], *, most: int) -> tuple[Image, ...]:
    """Return the images of a conversation. Raises EdgeAgentError UNSUPPORTED when there are more than `most`."""
    images = tuple(image for turn in turns for image in turn.images)
    if len(images) > most:
        can = f"takes at most {most} images" if most else "reads text only"
        raise EdgeAgentError(Code.UNSUPPORTED, f"messages: this model {can}, and there are {len(images)}")
    return images


def answer_room(prompt_tokens: int, context_tokens: int) -> int:
    """Return how many tokens an answer may have. Raises EdgeAgentError PROMPT_TOO_LONG when there is room for none."""
    room = context_tokens - prompt_tokens
    if room < 1:
        raise EdgeAgentError(
            Code.PROMPT_TOO_LONG,
            f"messages: the prompt has {prompt_tokens} tokens and at most {context_tokens - 1} fit, "
            "which leaves room for one token of answer; shorten it",
        )
    return room


def _plain(text: str, special_tokens: SpecialTokens) -> str:
    # The library's strings end at a NUL: the rest of the text, and of the template, would be lost.
    return special_tokens.break_in(text.replace(_NUL, _REPLACEMENT))
