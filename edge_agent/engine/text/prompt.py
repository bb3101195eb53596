"""From the turns of a conversation to token ids, for every engine in one way."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import count
from pathlib import Path

from edge_agent.base.errors import Code, EdgeAgentError, PromptTooLongError
from edge_agent.engine.messages import Image, Turn
from edge_agent.engine.text.added_tokens import IMAGE_TAG, AddedTokens
from edge_agent.engine.text.chat_template import ChatTemplate
from edge_agent.engine.text.tokenizer import FolderTokenizer, TextTokenizer

ROLES = ("system", "user", "assistant")


@dataclass(frozen=True, slots=True)
class PromptMaker:
    """Makes prompts with a model's chat template and tokenizer. `images_most`: as many as the model takes.

    A model without a template completes texts, and talks to nobody.
    """

    template: ChatTemplate | None
    tokenizer: TextTokenizer
    images_most: int = 0

    @classmethod
    def read(cls, folder: Path, *, images_most: int = 0, now: Callable[[], datetime] = datetime.now) -> "PromptMaker":
        """Return what a model folder needs. Raises EdgeAgentError MODEL_ERROR when it is not there or broken."""
        return cls(ChatTemplate.read(folder, now=now), FolderTokenizer.read(folder), images_most)

    def make(self, turns: Sequence[Turn], *, template: bool = True) -> tuple[list[list[int]], tuple[Image, ...]]:
        """Return the ids of a conversation and its images, which stand between them: of n there are n + 1 parts.

        What lies between images is cut into tokens by itself, as published. Without `template` the one turn's text is
        gone on with. Raises EdgeAgentError BAD_REQUEST for messages that the template refuses, UNSUPPORTED for more
        images than the model takes and for a conversation with a model that has no template.
        """
        images = images_of(turns, most=self.images_most)
        if not template:
            ((text,), added) = [turn.text for turn in turns], self.tokenizer.added
            return [self.tokenizer.encode(added.guarded(text), begin=True)], ()
        if self.template is None:
            raise EdgeAgentError(
                Code.UNSUPPORTED,
                'messages: this model has no chat template, it goes on with texts; send a prompt and "template": false',
            )
        said = self.template.render(messages(turns, self.tokenizer.added))
        return [self.tokenizer.encode(part, begin=False) for part in IMAGE_TAG.split(said)], images


def messages(turns: Sequence[Turn], added: AddedTokens) -> list[Mapping[str, str]]:
    """Return the turns as chat templates take them, with nothing in them that the tokenizer obeys.

    Images stand before their turn's text, numbered from 1 through the conversation. Raises EdgeAgentError BAD_REQUEST
    for an unknown role: it would be pasted into a control token.
    """
    for turn in turns:
        if turn.role not in ROLES:
            raise EdgeAgentError(Code.BAD_REQUEST, f"messages: role must be one of {', '.join(ROLES)}")
    numbers = count(1)
    return [
        {
            "role": turn.role,
            "content": "".join(f"<|image_{next(numbers)}|>\n" for _ in turn.images) + added.guarded(turn.text),
        }
        for turn in turns
    ]


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
        raise PromptTooLongError(
            f"messages: the prompt has {prompt_tokens} tokens and at most {context_tokens - 1} fit, "
            "which leaves room for one token of answer; shorten it",
            prompt_tokens,
        )
    return room
