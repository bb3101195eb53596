"""Stop strings in text that comes in pieces (pure)."""

from collections.abc import Sequence


class StopStrings:
    """Ends a text before the first stop string, wherever the borders between its pieces lie.

    What may be the beginning of a stop string is held back until the next piece decides. First is the stop string
    that is complete first, so the same text ends at the same place however it was cut.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._held = ""
        self.met = False
        """Whether a stop string was complete; no text comes after that."""

    def feed(self, text: str) -> str:
        """Take the next piece and return the text that is certain now."""
        text = self._held + text
        found = [(start + len(stop), start) for stop in self._stops if (start := text.find(stop)) >= 0]
        if found:
            self.met = True
            self._held = ""
            _, start = min(found)
            return text[:start]
        certain = len(text) - max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[certain:]
        return text[:certain]

    def rest(self) -> str:
        """Return what was held back, as the text ends here and nothing can complete it."""
        rest, self._held = self._held, ""
        return rest


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of `text` that `stop` begins with, short of all of it."""
    lengths = range(min(len(text), len(stop) - 1), 0, -1)
    return next((length for length in lengths if text.endswith(stop[:length])), 0)
