"""Whose images are decoded next when somebody's take long (pure).

There is one image child, and what an image takes shows only when it is decoded: a few kB can fill its whole bound. So
whoever used much of the child's time lets others go first until that is forgotten.
"""

FREE_S = 1.0
"""Of the child's time that is nobody's business: a dozen photos."""
FORGOTTEN_PER_S = 0.1
"""Seconds of use that are forgotten in a second: while others wait, nobody has more than about a tenth of the child."""


class Shares:
    """How much of the image child's time each requester used of late.

    It remembers those alone whose use is not forgotten: as they used the child one after the other, they are few.
    """

    def __init__(self) -> None:
        self._used: dict[str, tuple[float, float]] = {}

    def note(self, client: str, used_s: float, *, now_s: float) -> None:
        """Take in what a requester's job took."""
        self._used[client] = (self._left_s(client, now_s) + used_s, now_s)
        self._used = {each: known for each, known in self._used.items() if self._left_s(each, now_s) > 0}

    def behind(self, *, now_s: float) -> frozenset[str]:
        """Return the requesters who let all others go first."""
        return frozenset(each for each in self._used if self._left_s(each, now_s) > FREE_S)

    def _left_s(self, client: str, now_s: float) -> float:
        used_s, noted_s = self._used.get(client, (0.0, now_s))
        return used_s - FORGOTTEN_PER_S * (now_s - noted_s)
