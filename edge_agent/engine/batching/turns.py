"""Whose prompt gets the next piece (pure).

The shortest rest goes first: then a short prompt waits for a piece of a long one and not for all of it, and prompts
begin to be answered as soon as they can on the average. For a stream of short ones to keep no long one out, the oldest
has a turn of its own now and then. Prompts with images go one after the other: what was seen takes 12 kB a token until
all of them are computed, and memory is reserved for one.
"""

from collections.abc import Sequence
from typing import Protocol, TypeVar

PASSED_MOST = 3
"""Pieces of others in a row while the oldest waits. So the oldest gets every fourth at least, and no prompt is computed
later than at four times what it would have taken to compute all in the order in which they came."""


class Unfilled(Protocol):
    """A prompt that is not computed to its end."""

    @property
    def unfilled_tokens(self) -> int:
        """What is left of it."""

    @property
    def has_images(self) -> bool:
        """Whether images are among it."""


T = TypeVar("T", bound=Unfilled)


class Turns:
    """The turns that a model's unfinished prompts take."""

    def __init__(self) -> None:
        self._passed = 0

    def order(self, unfilled: Sequence[T]) -> list[T]:
        """Return prompts, given in the order in which they came, in that of their turns; the first counts as served.

        Those that must wait are not among them.
        """
        seeing = next((each for each in unfilled if each.has_images), None)
        ready = [each for each in unfilled if each is seeing or not each.has_images]
        if not ready:
            return []
        oldest = ready[0]
        ordered = sorted(ready, key=lambda each: each.unfilled_tokens)  # who came first stays first among equals
        if self._passed >= PASSED_MOST:
            ordered.remove(oldest)
            ordered.insert(0, oldest)
        self._passed = 0 if ordered[0] is oldest else self._passed + 1
        return ordered
