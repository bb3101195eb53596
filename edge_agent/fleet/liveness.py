"""Whether an agent lives, from what was heard of it. PURE.

Births and deaths come in any order: a will is published seconds after its agent is gone, and by then the agent may be
back. So `offline` counts only when it is of the last birth; and because a broker that dies takes the wills with it, an
agent that falls silent is lost.
"""

from dataclasses import dataclass, replace
from enum import StrEnum

SILENCE_S = 30.0
"""Silence after which an agent is lost whose period is not known yet: three of the default's 10 s."""
SILENCE_LEAST_S, SILENCE_MOST_S = 3.0, 3 * 3600.0
"""Three of the shortest and of the longest period that can be set; a message cannot ask for more patience."""


class Liveness(StrEnum):
    """Whether it lives."""

    THERE = "there"
    OFFLINE = "offline"
    """It said goodbye, or its will did."""
    LOST = "lost"
    """Nothing was heard for too long."""


@dataclass(frozen=True, slots=True)
class Birth:
    """Which connection of which start; the number of the connection is None where only the start is known."""

    boot_id: str
    conn_seq: int | None = None


@dataclass(frozen=True, slots=True)
class Life:
    """What is known of an agent's life; times are monotonic seconds.

    `born` is its last birth, `died` the birth it died of. We wait for a word since `awaited_s`; `heard_s` is when the
    last one came, None before the first. What the broker kept from before is not a word.
    """

    awaited_s: float
    born: Birth | None = None
    died: Birth | None = None
    heard_s: float | None = None
    silence_s: float = SILENCE_S

    def standing(self, now_s: float) -> Liveness:
        """Return whether it lives."""
        if self.died is not None:
            return Liveness.OFFLINE
        return Liveness.LOST if now_s - self.awaited_s > self.silence_s else Liveness.THERE

    def word(self, now_s: float) -> "Life":
        """It said something just now."""
        return replace(self, awaited_s=now_s, heard_s=now_s)

    def patient(self, silence_s: float) -> "Life":
        """It said how long it may be silent."""
        return replace(self, silence_s=min(max(silence_s, SILENCE_LEAST_S), SILENCE_MOST_S))

    def afresh(self, now_s: float) -> "Life":
        """We were away and listen again: births were missed, and silence was ours."""
        return replace(self, awaited_s=now_s, born=None)

    def online(self, birth: Birth) -> "Life":
        """It said that it is there."""
        if self._earlier(birth):
            return self  # sent once more by a later connection than it was meant for
        return replace(self, born=birth, died=None)

    def offline(self, birth: Birth) -> "Life":
        """It, or its will, said that it is gone."""
        if self.born is not None and (self.born.boot_id != birth.boot_id or self._earlier(birth)):
            return self  # a late will: it was born again since
        return replace(self, born=birth, died=birth)

    def certified(self, birth: Birth) -> "Life":
        """Its birth certificate came; that does not say that it lives still, but of which life it is."""
        if self.died is None:
            return replace(self, born=birth) if self.born is None or self._later(birth) else self
        reborn = birth.boot_id != self.died.boot_id or self._later(birth)
        return replace(self, born=birth, died=None) if reborn else self

    def reported(self, boot_id: str) -> "Life":
        """It reports now; a dead one does not, so this is another life."""
        if self.died is not None and self.died.boot_id != boot_id:
            return replace(self, born=Birth(boot_id), died=None)
        return replace(self, born=Birth(boot_id)) if self.born is None else self

    def _earlier(self, birth: Birth) -> bool:
        return self._apart(birth) < 0

    def _later(self, birth: Birth) -> bool:
        return self._apart(birth) > 0

    def _apart(self, birth: Birth) -> int:
        """Return how many connections a birth of the same start is later than the last one; 0 where unknown."""
        born = self.born
        if born is None or born.boot_id != birth.boot_id or born.conn_seq is None or birth.conn_seq is None:
            return 0
        return birth.conn_seq - born.conn_seq
