"""What is kept of ended jobs, so that a job sent again is answered and not run twice: how much, and whose goes first.

Texts are erased long before the job itself is forgotten: without them a row holds a hundredth of what the largest
do. Who has most pays first, with the oldest: nobody's jobs are forgotten for what another one sends.
"""

from collections.abc import Callable
from dataclasses import dataclass

from pydantic_core import to_json

from edge_agent.jobs.database import Database

LEAST_BYTES = 2**20
"""So much is kept on the fullest disk: to erase it would give nobody room."""
SHARES = 4
"""So many requesters may have as much as one may before all together have as much as all may."""
AT_ONCE = 50
"""Rows that are shed in one transaction, 6 MB of the largest: intake never waits long."""


@dataclass(frozen=True, slots=True)
class RetentionBounds:
    """What ended jobs may hold, in bytes: all together, and those of one requester."""

    total_bytes: int
    requester_bytes: int


@dataclass(frozen=True, slots=True)
class Allowance:
    """What ended jobs may hold at `most`, on a disk of which `free_bytes` are free and `min_free_bytes` shall stay."""

    most: RetentionBounds
    min_free_bytes: int
    free_bytes: Callable[[], int]

    def bounds(self, *, kept_bytes: int, reusable_bytes: int) -> RetentionBounds:
        """Return what they may hold now: half of the room there is for them and for new jobs, but no more than `most`.

        They hold `kept_bytes` already; `reusable_bytes` are free within the queue's file.
        """
        room_bytes = kept_bytes + self.free_bytes() + reusable_bytes - self.min_free_bytes
        total_bytes = min(self.most.total_bytes, max(LEAST_BYTES, room_bytes // 2))
        return RetentionBounds(total_bytes, min(self.most.requester_bytes, total_bytes // SHARES))


UNBOUNDED = Allowance(RetentionBounds(2**62, 2**60), 0, lambda: 2**62)


class Retention:
    """The ended jobs of a queue."""

    def __init__(self, database: Database, allowance: Allowance) -> None:
        self._db = database
        self._allowance = allowance

    def full(self, client: str) -> bool:
        """Return whether a requester's ended jobs hold too much, and nothing of it can be shed: it is owed."""
        theirs_bytes = self._bytes_of(client)
        return theirs_bytes > 0 and theirs_bytes > self._bounds()[1].requester_bytes and not self._shed_one(client)

    @property
    def over(self) -> bool:
        """Whether ended jobs hold more than they may."""
        return self._too_much(*(self._db.row("most_bytes", passed="[]") or ("", 0)))

    def shed(self, *, rows: int = AT_ONCE) -> bool:
        """Erase the oldest texts, then forget the oldest jobs, of who has most, until all keep to the bounds.

        But for those whose result is owed; at most `rows`. Returns whether there may be more to shed.
        """
        passed: list[str] = []
        for _ in range(rows):
            most = self._db.row("most_bytes", passed=to_json(passed).decode())
            if most is None or not self._too_much(*most):  # none: all that is left is owed
                return False
            if not self._shed_one(most[0]):
                passed.append(most[0])
        return True

    def shed_jobs(self, most: int, *, rows: int = AT_ONCE) -> bool:
        """Forget the oldest jobs of who has most of them, until there are no more than so many; see `shed`."""
        passed: list[str] = []
        for _ in range(rows):
            (jobs, _), client = self._total(), self._db.row("most_jobs", passed=to_json(passed).decode())
            if jobs <= most or client is None:
                return False
            if not self._forget_one(*client):
                passed.extend(client)
        return True

    def _too_much(self, _client: str, theirs_bytes: int) -> bool:
        """Return whether all hold too much, or the requester who has most does."""
        total_bytes, bounds = self._bounds()
        return total_bytes > bounds.total_bytes or theirs_bytes > bounds.requester_bytes

    def _bounds(self) -> tuple[int, RetentionBounds]:
        """Return what ended jobs hold, and may hold."""
        _, kept_bytes = self._total()
        return kept_bytes, self._allowance.bounds(kept_bytes=kept_bytes, reusable_bytes=self._db.reusable_bytes)

    def _total(self) -> tuple[int, int]:
        jobs, held_bytes = self._db.row("kept_total")
        return jobs, held_bytes

    def _bytes_of(self, client: str) -> int:
        row = self._db.row("kept_of", client=client)
        return int(row[0]) if row else 0

    def _shed_one(self, client: str) -> bool:
        return self._db.run("erase_oldest", client=client) > 0 or self._forget_one(client)

    def _forget_one(self, client: str) -> bool:
        return any(self._db.run("forget_oldest", client=client, erased=erased) for erased in (True, False))
