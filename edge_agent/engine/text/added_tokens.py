"""What a tokenizer turns into tokens of control, and how what people write is kept from being it."""

import re
import secrets
from collections.abc import Iterable

IMAGE_TAG = re.compile(r"<\|image_\d+\|>")
"""What stands in a prompt for an image: whoever makes prompts looks for it, no tokenizer does."""


class AddedTokens:
    """The strings that a tokenizer obeys, such as `<|end|>`. In a text that is `guarded` there is none of them.

    A template reads guarded texts; what it adds is not, so of what comes out only that is obeyed. Of each such string,
    and of what could become one beside another text, the first character is spelled in a way that nobody can guess.
    """

    def __init__(self, strings: Iterable[str]) -> None:
        self._known = known = sorted({each for each in strings if each}, key=len, reverse=True)
        self._mark = f"x{secrets.token_hex(12)}x"
        self._spelled = re.compile(f"{self._mark}([0-9a-f]+){self._mark}")
        self._any = re.compile(f"({'|'.join(map(re.escape, known))})") if known else None
        # A look-ahead, so that every occurrence is found, also those that overlap.
        self._first = re.compile(f"(?={'|'.join([*map(re.escape, known), IMAGE_TAG.pattern])}).", re.DOTALL)
        self._begun = {each[:end] for each in known for end in range(1, len(each))}
        self._ended = {each[begin:] for each in known for begin in range(1, len(each))}

    def guarded(self, text: str) -> str:
        """Return a text in which nothing is obeyed, whatever stands beside it."""
        spelled = {match.start() for match in self._first.finditer(text)}
        lengths = range(1, min(len(self._known[0]), len(text) + 1) if self._known else 1)
        spelled |= {len(text) - length for length in lengths if text[-length:] in self._begun}
        if any(text[:length] in self._ended for length in lengths) or any(text in each for each in self._known):
            spelled.add(0)
        if not spelled or not text:
            return text
        return "".join(self._spell(each) if at in spelled else each for at, each in enumerate(text))

    def plain(self, guarded: str) -> str:
        """Return what a guarded text says."""
        return self._spelled.sub(lambda match: chr(int(match[1], 16)), guarded)

    def split(self, text: str) -> list[str]:
        """Return the texts between what is obeyed, and that, in turn: at odd places stands what is obeyed."""
        return self._any.split(text) if self._any else [text]

    def _spell(self, character: str) -> str:
        return f"{self._mark}{ord(character):x}{self._mark}"
