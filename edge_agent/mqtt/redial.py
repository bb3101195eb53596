"""When and where a lost connection is tried again. PURE."""

RETRY_MIN_S = 1.0
RETRY_MAX_S = 60.0
NEXT_ADDRESS_S = 0.5
"""Before the next of several addresses is tried; after the last of them all is waited for longer and longer."""
STEADY_S = 60.0
"""A connection that lived shorter counts as a failed try: somebody, or something we say, ends it again and again. Not
every broker tells why: mosquitto 2.0.11 closes without a word when another client takes our name."""
TAKEN_OVER_MIN_S = 60.0
TAKEN_OVER_MAX_S = 3600.0
"""After another agent took our name we stay away this long, or both would throw each other out for ever."""


def backoff_s(tries: int, *, first_s: float, most_s: float, chance: float) -> float:
    """Return how long to wait before the next try: doubling, at most `most_s`.

    `chance` (0 … 1) spreads it over the upper half of that, so that many do not come at once.
    """
    ceiling_s = min(most_s, first_s * 2.0 ** min(tries, 32))
    return ceiling_s * (0.5 + 0.5 * chance)


class Redial:
    """Counts what went wrong. Each of its methods returns the seconds to wait; `address` is then the one to try."""

    def __init__(self, addresses: int) -> None:
        self._addresses = addresses
        self._tries = 0
        self._taken_over = 0
        self.address = 0

    def lost(self, *, lived_s: float, chance: float) -> float:
        """Go on after a connection that lived so long; 0 for one that was never made."""
        if lived_s >= STEADY_S:
            self._tries = self.address = 0
        else:
            self.address = (self.address + 1) % self._addresses
        if self.address > 0:
            return backoff_s(0, first_s=NEXT_ADDRESS_S, most_s=NEXT_ADDRESS_S, chance=chance)
        wait_s = backoff_s(self._tries, first_s=RETRY_MIN_S, most_s=RETRY_MAX_S, chance=chance)
        self._tries += 1
        return wait_s

    def taken_over(self, *, chance: float) -> float:
        """Stay away for another agent of our name, longer each time, and come back to the same address."""
        self._taken_over += 1
        return backoff_s(self._taken_over - 1, first_s=2 * TAKEN_OVER_MIN_S, most_s=TAKEN_OVER_MAX_S, chance=chance)
