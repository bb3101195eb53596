"""The durable queue: one SQLite file, one row per job, one statement per change.

Everything here happens inside `with queue.transaction()`, on the thread that owns the queue (see store.py). Rows
that changed are collected and handed out when the transaction has committed, so that nothing is said before it is true.
"""

import dataclasses
import re
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pydantic_core import to_json

from edge_agent.errors import Code, EdgeAgentError
from edge_agent.jobs.attachments import Attached
from edge_agent.jobs.backlog import Backlog, Ledger
from edge_agent.jobs.clock import Anchor, Clock
from edge_agent.jobs.job import TERMINAL, Failure, Job, JobState, Outcome, Timings, sources
from edge_agent.jobs.pace import Line, Work
from edge_agent.jobs.request import Request

SCHEMA_VERSION = 2
SCRIPTS = resources.files(__package__)
"""Where `schema.sql`, `queries.sql` and, one per later version, `migrate_VERSION.sql` lie."""
RESULT_KEPT_S = 86_400.0
"""A result is published until the broker answers, but no longer than this (its expiry in the protocol)."""
CANCELS_MAX = 10_000
"""Cancels remembered for jobs that have not come; beyond it the oldest are forgotten."""
ROWS_AT_ONCE = 200
"""Bound on the rows one housekeeping statement touches, so that intake never waits long."""
RETRY_FIRST_S = 1.0
RETRY_MOST_S = 60.0
"""A failed attempt is tried again after 1 s, after 2 s, 4 s …: what was wrong with the engine may have passed then."""

NAMED_MAX = 6
"""Clients that are told of when several used one job id."""


class SchemaTooNewError(Exception):
    """The database was written by a newer version; the message says what to do."""


class DamagedError(Exception):
    """The database file is damaged."""


class StorageError(Exception):
    """The disk is full or the folder cannot be written; nothing of the transaction happened."""


@dataclass(frozen=True, slots=True)
class Owed:
    """A result that is to be published since `due_s`; `tries` were refused by the broker."""

    job: Job
    due_s: float
    tries: int


@dataclass(frozen=True, slots=True)
class Envelope:
    """What came with a request and goes back with every answer, and how long it may live (seconds).

    `pool` is the pool it was sent to; None when it was sent to this agent.
    `source` and `answer`, for a watch's job only, are the topic it came from and its Destination as JSON.
    """

    client: str
    ttl_s: float
    pool: str | None = None
    correlation: bytes | None = None
    traceparent: str | None = None
    source: str | None = None
    answer: str | None = None


def _load_queries() -> dict[str, str]:
    names = [field.name for field in dataclasses.fields(Job)]
    columns = ", ".join(names)
    # Without what may be long, and is nobody's business in a list.
    brief = ", ".join(
        {"request": "NULL", "outcome": "json_remove(outcome, '$.text')"}.get(name, name) for name in names
    )
    to_queued = ", ".join(f"'{state}'" for state in sources(JobState.QUEUED))
    text = SCRIPTS.joinpath("queries.sql").read_text(encoding="utf-8")
    parts = re.split(r"^-- name: (\w+)\n", text, flags=re.MULTILINE)[1:]
    pairs = zip(parts[::2], parts[1::2], strict=True)
    return {name: sql.strip().format(job=columns, brief=brief, to_queued=to_queued) for name, sql in pairs}


SQL = _load_queries()

_STORAGE_FAULTS = frozenset(
    {sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN}
)
_DAMAGE = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})


