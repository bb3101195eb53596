"""The durable queue: one SQLite file, one row per job, one statement per change.

Everything here happens inside `with queue.transaction()`, on the thread that owns the queue (see store.py). Rows
that changed are collected and handed out when the transaction has committed, so that nothing is said before it is true.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from pydantic_core import to_json

from edge_agent.base.errors import Code, EdgeAgentError
from edge_agent.jobs.backlog import Backlog, Ledger
from edge_agent.jobs.claims import Claims
from edge_agent.jobs.clock import Anchor, Clock
from edge_agent.jobs.database import Database, as_json, translated
from edge_agent.jobs.job import TERMINAL, Destination, Failure, Job, JobState, Outcome, Timings, sources
from edge_agent.jobs.leftovers import Leftovers
from edge_agent.jobs.needed import NeededImages
from edge_agent.jobs.overview import Overview
from edge_agent.jobs.request import Attached, Request
from edge_agent.jobs.results import Results
from edge_agent.jobs.retention import AT_ONCE, UNBOUNDED, Allowance, Retention

CANCELS_MAX = 10_000
"""Cancels remembered for jobs that have not come; beyond it the oldest are forgotten of the client who has most."""
ROWS_AT_ONCE = 200
"""Bound on the rows one housekeeping statement touches, so that intake never waits long."""
RETRY_FIRST_S = 1.0
RETRY_MOST_S = 60.0
"""A failed attempt is tried again after 1 s, after 2 s, 4 s …: what was wrong with the engine may have passed then."""


@dataclass(frozen=True, slots=True)
class Envelope:
    """What came with a request and goes back with every answer, and how long it may live (seconds).

    `pool` is the pool it was sent to; None when it was sent to this agent.
    `source` and `answer`, for a watch's job only, are the topic it came from and where its answer goes.
    """

    client: str
    ttl_s: float
    pool: str | None = None
    correlation: bytes | None = None
    traceparent: str | None = None
    source: str | None = None
    answer: Destination | None = None


class Queue:
    """The jobs of one agent: how they come, run and end.

    `images`, `results`, `overview` and `kept` are about the same jobs, `leftovers` about what was erased of them.
    `age_step_s` is how many seconds of waiting weigh as much as one step of priority; `allowance` says what ended jobs
    may hold; `clock` makes the queue's clock from what it showed at last. Opening creates the file or brings its schema
    up to date. Raises SchemaTooNewError, DamagedError or StorageError.
    """

    def __init__(
        self,
        file: Path,
        *,
        age_step_s: float = 60.0,
        allowance: Allowance = UNBOUNDED,
        clock: Callable[[Anchor | None], Clock] = Clock,
    ) -> None:
        self._age_step_s = age_step_s
        self._db = Database(file)
        try:
            with translated():
                row = self._db.row("read_clock")
                self._ledger = Ledger(self._db.rows("unfinished"))
            self.leftovers = Leftovers(self._db, file)
        except BaseException:
            self._db.close()
            raise
        self.clock = clock(Anchor(*row) if row else None)
        self.images = NeededImages(self._db, self.clock)
        self._claims = Claims(self._db, self.clock, age_step_s=age_step_s)
        self.results = Results(self._db, self.clock)
        self.overview = Overview(self._db, self.clock, self._ledger)
        self.kept = Retention(self._db, allowance)

    def close(self) -> None:
        """Close the file; nothing of what was erased stays in it, unless another program has it open."""
        if self._db.erased:
            self.leftovers.clear(truncate=True)
        self._db.erased = False
        self._db.close()
        self.leftovers.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextmanager
    def transaction(self) -> Iterator[list[Job]]:
        """Commit everything done inside at once, or nothing of it.

        Yields the list of changed rows, complete when the block has ended. Raises StorageError, DamagedError.
        """
        self._ledger.begin()
        try:
            with self._db.transaction() as changes:
                yield changes
        except BaseException:
            self._ledger.undo()
            raise

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """In a transaction: nothing of what is done inside stays when it raises."""
        mark = self._ledger.mark
        try:
            with self._db.attempt():
                yield
        except BaseException:
            self._ledger.undo(mark)
            raise

    # Taking jobs in

    @property
    def reusable_bytes(self) -> int:
        """What of the file is free for new jobs, though it takes room on the disk."""
        return self._db.reusable_bytes

    @property
    def backlog(self) -> Backlog:
        """Unfinished jobs and their bytes."""
        return self._ledger.total

    @property
    def asked(self) -> Backlog:
        """What of it requesters asked for."""
        return self._ledger.asked

    @property
    def watched(self) -> Backlog:
        """What of it watch rules made."""
        return self._ledger.watched

    def backlog_of(self, client: str) -> Backlog:
        """Return what one requester has unfinished."""
        return self._ledger.of(client)

    def repeated(self, request: Request, client: str) -> Job | None:
        """Return the job if this very request was accepted before, ready to answer again.

        Raises EdgeAgentError DUPLICATE_ID when another request had the same id.
        """
        found = self._db.row("digest", client=client, job_id=request.job_id)
        if found is None:
            return None
        if found[0] != request.digest():
            raise EdgeAgentError(Code.DUPLICATE_ID, "job_id: was used for another request; take a new one")
        return self.recall(client, request.job_id)

    def recall(self, client: str, job_id: str) -> Job | None:
        """Return a job, its result owed again if it has one; None if there is no such job."""
        job = self._db.job("find", client=client, job_id=job_id)
        if job is not None and job.state in TERMINAL:
            self.results.owe(job)
        return job

    def accept(
        self,
        request: Request,
        envelope: Envelope,
        *,
        model: str,
        attached: Attached | None = None,
        proven: bool = False,
    ) -> Job:
        """Store a request that was not seen before. A cancel that came first wins.

        One with images comes `attached`, see attachments.py; while some are not here it waits for them.
        One with a guide is tried first, unless that is `proven`.
        """
        now_s = self.clock.now_s()
        canceled = self._db.row("take_cancel", client=envelope.client, job_id=request.job_id) is not None
        here = attached.here if attached else {}
        state = JobState.QUEUED if all(here.values()) else JobState.WAITING
        body = (attached.request if attached else request).to_json()
        (job,) = self._db.change(
            "insert",
            client=envelope.client,
            job_id=request.job_id,
            digest=request.digest(),
            model=model,
            state=JobState.CANCELED if canceled else state,
            pool=envelope.pool,
            max_tokens=request.max_tokens,
            max_attempts=request.max_attempts,
            stream=request.stream,
            priority=request.priority,
            rank=now_s - request.priority * self._age_step_s,
            accepted_s=now_s,
            expires_s=now_s + min(request.ttl_s, envelope.ttl_s),
            timeout_s=request.timeout_s,
            finished_s=now_s if canceled else None,
            request=body,
            request_bytes=len(body.encode()),
            outcome=as_json(_canceled(0.0)) if canceled else None,
            correlation=envelope.correlation,
            traceparent=envelope.traceparent,
            metadata=to_json(request.metadata).decode(),
            unprepared=bool(here) or (request.guided and not proven),
            source=envelope.source,
            answer=as_json(envelope.answer),
        )
        if not canceled:
            self._count(job, 1)
            self.images.add(job, here)
        return job

    # Running them

    def claim(self, model: str, *, idle: bool) -> Job | None:
        """Give the next job of a model to an engine, or None; see claims.py.

        A job that must run alone is given only to an idle engine, and in turn with what others have waiting.
        """
        return self._claims.claim(model, idle=idle)

    def end(self, job: Job, state: JobState, outcome: Outcome) -> Job | None:
        """End this attempt of a job with its result; None when something else ended or moved it first."""
        ended = self._db.change(
            "end",
            row=job.row,
            attempt=job.attempt,
            state=state,
            sources=to_json(sources(state)).decode(),
            outcome=as_json(outcome),
            now=self.clock.now_s(),
        )
        if not ended:
            return None
        self._count(job, -1)
        if job.watched and state is not JobState.SUCCEEDED:
            self._db.run("remove", row=job.row)  # nobody is told, nobody can ask
        return ended[0]

    def requeue(
        self,
        job: Job,
        *,
        give_back: bool,
        alone: bool = False,
        suspected: bool = False,
        not_before_s: float | None = None,
    ) -> Job | None:
        """Put a running job back in its place; `give_back` returns the strike of this claim.

        `alone`: from now on it runs by itself; `suspected`: for it may be it that ended an engine with others in it.
        Until `not_before_s`, on the queue's clock, nobody claims it and others pass. One that was asked to be canceled
        meanwhile ends so instead. None when something else moved it first.
        """
        requeued = self._db.change(
            "requeue",
            row=job.row,
            attempt=job.attempt,
            given_back=int(give_back),
            alone=2 if suspected else int(alone),
            not_before_s=not_before_s,
        )
        if requeued:
            return requeued[0]
        current = self._current(job)
        if current is None or not current.cancel_requested:
            return None
        return self.end(job, JobState.CANCELED, _canceled(self._age_ms(current)))

    def unprepare(self, job: Job) -> Job | None:
        """Put a running job back in its place, its strike returned, to be got ready anew; None as `requeue`."""
        self._db.run("unprepare_one", row=job.row)
        return self.requeue(job, give_back=True)

    def fail(self, job: Job, outcome: Outcome, *, alone: bool = False) -> Job | None:
        """End an attempt that failed; put the job back when the same may go well later, to be tried after a while.

        That is so when its error is retryable, it has strikes left and time to live. `alone`: it then runs by itself.
        Returns the job as it is then; None when something else ended or moved it first.
        """
        now_s = self.clock.now_s()
        retryable = outcome.error is not None and outcome.error.retryable
        if retryable and job.strikes < job.max_attempts:
            not_before_s = now_s + min(RETRY_MOST_S, RETRY_FIRST_S * 2 ** (job.strikes - 1))
            if not_before_s < job.expires_s:
                return self.requeue(job, give_back=False, alone=alone, not_before_s=not_before_s)
        return self.end(job, JobState.FAILED, outcome)

    def engine_lost(self, jobs: Sequence[Job], failure: Failure, *, others: int = 0, at_once: bool = False) -> None:
        """Deal with the jobs that were in an engine when it died, beside `others` whose outcome was decided already.

        Of several nobody knows whose fault it was: each runs again alone and gets its strike back. One that was
        alone keeps it, is taken to have ended that engine too, and gets that strike now: it fails with its last, and is
        not begun more often than it may. Before that it waits a while and others pass, but for `at_once`.
        """
        several = len(jobs) + others > 1
        for job in jobs:
            current = self._current(job)
            if current is None or current.attempt != job.attempt or current.state is not JobState.RUNNING:
                continue
            if several or current.cancel_requested:
                self.requeue(current, give_back=True, alone=True, suspected=several and not at_once)
                continue
            if self._db.run("convict", row=job.row):
                current = self._current(job) or current
            if at_once and current.strikes < current.max_attempts:
                self.requeue(current, give_back=False, alone=True)
            else:
                timings = Timings(total_ms=self._age_ms(current))
                self.fail(current, Outcome(error=failure, timings=timings), alone=True)

    def release(self) -> tuple[int, float | None]:
        """Let jobs be claimed again whose wait is over; return how many, and when the next one's will be."""
        now_s, released = self.clock.now_s(), 0
        (next_s,) = self._db.row("next_release")
        if next_s is not None and next_s <= now_s:
            released = self._db.run("release", now=now_s)
            (next_s,) = self._db.row("next_release")
        return released, None if next_s is None else float(next_s)

    def hand_back(self, job: Job) -> Job | None:
        """Forget a job of a pool that has not ended, so that another agent may have it; None when it has ended."""
        forgotten = self._db.job("forget", row=job.row, attempt=job.attempt)
        if forgotten is not None:
            self._count(forgotten, -1)
        return forgotten

    def pooled(self) -> list[Job]:
        """Return the waiting jobs that came through pools, in the order they came."""
        return self._db.jobs("pooled")

    def recover(self) -> None:
        """Deal with the jobs that were running when the agent died, as when their engine had. Call once, first.

        They keep their place: mostly it was not they who ended the agent. What was decoded for jobs is decoded anew,
        and their guides are tried anew before they are claimed.
        """
        self.remember_clock()
        self._db.run("unprepare")
        failure = Failure.because(Code.ENGINE_DIED, "the agent or its engine died each time this job ran")
        running = self._db.jobs("running")
        for model in {job.model for job in running}:
            self.engine_lost([job for job in running if job.model == model], failure, at_once=True)

    def disown(self, models: Sequence[str], failure: Failure) -> list[Job]:
        """End the waiting jobs of models that are not among these: nobody would ever run them.

        Those of pools are handed back instead, and returned.
        """
        return self._forsake(self._db.jobs("unserved", models=to_json(list(models)).decode()), failure)

    def disappoint(self, model: str, failure: Failure, *, since_s: float) -> list[Job]:
        """End the waiting jobs that a model was given since then, as it cannot be loaded; older ones wait on.

        Those of pools are handed back instead, and returned.
        """
        return self._forsake(self._db.jobs("hopeful", model=model, since_s=since_s), failure)

    def _forsake(self, jobs: Sequence[Job], failure: Failure) -> list[Job]:
        handed_back = []
        for job in jobs:
            if job.pool is None:
                self.give_up(job, failure)
            elif self.hand_back(job):
                handed_back.append(job)
        return handed_back

    def give_up(self, job: Job, failure: Failure, *, state: JobState = JobState.FAILED) -> Job | None:
        """End a job of which no attempt is under way; return it, None when it had ended."""
        return self.end(job, state, Outcome(error=failure, timings=Timings(total_ms=self._age_ms(job))))

    def cancel(self, client: str, job_id: str) -> Job | None:
        """Cancel a job at once if it waits, note the wish if it runs, remember it if the job is unknown.

        Returns the job as it was before; one that had ended has its result owed again.
        """
        job = self.recall(client, job_id)
        if job is None:
            self._db.run("remember_cancel", client=client, job_id=job_id, now=self.clock.now_s())
        elif job.state in {JobState.WAITING, JobState.QUEUED}:
            self.end(job, JobState.CANCELED, _canceled(self._age_ms(job)))
        elif job.state is JobState.RUNNING:
            self._db.run("request_cancel", row=job.row)
        return job

    def supersede(self, client: str, source: str | None, *, keep: int) -> int:
        """Cancel the waiting jobs of a watch, on a topic or on all, but for the newest ones; return how many."""
        older = self._db.jobs("supersedable", client=client, source=source, keep=keep)
        for job in older:
            failure = Failure.because(Code.CANCELED, "a newer message took its place")
            self.end(job, JobState.CANCELED, Outcome(error=failure))
        return len(older)

    def expire(self) -> float | None:
        """End the waiting jobs whose time has passed; return when the next one's will, on the queue's clock."""
        for job in self._db.jobs("expiring", now=self.clock.now_s(), limit=ROWS_AT_ONCE):
            self.give_up(job, _too_late(job), state=JobState.EXPIRED)
        (next_s,) = self._db.row("next_expiry")
        return None if next_s is None else float(next_s)

    # Housekeeping

    def forget_ended(self, older_s: float, *, rows: int = ROWS_AT_ONCE) -> int:
        """Forget jobs that ended longer ago, but those whose result is owed; return how many, at most `rows`."""
        return self._db.run("prune_age", before_s=self.clock.now_s() - older_s, limit=rows)

    def prune(self, *, keep_s: float, keep_jobs: int, rows: int = ROWS_AT_ONCE) -> bool:
        """Forget finished jobs beyond age, number and bytes, and old cancels; at most `rows` of each.

        Returns whether that bound was reached, so that there may be more to forget.
        """
        aged = self.forget_ended(keep_s, rows=rows)
        surplus = self.kept.shed_jobs(keep_jobs, rows=rows)
        surplus = self.kept.shed(rows=min(rows, AT_ONCE)) or surplus
        self._db.run("prune_cancels", before_s=self.clock.now_s() - keep_s)
        if self._db.row("cancel_count")[0] > CANCELS_MAX:
            self._db.run("prune_cancel_count", keep=CANCELS_MAX)
        self.remember_clock()
        return surplus or aged == rows

    def remember_clock(self) -> None:
        """Store where the queue's clock stands, for the next start."""
        self._db.run("write_clock", **asdict(self.clock.anchor()))

    def _current(self, job: Job) -> Job | None:
        return self._db.job("find", client=job.client, job_id=job.job_id)

    def _age_ms(self, job: Job) -> float:
        return round((self.clock.now_s() - job.accepted_s) * 1000, 1)

    def _count(self, job: Job, sign: int) -> None:
        self._ledger.add(job.client, sign, sign * job.request_bytes)


def _too_late(job: Job) -> Failure:
    if job.state is JobState.WAITING:
        return Failure.because(Code.IMAGE_MISSING, "messages: the images did not come within the job's time to live")
    return Failure.because(Code.EXPIRED, "ttl_s: the job waited longer than its time to live")


def _canceled(age_ms: float) -> Outcome:
    return Outcome(
        error=Failure.because(Code.CANCELED, "canceled before an engine had answered it"),
        finish_reason="canceled",
        timings=Timings(total_ms=age_ms),
    )
