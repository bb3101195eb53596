"""Results that are owed: published until the broker takes them, and none is lost over a restart."""

import itertools
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from edge_agent.jobs.clock import Clock
from edge_agent.jobs.database import Database, job_of
from edge_agent.jobs.job import Job

RESULT_KEPT_S = 86_400.0
"""A result is published until the broker answers, but no longer than this (its expiry in the protocol)."""


@dataclass(frozen=True, slots=True)
class Owed:
    """A result that is to be published since `due_s`; `tries` were refused by the broker."""

    job: Job
    due_s: float
    tries: int


class Results:
    """What of a queue's jobs is still to be told."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._db = database
        self._clock = clock
        self._last = ""

    def owe(self, job: Job) -> None:
        """Note that a result was asked for again."""
        self._db.run("owe", row=job.row, now=self._clock.now_s())

    def owed(self, limit: int, *, busy: Collection[int] = ()) -> list[Owed]:
        """Return so many results to publish now, none of the `busy` rows; give up those tried for RESULT_KEPT_S.

        Each client's come longest due first, and the clients in turn, from call to call: however much is owed to one,
        it is at most one result that goes before another's.
        """
        now_s = self._clock.now_s()
        while True:
            found = [self._owed(row) for row in self._in_turn(limit, busy, now_s)]
            too_old = [owed for owed in found if owed.tries and now_s - (owed.job.finished_s or now_s) > RESULT_KEPT_S]
            if not too_old:
                self._last = found[-1].job.client if found else self._last
                return found
            for owed in too_old:
                self.delivered(owed)  # what was behind them is due as well

    def _owed(self, row: int) -> Owed:
        *columns, due_s, tries = self._db.row("owed", row=row)
        return Owed(job_of(columns), due_s, tries)

    def _in_turn(self, limit: int, busy: Collection[int], now_s: float) -> list[int]:
        """Return rows of results: of each client the first, beginning with who comes after the last one, and so on."""
        lanes: list[list[int]] = []
        free = 0
        for client in self._clients(now_s):
            rows = self._db.rows("owed_to", client=client, now=now_s, limit=limit + len(busy))
            lane = [row for (row,) in rows if row not in busy]
            lanes.append(lane)
            free += bool(lane)
            if free == limit:
                break
        rounds = itertools.zip_longest(*lanes)
        return [*itertools.islice((row for each in rounds for row in each if row is not None), limit)]

    def _clients(self, now_s: float) -> Iterator[str]:
        """Yield to whom results are owed, once, beginning after who got the last one."""
        begin = after = self._last
        while found := self._db.row("next_client_owed", after=after, now=now_s):
            (after,) = found
            yield after
        after = ""
        while (found := self._db.row("next_client_owed", after=after, now=now_s)) and found[0] <= begin:
            (after,) = found
            yield after

    def next_owed_s(self) -> float | None:
        """Return when the next result will be due that is not due yet, on the queue's clock."""
        (due_s,) = self._db.row("next_owed", now=self._clock.now_s())
        return None if due_s is None else float(due_s)

    def delivered(self, owed: Owed) -> None:
        """Note that the broker took a result; one asked for again since then stays owed."""
        self._db.run("delivered", row=owed.job.row, due_s=owed.due_s)
        if owed.job.watched:
            self._db.run("remove", row=owed.job.row)

    def deferred(self, owed: Owed, delay_s: float) -> None:
        """Note that the broker refused a result; try again later."""
        deliver_s = self._clock.now_s() + delay_s
        self._db.run("defer", row=owed.job.row, due_s=owed.due_s, deliver_s=deliver_s)

    def erase(self, job: Job) -> None:
        """Forget prompt, answer and metadata of a delivered job; what it took and how it ended stays.

        One whose result was asked for again since stays as it is.
        """
        self._db.run("erase", row=job.row)