@contextmanager
def _translated() -> Iterator[None]:
    """Turn SQLite's errors into ours; any other is our own fault and crashes."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        primary = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if primary in _STORAGE_FAULTS:
            raise StorageError(str(error)) from error
        if primary in _DAMAGE:
            raise DamagedError(str(error)) from error
        raise


def _job(row: Sequence[Any]) -> Job:
    job = Job(*row)
    return dataclasses.replace(
        job,
        state=JobState(job.state),
        alone=bool(job.alone),
        cancel_requested=bool(job.cancel_requested),
        stream=bool(job.stream),
        unprepared=bool(job.unprepared),
    )


class Queue:
    """The jobs of one agent.

    `age_step_s` is how many seconds of waiting weigh as much as one step of priority; `clock` makes the queue's clock
    from what it showed at last. Opening creates the file or brings its schema up to date. Raises SchemaTooNewError,
    DamagedError or StorageError.
    """

    def __init__(
        self, file: Path, *, age_step_s: float = 60.0, clock: Callable[[Anchor | None], Clock] = Clock
    ) -> None:
        self._age_step_s = age_step_s
        self._make_clock = clock
        self._changes: list[Job] = []
        with _translated():
            # One owner at a time, the store's thread; opened and closed by the main one.
            self._db = sqlite3.connect(file, isolation_level=None, check_same_thread=False, cached_statements=64)
            try:
                self._open()
            except BaseException:
                self._db.close()
                raise

    def _open(self) -> None:
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")
        self._db.execute("PRAGMA secure_delete = ON")
        self._db.execute("PRAGMA cache_size = -2048")
        (found,) = self._db.execute("PRAGMA quick_check(1)").fetchone()
        if found != "ok":
            raise DamagedError(found)
        self._migrate()
        row = self._db.execute(SQL["read_clock"]).fetchone()
        self.clock = self._make_clock(Anchor(*row) if row else None)
        self._ledger = Ledger(self._db.execute(SQL["unfinished"]).fetchall())

    def _migrate(self) -> None:
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if version > SCHEMA_VERSION:
            raise SchemaTooNewError(
                f"the queue has schema version {version}, this program knows {SCHEMA_VERSION}; "
                "install the newer program again, or move the file away to begin with an empty queue"
            )
        while version < SCHEMA_VERSION:
            name = "schema.sql" if version == 0 else f"migrate_{version + 1}.sql"
            script = SCRIPTS.joinpath(name).read_text(encoding="utf-8")
            version = SCHEMA_VERSION if version == 0 else version + 1
            self._db.executescript(f"BEGIN IMMEDIATE;\n{script}\n; PRAGMA user_version = {version}; COMMIT;")

    def close(self) -> None:
        """Close the file."""
        self._db.close()

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
        self._changes = []
        with _translated():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._changes
                self._db.execute("COMMIT")
            except BaseException:
                self._ledger.undo()
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    # Taking jobs in

    @property
    def backlog(self) -> Backlog:
        """Unfinished jobs and their bytes."""
        return self._ledger.total

    def backlog_of(self, client: str) -> Backlog:
        """Return what one requester has unfinished."""
        return self._ledger.of(client)

    def repeated(self, request: Request, client: str) -> Job | None:
        """Return the job if this very request was accepted before, ready to answer again.

        Raises EdgeAgentError DUPLICATE_ID when another request had the same id.
        """
        key = {"client": client, "job_id": request.job_id}
        found = self._db.execute(SQL["digest"], key).fetchone()
        if found is None:
            return None
        if found[0] != request.digest():
            raise EdgeAgentError(Code.DUPLICATE_ID, "job_id: was used for another request; take a new one")
        return self.recall(client, request.job_id)

    def recall(self, client: str, job_id: str) -> Job | None:
        """Return a job, its result owed again if it has one; None if there is no such job."""
        found = self._db.execute(SQL["find"], {"client": client, "job_id": job_id}).fetchone()
        if found is None:
            return None
        job = _job(found)
        if job.state in TERMINAL:
            self._db.execute(SQL["owe"], {"row": job.row, "now": self.clock.now_s()})
        return job

    def accept(self, request: Request, envelope: Envelope, *, model: str, attached: Attached | None = None) -> Job:
        """Store a request that was not seen before. A cancel that came first wins.

        One with images comes `attached`, see attachments.py; while some are not here it waits for them.
        """
        now_s = self.clock.now_s()
        key = {"client": envelope.client, "job_id": request.job_id}
        canceled = self._db.execute(SQL["take_cancel"], key).fetchone() is not None
        here = attached.here if attached else {}
        state = JobState.QUEUED if all(here.values()) else JobState.WAITING
        body = (attached.request if attached else request).to_json()
        row = self._db.execute(
            SQL["insert"],
            key
            | {
                "digest": request.digest(),
                "model": model,
                "state": JobState.CANCELED if canceled else state,
                "pool": envelope.pool,
                "max_tokens": request.max_tokens,
                "max_attempts": request.max_attempts,
                "stream": request.stream,
                "priority": request.priority,
                "rank": now_s - request.priority * self._age_step_s,
                "accepted_s": now_s,
                "expires_s": now_s + min(request.ttl_s, envelope.ttl_s),
                "timeout_s": request.timeout_s,
                "finished_s": now_s if canceled else None,
                "request": body,
                "request_bytes": len(body.encode()),
                "outcome": _canceled(0.0).model_dump_json(exclude_none=True) if canceled else None,
                "correlation": envelope.correlation,
                "traceparent": envelope.traceparent,
                "metadata": to_json(request.metadata).decode(),
                "unprepared": bool(here),
                "source": envelope.source,
                "answer": envelope.answer,
            },
        ).fetchone()
        job = self._changed(row)
        if not canceled:
            self._count(job, 1)
            self._need(job, here)
        return job

    # Running them

    def claim(self, model: str, *, idle: bool) -> Job | None:
        """Give the first job of a model to an engine, or None.

        A job that must run alone is given only to an idle engine; until then nobody overtakes it.
        """
        row = self._db.execute(SQL["claim"], {"model": model, "now": self.clock.now_s(), "idle": idle}).fetchone()
        return None if row is None else self._changed(row)

    def end(self, job: Job, state: JobState, outcome: Outcome) -> Job | None:
        """End this attempt of a job with its result; None when something else ended or moved it first."""
        row = self._db.execute(
            SQL["end"],
            {
                "row": job.row,
                "attempt": job.attempt,
                "state": state,
                "sources": to_json(sources(state)).decode(),
                "outcome": outcome.model_dump_json(exclude_none=True),
                "now": self.clock.now_s(),
            },
        ).fetchone()
        if row is None:
            return None
        self._count(job, -1)
        if job.watched and state is not JobState.SUCCEEDED:
            self._remove(job)  # nobody is told, nobody can ask
        return self._changed(row)

    def requeue(
        self, job: Job, *, give_back: bool, alone: bool = False, not_before_s: float | None = None
    ) -> Job | None:
        """Put a running job back in its place; `give_back` returns the strike of this claim.

        Until `not_before_s`, on the queue's clock, nobody claims it and others pass. One that was asked to be canceled
        meanwhile ends so instead. None when something else moved it first.
        """
        row = self._db.execute(
            SQL["requeue"],
            {
                "row": job.row,
                "attempt": job.attempt,
                "given_back": int(give_back),
                "alone": int(alone),
                "not_before_s": not_before_s,
            },
        ).fetchone()
        if row is not None:
            return self._changed(row)
        current = self._current(job)
        if current is None or not current.cancel_requested:
            return None
        return self.end(job, JobState.CANCELED, _canceled(self._age_ms(current)))

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

    def bereave(self, jobs: Sequence[Job], failure: Failure, *, others: int = 0, at_once: bool = False) -> None:
        """Deal with the jobs that were in an engine when it died, beside `others` whose outcome was decided already.

        Of several nobody knows whose fault it was: each runs again alone and gets its strike back. One that was
        alone keeps it, and fails when that was its last; before that it waits a while and others pass, but for
        `at_once`.
        """
        several = len(jobs) + others > 1
        for job in jobs:
            current = self._current(job)
            if current is None or current.attempt != job.attempt or current.state is not JobState.RUNNING:
                continue
            if several or current.cancel_requested:
                self.requeue(current, give_back=True, alone=True)
            elif at_once and current.strikes < current.max_attempts:
                self.requeue(current, give_back=False, alone=True)
            else:
                timings = Timings(total_ms=self._age_ms(current))
                self.fail(current, Outcome(error=failure, timings=timings), alone=True)

    def release(self) -> tuple[int, float | None]:
        """Let jobs be claimed again whose wait is over; return how many, and when the next one's will be."""
        now_s, released = self.clock.now_s(), 0
        (next_s,) = self._db.execute(SQL["next_release"]).fetchone()
        if next_s is not None and next_s <= now_s:
            released = self._db.execute(SQL["release"], {"now": now_s}).rowcount
            (next_s,) = self._db.execute(SQL["next_release"]).fetchone()
        return released, None if next_s is None else float(next_s)

    def hand_back(self, job: Job) -> Job | None:
        """Forget a job of a pool that has not ended, so that another agent may have it; None when it has ended."""
        row = self._db.execute(SQL["forget"], {"row": job.row, "attempt": job.attempt}).fetchone()
        if row is None:
            return None
        self._count(_job(row), -1)
        return _job(row)

    def pooled(self) -> list[Job]:
        """Return the waiting jobs that came through pools, in the order they came."""
        return [_job(row) for row in self._db.execute(SQL["pooled"]).fetchall()]

    def recover(self) -> None:
        """Deal with the jobs that were running when the agent died, as when their engine had. Call once, first.

        They keep their place: mostly it was not they who ended the agent. What was decoded for jobs is decoded anew.
        """
        self.remember_clock()
        self._db.execute(SQL["unprepare"])
        failure = Failure.because(Code.ENGINE_DIED, "the agent or its engine died each time this job ran")
        running = [_job(row) for row in self._db.execute(SQL["running"])]
        for model in {job.model for job in running}:
            self.bereave([job for job in running if job.model == model], failure, at_once=True)

    def disown(self, models: Sequence[str], failure: Failure) -> list[Job]:
        """End the waiting jobs of models that are not among these: nobody would ever run them.

        Those of pools are handed back instead, and returned.
        """
        handed_back = []
        for job in map(_job, self._db.execute(SQL["unserved"], {"models": to_json(list(models)).decode()}).fetchall()):
            if job.pool is None:
                self.end(job, JobState.FAILED, Outcome(error=failure, timings=Timings(total_ms=self._age_ms(job))))
            elif self.hand_back(job):
                handed_back.append(job)
        return handed_back

    def cancel(self, client: str, job_id: str) -> Job | None:
        """Cancel a job at once if it waits, note the wish if it runs, remember it if the job is unknown.

        Returns the job as it was before; one that had ended has its result owed again.
        """
        job = self.recall(client, job_id)
        if job is None:
            self._db.execute(SQL["remember_cancel"], {"client": client, "job_id": job_id, "now": self.clock.now_s()})
        elif job.state in {JobState.WAITING, JobState.QUEUED}:
            self.end(job, JobState.CANCELED, _canceled(self._age_ms(job)))
        elif job.state is JobState.RUNNING:
            self._db.execute(SQL["request_cancel"], {"row": job.row})
        return job

    def supersede(self, client: str, source: str, *, keep: int) -> int:
        """Cancel the waiting jobs of a watch on a topic, but for the newest ones; return how many."""
        key = {"client": client, "source": source, "keep": keep}
        older = [_job(row) for row in self._db.execute(SQL["supersedable"], key).fetchall()]
        for job in older:
            failure = Failure.because(Code.CANCELED, "a newer message took its place")
            self.end(job, JobState.CANCELED, Outcome(error=failure))
        return len(older)

    def expire(self) -> float | None:
        """End the waiting jobs whose time has passed; return when the next one's will, on the queue's clock."""
        expiring = self._db.execute(SQL["expiring"], {"now": self.clock.now_s(), "limit": ROWS_AT_ONCE}).fetchall()
        for job in map(_job, expiring):
            failure = _too_late(job)
            self.end(job, JobState.EXPIRED, Outcome(error=failure, timings=Timings(total_ms=self._age_ms(job))))
        (next_s,) = self._db.execute(SQL["next_expiry"]).fetchone()
        return None if next_s is None else float(next_s)

    # Their images

    def _need(self, job: Job, here: Mapping[str, bool]) -> None:
        rows = ({"row": job.row, "sha256": sha256, "here": is_here} for sha256, is_here in here.items())
        self._db.executemany(SQL["need_image"], rows)

    def missing(self, job: Job) -> tuple[str, ...]:
        """Return the hashes of the images that a job waits for."""
        return tuple(sha256 for (sha256,) in self._db.execute(SQL["missing"], {"row": job.row}))

    def asked_for(self, client: str, sha256: str) -> bool | None:
        """Return whether a job of this client waits for images, this one among those it needs.

        False when all of that client's jobs that need it have it; None when none needs it.
        """
        (asked,) = self._db.execute(SQL["asked_for"], {"client": client, "sha256": sha256}).fetchone()
        return None if asked is None else bool(asked)

    def image_came(self, sha256: str) -> None:
        """Note that an image is here; jobs that waited for no other are queued."""
        self._db.execute(SQL["image_came"], {"sha256": sha256})
        for row in self._db.execute(SQL["complete"], {"sha256": sha256}).fetchall():
            self._changed(row)

    def next_unprepared(self, model: str, *, ahead: int) -> Job | None:
        """Return the first job of a model whose images are to be decoded; None while `ahead` decoded ones wait."""
        key = {"model": model, "now": self.clock.now_s(), "ahead": ahead}
        row = self._db.execute(SQL["next_unprepared"], key).fetchone()
        return None if row is None else _job(row)

    def prepared(self, job: Job, images: str) -> bool:
        """Let a job be claimed, its images decoded; return False when it has ended meanwhile."""
        return self._db.execute(SQL["prepared"], {"row": job.row, "images": images}).fetchone() is not None

    def images(self) -> tuple[frozenset[str], frozenset[int]]:
        """Return the hashes of the images that are needed, and the rows of the jobs that need them; forget others."""
        self._db.execute(SQL["forget_images"])
        hashes = frozenset(sha256 for (sha256,) in self._db.execute(SQL["needed_images"]))
        return hashes, frozenset(row for (row,) in self._db.execute(SQL["jobs_with_images"]))

    # Delivering results

    def owed(self, limit: int) -> list[Owed]:
        """Return the results to publish now, longest due first; give up those tried for RESULT_KEPT_S."""
        now_s = self.clock.now_s()
        due = []
        for *row, due_s, tries in self._db.execute(SQL["owed"], {"now": now_s, "limit": limit}).fetchall():
            owed = Owed(_job(row), due_s, tries)
            if tries and now_s - (owed.job.finished_s or now_s) > RESULT_KEPT_S:
                self.delivered(owed)
            else:
                due.append(owed)
        return due

    def next_owed_s(self) -> float | None:
        """Return when the next result will be due that is not due yet, on the queue's clock."""
        (due_s,) = self._db.execute(SQL["next_owed"], {"now": self.clock.now_s()}).fetchone()
        return None if due_s is None else float(due_s)

    def delivered(self, owed: Owed) -> None:
        """Note that the broker took a result; one asked for again since then stays owed."""
        self._db.execute(SQL["delivered"], {"row": owed.job.row, "due_s": owed.due_s})
        if owed.job.watched:
            self._remove(owed.job)

    def deferred(self, owed: Owed, delay_s: float) -> None:
        """Note that the broker refused a result; try again later."""
        deliver_s = self.clock.now_s() + delay_s
        self._db.execute(SQL["defer"], {"row": owed.job.row, "due_s": owed.due_s, "deliver_s": deliver_s})

    def erase(self, job: Job) -> None:
        """Forget prompt, answer and metadata of a delivered job; what it took and how it ended stays.

        One whose result was asked for again since stays as it is.
        """
        outcome = Outcome.model_validate_json(job.outcome or "{}")
        if outcome.text:
            outcome = outcome.model_copy(update={"text": "", "text_truncated": True})
        self._db.execute(SQL["erase"], {"row": job.row, "outcome": outcome.model_dump_json(exclude_none=True)})

    # Knowing about them

    def position(self, job: Job, limit: int) -> int | None:
        """Return a waiting job's place, 1 for the next; None when it is beyond `limit`."""
        arguments = {"model": job.model, "rank": job.rank, "row": job.row, "limit": limit}
        (ahead,) = self._db.execute(SQL["ahead"], arguments).fetchone()
        return ahead + 1 if ahead < limit else None

    def line(self, job: Job, limit: int) -> Line | None:
        """Return a waiting job's place and what is before it; None when it is beyond `limit` or waits for its time."""
        position = self.position(job, limit) if job.not_before_s is None else None
        if position is None:
            return None
        arguments = {"model": job.model, "rank": job.rank, "row": job.row, "limit": limit}
        return Line(
            work=Work(job.request_bytes, job.max_tokens),
            position=position,
            ahead=[Work(*row) for row in self._db.execute(SQL["ahead_work"], arguments)] if position > 1 else (),
            running=self.running_work(job.model),
        )

    def running_work(self, model: str) -> list[Work]:
        """Return what runs of a model."""
        arguments = {"model": model, "now": self.clock.now_s()}
        return [Work(*row) for row in self._db.execute(SQL["running_work"], arguments)]

    def first(self, model: str, limit: int) -> list[Job]:
        """Return the first waiting jobs of a model, in order."""
        return [_job(row) for row in self._db.execute(SQL["first_queued"], {"model": model, "limit": limit})]

    def demand(self, models: Sequence[str]) -> dict[str, float | None]:
        """Return the rank of the first waiting job of each model, None where none waits; cheap, to be asked often."""
        firsts = {model: self._db.execute(SQL["first_rank"], {"model": model}).fetchone() for model in models}
        return {model: None if row is None else float(row[0]) for model, row in firsts.items()}

    def unfinished(self) -> dict[JobState, int]:
        """Return how many jobs wait for images, how many for an engine, and how many run."""
        (running,) = self._db.execute(SQL["count_running"]).fetchone()
        (waiting,) = self._db.execute(SQL["count_waiting"]).fetchone()
        queued = self.backlog.jobs - running - waiting
        return {JobState.WAITING: waiting, JobState.QUEUED: queued, JobState.RUNNING: running}

    def oldest_age_s(self) -> float | None:
        """Return how long the longest waiting job has waited."""
        oldest = self._db.execute(SQL["oldest_queued"]).fetchone()
        return None if oldest is None else self.clock.now_s() - float(oldest[0])

    def totals(self) -> dict[str, int]:
        """Return how many jobs were accepted and ended how, and their tokens, since the file was made."""
        return dict(self._db.execute(SQL["totals"]).fetchall())

    def newest(self, *, states: Sequence[JobState], client: str | None, limit: int) -> list[Job]:
        """Return the last accepted jobs, of some states or all, of one client or all; without any text."""
        wanted = to_json(states).decode() if states else None
        return [
            _job(row) for row in self._db.execute(SQL["newest"], {"states": wanted, "client": client, "limit": limit})
        ]

    def named(self, job_id: str, *, client: str | None = None) -> list[Job]:
        """Return the jobs of an id, one for each client that used it; at most NAMED_MAX."""
        arguments = {"job_id": job_id, "client": client, "limit": NAMED_MAX}
        return [_job(row) for row in self._db.execute(SQL["named"], arguments)]

    # Housekeeping

    def forget_ended(self, older_s: float) -> int:
        """Forget jobs that ended longer ago, but those whose result is owed; return how many, at most ROWS_AT_ONCE."""
        arguments = {"before_s": self.clock.now_s() - older_s, "limit": ROWS_AT_ONCE}
        return self._db.execute(SQL["prune_age"], arguments).rowcount

    def prune(self, *, keep_s: float, keep_jobs: int) -> bool:
        """Forget finished jobs beyond age and number, and old cancels, at most ROWS_AT_ONCE rows a statement.

        Returns whether that bound was reached, so that there may be more to forget.
        """
        now_s = self.clock.now_s()
        aged = self._db.execute(SQL["prune_age"], {"before_s": now_s - keep_s, "limit": ROWS_AT_ONCE}).rowcount
        (finished,) = self._db.execute(SQL["finished_count"]).fetchone()
        limit = min(max(0, finished - keep_jobs), ROWS_AT_ONCE)
        surplus = self._db.execute(SQL["prune_count"], {"limit": limit}).rowcount
        self._db.execute(SQL["prune_cancels"], {"before_s": now_s - keep_s})
        self._db.execute(SQL["prune_cancel_count"], {"keep": CANCELS_MAX})
        self.remember_clock()
        return ROWS_AT_ONCE in (aged, surplus)

    def remember_clock(self) -> None:
        """Store where the queue's clock stands, for the next start."""
        self._db.execute(SQL["write_clock"], dataclasses.asdict(self.clock.anchor()))

    def _remove(self, job: Job) -> None:
        self._db.execute(SQL["remove"], {"row": job.row})

    def _current(self, job: Job) -> Job | None:
        row = self._db.execute(SQL["find"], {"client": job.client, "job_id": job.job_id}).fetchone()
        return None if row is None else _job(row)

    def _age_ms(self, job: Job) -> float:
        return (self.clock.now_s() - job.accepted_s) * 1000

    def _changed(self, row: Sequence[Any]) -> Job:
        job = _job(row)
        self._changes.append(job)
        return job

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
