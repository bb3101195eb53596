"""Text from tokens that come one by one, the same as if all were decoded at once (pure)."""

from collections.abc import Callable, Sequence

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_HELD_MAX = 3
"""A character of UTF-8 lacks at most three bytes: more signs of a broken one before the end will not heal."""
_TAIL_MAX, _TAIL_KEPT = 32, 16
"""Tokens that are decoded again with each new one. What lies further back changes nothing."""


class Detokenizer:
    """Gives each token's text when it is certain: a character of several tokens comes with its last.

    `decode` turns tokens into text and shows bytes that are no whole character as U+FFFD.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._tail: list[int] = []
        self._text = ""
        self._shown = 0

    def feed(self, token: int) -> str:
        """Take the next token and return the text that is certain now."""
        self._tail.append(token)
        self._text = self._decode(self._tail)
        certain = len(self._text) - self._held()
        new = self._text[self._shown : certain]
        self._shown = max(certain, self._shown)
        if len(self._tail) > _TAIL_MAX:
            self._cut()
        return new

    def rest(self) -> str:
        """Return what was held back, as no token completes it."""
        rest = self._text[self._shown :]
        self._shown = len(self._text)
        return rest

    def _held(self) -> int:
        broken = len(self._text) - len(self._text.rstrip(_REPLACEMENT))
        return min(broken, _HELD_MAX)

    def _cut(self) -> None:
        """Forget old tokens, unless the others are all silent: a decoder drops the space that a text begins with."""
        held = len(self._text) - self._shown
        text = self._decode(self._tail[-_TAIL_KEPT:])
        if len(text) > held:
            del self._tail[:-_TAIL_KEPT]
            self._text, self._shown = text, len(text) - held
