"""What can be asked of a queue without changing it."""

from collections.abc import Sequence
from dataclasses import dataclass

from pydantic_core import to_json

from edge_agent.jobs.backlog import Ledger
from edge_agent.jobs.clock import Clock
from edge_agent.jobs.database import Database
from edge_agent.jobs.job import Job, JobState
from edge_agent.jobs.pace import JobWork, Line

NAMED_MAX = 6
"""Clients that are told of when several used one job id."""

COUNTED_MAX = 256
"""Waiting jobs of a model are counted so far: more are more than a model finishes in a moment."""


@dataclass(frozen=True, slots=True)
class Demand:
    """The jobs that wait for a model: the rank of the first; how many, counted up to COUNTED_MAX."""

    rank: float
    jobs: int


class Overview:
    """Who waits where, what runs, what there was."""

    def __init__(self, database: Database, clock: Clock, ledger: Ledger) -> None:
        self._db = database
        self._clock = clock
        self._ledger = ledger

    def position(self, job: Job, limit: int) -> int | None:
        """Return a waiting job's place, 1 for the next; None when it is beyond `limit`."""
        (ahead,) = self._db.row("ahead", model=job.model, rank=job.rank, row=job.row, limit=limit)
        return ahead + 1 if ahead < limit else None

    def line(self, job: Job, limit: int) -> Line | None:
        """Return a waiting job's place and what is before it; None when it is beyond `limit` or waits for its time."""
        position = self.position(job, limit) if job.not_before_s is None else None
        if position is None:
            return None
        before = {"model": job.model, "rank": job.rank, "row": job.row, "limit": limit}
        return Line(
            work=JobWork(job.request_bytes, job.max_tokens),
            position=position,
            ahead=[JobWork(*row) for row in self._db.rows("ahead_work", **before)] if position > 1 else (),
            running=self.running_work(job.model),
        )

    def running_work(self, model: str) -> list[JobWork]:
        """Return what runs of a model."""
        return [JobWork(*row) for row in self._db.rows("running_work", model=model, now=self._clock.now_s())]

    def first(self, model: str, limit: int) -> list[Job]:
        """Return the first waiting jobs of a model, in order."""
        return self._db.jobs("first_queued", model=model, limit=limit)

    def demand(self, models: Sequence[str]) -> dict[str, Demand | None]:
        """Return what waits for each model, None where nothing does; cheap, to be asked often."""
        limit = COUNTED_MAX if len(models) > 1 else 1  # how many matters to the others
        found = {model: self._db.row("demand", model=model, limit=limit) for model in models}
        return {model: Demand(float(rank), jobs) if jobs else None for model, (rank, jobs) in found.items()}

    def unfinished(self) -> dict[JobState, int]:
        """Return how many jobs wait for images, how many for an engine, and how many run."""
        (running,) = self._db.row("count_running")
        (waiting,) = self._db.row("count_waiting")
        queued = self._ledger.total.jobs - running - waiting
        return {JobState.WAITING: waiting, JobState.QUEUED: queued, JobState.RUNNING: running}

    def oldest_age_s(self) -> float | None:
        """Return how long the longest waiting job has waited."""
        oldest = self._db.row("oldest_queued")
        return None if oldest is None else self._clock.now_s() - float(oldest[0])

    def totals(self) -> dict[str, int]:
        """Return how many jobs were accepted and ended how, and their tokens, since the file was made."""
        return dict(self._db.rows("totals"))

    def newest(self, *, states: Sequence[JobState], client: str | None, limit: int) -> list[Job]:
        """Return the last accepted jobs, of some states or all, of one client or all; without any text."""
        wanted = to_json(states).decode() if states else None
        return self._db.jobs("newest", states=wanted, client=client, limit=limit)

    def named(self, job_id: str, *, client: str | None = None) -> list[Job]:
        """Return the jobs of an id, one for each client that used it; at most NAMED_MAX."""
        return self._db.jobs("named", job_id=job_id, client=client, limit=NAMED_MAX)
