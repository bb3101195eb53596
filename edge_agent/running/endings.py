"""How attempts end: what becomes of a job is written in its row, together with its result, before anybody is told."""

from collections.abc import Callable, Sequence
from functools import partial

from edge_agent.base.errors import POOL_RETRYABLE, RETRYABLE, Code, EdgeAgentError
from edge_agent.base.log import get_logger
from edge_agent.engine.hosting.blame import FailureLog, is_the_devices
from edge_agent.engine.hosting.engines import Engines
from edge_agent.engine.hosting.supervisor import Supervisor
from edge_agent.engine.messages import Finished, FinishReason
from edge_agent.jobs.job import Failure, Job, JobState, Outcome
from edge_agent.jobs.pace import JobWork, Pace, Took
from edge_agent.jobs.queue import Queue
from edge_agent.jobs.store import Store
from edge_agent.running.attempt import Attempt
from edge_agent.running.occupancy import Occupancy
from edge_agent.serving.outbox import Outbox

log = get_logger()


class Endings:
    """Ends attempts, for the dispatcher and on its thread."""

    def __init__(
        self,
        *,
        store: Store,
        outbox: Outbox,
        engines: Engines,
        supervisor: Supervisor,
        pace: Pace,
        now_s: Callable[[], float],
    ) -> None:
        self._store = store
        self._outbox = outbox
        self._engines = engines
        self._supervisor = supervisor
        self._pace = pace
        self._now_s = now_s
        self._failure_log = FailureLog()

    # Of one job

    def finish(self, run: Attempt, finished: Finished, lanes: Occupancy) -> None:
        """End an attempt that its engine has finished."""
        if finished.reason is FinishReason.CANCELED:
            failure = Failure.because(Code.CANCELED, "canceled while it ran")
            self.end(run, JobState.CANCELED, failure=failure, finished=finished)
        else:
            self._note_pace(run, finished, lanes)
            self.end(run, JobState.SUCCEEDED, finished=finished)

    def end(
        self,
        run: Attempt,
        state: JobState,
        *,
        failure: Failure | None = None,
        finished: Finished | None = None,
    ) -> None:
        """End a job as it is now."""
        outcome = self._outcome(run, state, failure=failure, finished=finished)
        # Its end is said once it is written, which a full disk puts off.
        log.info("job.computed", job_id=run.job.job_id, client=run.job.client, row=run.job.row, tokens=run.tokens)
        self._store.do(lambda queue: queue.end(run.job, state, outcome))

    def fail(self, run: Attempt, error: EdgeAgentError) -> None:
        """End an attempt as the engine said; what may go well later is tried again, or by another agent of the pool."""
        outcome = self._outcome(run, JobState.FAILED, failure=Failure.of(error))
        if run.job.pool is not None and error.code in POOL_RETRYABLE - RETRYABLE:
            self._store.do(
                lambda queue: queue.hand_back(run.job),
                lambda job: self._outbox.hand_back([job] if job else [], error),
            )
        else:
            # Memory that was short may have been so for its neighbours' sake: it runs by itself then.
            self._store.do(lambda queue: queue.fail(run.job, outcome, alone=True), partial(_log_retry, run, error.code))

    def _outcome(
        self, run: Attempt, state: JobState, *, failure: Failure | None = None, finished: Finished | None = None
    ) -> Outcome:
        last_seq = self._outbox.close(run.stream)
        return run.outcome(
            state,
            engine=self._engines.status(run.job.model),
            last_seq=last_seq,
            age_ms=run.age_ms(self._store.now_s()),
            failure=failure,
            finished=finished,
        )

    def _note_pace(self, run: Attempt, finished: Finished, lanes: Occupancy) -> None:
        busy_s = self._now_s() - run.begun_s
        took = Took(
            work=JobWork(run.job.request_bytes, run.job.max_tokens),
            completion_tokens=finished.usage.completion_tokens,
            prompt_s=finished.prompt_ms / 1000,
            generate_s=finished.generate_ms / 1000,
            busy_s=busy_s,
            beside=(lanes.lane_s - run.begun_lane_s) / busy_s - 1 if busy_s > 0 else 0.0,
        )
        limits = self._engines.status(run.job.model).limits
        self._pace.note(run.job.model, took, lanes=max(1, limits.parallel if limits else 1))

    # Of all that an engine ran

    def mark_for_kill(self, model: str, run: Attempt, failure: Failure, lanes: Occupancy) -> bool:
        """Have the engine ended that failed a job, when the device is to blame and there is another; see blame.py."""
        alone = len(lanes.running) == 1
        devices = is_the_devices(failure.code, lost=False, alone=alone, strikes=run.job.strikes, fell_before=False)
        return devices and lanes.engine is not None and self._supervisor.mark_for_kill(model, lanes.engine, failure)

    def engine_lost(self, model: str, lanes: Occupancy, failure: Failure, place: str | None) -> None:
        """Deal with the jobs that were in a lost engine: those for which another place is tried cost them no strike."""
        runs = self._clear(lanes)
        jobs = [run.job for run in runs if not run.over]
        alone = len(runs) == 1
        moving = [job for job in jobs if place is not None and self._moves(job, failure.code, place, alone=alone)]
        staying = [job for job in jobs if job not in moving]
        others = len(runs) - len(staying)
        if alone and staying and (place is not None or self._failure_log.of(staying[0].row)):
            self._supervisor.reset_backoff(model)
        for job in moving:
            self._failure_log.note(job.row, place or "")
        self.give_back(moving, alone=True)
        if staying:
            self._store.do(lambda queue: queue.engine_lost(staying, failure, others=others))

    def _moves(self, job: Job, code: Code, place: str, *, alone: bool) -> bool:
        fell_before = place in self._failure_log.of(job.row)
        return is_the_devices(code, lost=True, alone=alone, strikes=job.strikes, fell_before=fell_before)

    def put_back(self, lanes: Occupancy) -> None:
        """Give up what an engine runs; it does not count as an attempt that failed."""
        self.give_back([run.job for run in self._clear(lanes) if not run.over])

    def _clear(self, lanes: Occupancy) -> list[Attempt]:
        runs = lanes.clear(self._now_s())
        for run in runs:
            self._outbox.close(run.stream)
        return runs

    def unprepare(self, job: Job) -> None:
        """Put a job back whose guide nobody has tried with what its engine runs now."""
        self._store.do(lambda queue: queue.unprepare(job))

    def give_back(self, jobs: Sequence[Job], *, alone: bool = False) -> None:
        """Put jobs back in their place; they ended through no fault of theirs. `alone`: each then runs by itself.

        May be called from any thread.
        """

        def requeue(queue: Queue) -> None:
            for job in jobs:
                queue.requeue(job, give_back=True, alone=alone)

        if jobs:
            self._store.do(requeue)


def _log_retry(run: Attempt, code: Code, job: Job | None) -> None:
    """Say that a job is tried again after an attempt that failed; ends are said by the chronicle."""
    if job is not None and job.state is JobState.QUEUED:
        log.info("job.retried", job_id=job.job_id, client=job.client, row=job.row, code=code, tokens=run.tokens)
