"""Results that are owed: published until the broker takes them, and none is lost over a restart."""

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

    def owe(self, job: Job) -> None:
        """Note that a result was asked for again."""
        self._db.run("owe", row=job.row, now=self._clock.now_s())

    def owed(self, limit: int) -> list[Owed]:
        """Return the results to publish now, longest due first; give up those tried for RESULT_KEPT_S."""
        now_s = self._clock.now_s()
        while True:
            found = [
                Owed(job_of(row), due_s, tries) for *row, due_s, tries in self._db.rows("owed", now=now_s, limit=limit)
            ]
            too_old = [owed for owed in found if owed.tries and now_s - (owed.job.finished_s or now_s) > RESULT_KEPT_S]
            if not too_old:
                return found
            for owed in too_old:
                self.delivered(owed)  # what was behind them is due as well

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
