"""Keeps engines full: claims jobs, hands them over, turns what engines say into chunks and results.

One thread. Whatever takes long (a commit, a message) is handed to somebody else and comes back as an event, so that
the next token never waits for the disk.
"""

import contextlib
import queue as stdlib_queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from edge_agent.attempt import Attempt, job_id
from edge_agent.beat import IDLE_S, Beat
from edge_agent.engine.blame import Falls, is_the_devices
from edge_agent.engine.messages import Event, Failed, Finished, FinishReason, JobId, Progress, Start, Text
from edge_agent.engine.process import EngineProcess
from edge_agent.engine.supervisor import Supervisor
from edge_agent.errors import POOL_RETRYABLE, RETRYABLE, Code, EdgeAgentError
from edge_agent.jobs.job import Failure, Job, JobState, Outcome
from edge_agent.jobs.pace import Pace, Took, Work
from edge_agent.jobs.queue import Queue
from edge_agent.jobs.store import Store
from edge_agent.log import get_logger
from edge_agent.mqtt.outbox import Outbox

PROGRESS_S = 10.0
"""How often a running job repeats its state."""

log = get_logger()


@dataclass(slots=True)
class Lanes:
    """What one model's engine is doing.

    It has been ready since `ready_s`, after `load_s` of loading; `lane_s` are the seconds of work of all its lanes
    together.
    """

    running: dict[JobId, Attempt] = field(default_factory=dict)
    engine: EngineProcess | None = None
    claiming: bool = False
    ready_s: float = 0.0
    load_s: float = 0.0
    lane_s: float = 0.0
    counted_s: float = 0.0

    def count(self, now_s: float) -> None:
        """Add up the lane seconds; to be called before any job comes or goes."""
        self.lane_s += len(self.running) * (now_s - self.counted_s)
        self.counted_s = now_s


@dataclass(frozen=True, slots=True)
class _Said:
    model: str
    event: Event


@dataclass(frozen=True, slots=True)
class _Up:
    model: str
    load_s: float


@dataclass(frozen=True, slots=True)
class _Lost:
    model: str
    failure: Failure
    place: str | None


@dataclass(frozen=True, slots=True)
class _Unloaded:
    model: str


@dataclass(frozen=True, slots=True)
class _Claimed:
    model: str
    jobs: Sequence[Job]


@dataclass(frozen=True, slots=True)
class _Cancel:
    job: Job


@dataclass(frozen=True, slots=True)
class _Look:
    """There may be jobs to claim."""


@dataclass(frozen=True, slots=True)
class _Stop:
    """Hand back what still runs and end."""


_Note = _Said | _Up | _Lost | _Unloaded | _Claimed | _Cancel | _Look | _Stop


class Dispatcher:
    """Runs jobs. The methods called by others (`said`, `up`, `lost`, `unloaded`, `cancel`, `look`) only leave notes.

    `lanes` returns how many of an engine's lanes may be used now; what runs in others ends there.
    """

    def __init__(
        self,
        *,
        models: Sequence[str],
        store: Store,
        outbox: Outbox,
        supervisor: Callable[[], Supervisor],
        pace: Pace,
        lanes: Callable[[int], int] = lambda parallel: parallel,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._allowed = lanes
        self._lanes = {model: Lanes() for model in models}
        self._store = store
        self._outbox = outbox
        self._supervisor = supervisor
        self._pace = pace
        self._now_s = now_s
        self._notes: stdlib_queue.SimpleQueue[_Note] = stdlib_queue.SimpleQueue()
        self._falls = Falls()
        self._draining = False
        self._idle = threading.Event()
        self._stopped = False
        self.beat = Beat("dispatcher", now_s=now_s)
        self._thread = threading.Thread(target=self._run, name="dispatcher")

    def start(self) -> None:
        """Begin to claim."""
        self._thread.start()

    def drain(self, timeout_s: float) -> bool:
        """Claim no more; wait for what runs to finish; return whether all did."""
        self._draining = True
        self._notes.put(_Look())
        return self._idle.wait(timeout_s)

    def stop(self) -> None:
        """Put back what still runs, its strike returned, and end."""
        self._notes.put(_Stop())
        self._thread.join()
        while not self._notes.empty():  # what was claimed while it stopped
            if isinstance(note := self._notes.get(), _Claimed):
                self._give_back(note.jobs)

    # Notes from other threads

    def said(self, model: str, event: Event) -> None:
        """An engine said something of a job."""
        self._notes.put(_Said(model, event))

    def up(self, model: str, load_s: float) -> None:
        """An engine is ready; its start took so long."""
        self._notes.put(_Up(model, load_s))

    def lost(self, model: str, failure: Failure, place: str | None = None) -> None:
        """An engine is gone, and with it the jobs in it; `place` was set aside for it, if there is another."""
        self._notes.put(_Lost(model, failure, place))

    def unloaded(self, model: str) -> None:
        """An engine goes through no fault of its own; the jobs in it go back to their place."""
        self._notes.put(_Unloaded(model))

    def cancel(self, job: Job) -> None:
        """A requester wants a running job to end."""
        self._notes.put(_Cancel(job))

    def look(self) -> None:
        """There may be something to claim."""
        self._notes.put(_Look())

    def busy(self, model: str) -> bool:
        """Return whether an engine has jobs, or gets some in a moment."""
        lanes = self._lanes[model]
        return bool(lanes.running) or lanes.claiming

    def running(self, model: str) -> int:
        """Return how many jobs an engine has; a reading for reports."""
        return len(self._lanes[model].running)

    # The thread

    def _run(self) -> None:
        while not self._stopped:
            patience_s = self._patience_s()
            self.beat(patience_s)
            with contextlib.suppress(stdlib_queue.Empty):
                note = self._notes.get(timeout=patience_s)
                self.beat()
                self._take(note)
            self._watch_time()
            for model in self._lanes:
                self._fill(model)
            if self._draining and not any(lanes.running or lanes.claiming for lanes in self._lanes.values()):
                self._idle.set()
        self.beat.over()

    def _all_running(self) -> list[Attempt]:
        return [run for lanes in self._lanes.values() for run in lanes.running.values()]

    def _patience_s(self) -> float:
        due_s = [min(run.deadline_s, run.progress_s) for run in self._all_running() if not run.over]
        return max(0.0, min(due_s, default=self._now_s() + IDLE_S) - self._now_s())

    def _take(self, note: _Note) -> None:
        match note:
            case _Said(model, event):
                self._hear(model, event)
            case _Up(model, load_s):
                self._lanes[model].ready_s, self._lanes[model].load_s = self._store.now_s(), load_s
            case _Lost(model, failure, place):
                self._bereave(model, failure, place)
            case _Unloaded(model):
                self._put_back(self._lanes[model])
            case _Claimed(model, jobs):
                for job in jobs:
                    self._begin(model, job)
                self._lanes[model].claiming = False
            case _Cancel(job):
                self._cancel(job)
            case _Stop():
                self._hand_back()
            case _Look():
                pass

    def _fill(self, model: str) -> None:
        """Ask for as many jobs as there are free lanes."""
        lanes = self._lanes[model]
        process = self._supervisor().process(model)
        if self._draining or lanes.claiming or process is None or process.ready is None:
            return
        if not self._supervisor().takes_jobs(model):
            return
        free = self._allowed(process.ready.limits.parallel) - len(lanes.running)
        if free <= 0 or any(run.job.alone for run in lanes.running.values()):
            return
        lanes.claiming = True
        idle = not lanes.running

        def claim(queue: Queue) -> list[Job]:
            jobs: list[Job] = []
            while len(jobs) < free and (job := queue.claim(model, idle=idle and not jobs)):
                jobs.append(job)
                if job.alone:
                    break
            return jobs

        def claimed(jobs: list[Job]) -> None:
            if self._stopped:
                self._give_back(jobs)
            elif jobs:
                self._notes.put(_Claimed(model, jobs))
            else:
                lanes.claiming = False

        self._store.do(claim, claimed)

    def _begin(self, model: str, job: Job) -> None:
        process = self._supervisor().process(model)
        if process is None:  # it died between the claim and now; the job never reached it
            self._give_back([job])
            return
        lanes = self._lanes[model]
        now_s = self._now_s()
        lanes.count(now_s)
        waited_s = min(lanes.load_s, max(0.0, lanes.ready_s - job.accepted_s))
        run = Attempt(
            job=job,
            stream=self._outbox.open(job),
            begun_s=now_s,
            deadline_s=now_s + min(job.timeout_s, max(0.0, job.expires_s - self._store.now_s())),
            progress_s=now_s + PROGRESS_S,
            load_ms=waited_s * 1000,
            begun_lane_s=lanes.lane_s,
        )
        lanes.running[run.id] = run
        lanes.engine = process
        process.start(Start(run.generation))
        log.info("job.started", job_id=job.job_id, client=job.client, row=job.row, attempt=job.attempt)

    def _hear(self, model: str, event: Event) -> None:
        lanes = self._lanes[model]
        run = lanes.running.get(event.job_id)
        if run is None:
            return
        lanes.count(self._now_s())
        match event:
            case Progress(_, unprocessed, _, _) if not run.tokens:  # later ones speak of a sequence computed anew
                run.prompt_tokens = max(run.prompt_tokens, unprocessed)
            case Text(_, text, tokens):
                if not run.over:
                    self._write(run, text, tokens)
            case Finished() as finished:
                del lanes.running[run.id]
                if not run.over:
                    self._finish(run, finished)
            case Failed(_, code, message):
                if not run.over and self._condemned(model, run, Failure.because(code, message)):
                    return  # it is put back when the engine is gone
                del lanes.running[run.id]
                if not run.over:
                    self._fail(run, EdgeAgentError(code, message))

    def _write(self, run: Attempt, text: str, tokens: int) -> None:
        run.add(text, tokens, age_ms=self._age_ms(run.job))
        self._outbox.write(run.stream, text, tokens)

    def _finish(self, run: Attempt, finished: Finished) -> None:
        if finished.reason is FinishReason.CANCELED:
            failure = Failure.because(Code.CANCELED, "canceled while it ran")
            self._end(run, JobState.CANCELED, failure=failure, finished=finished)
        else:
            self._note_pace(run, finished)
            self._end(run, JobState.SUCCEEDED, finished=finished)

    def _note_pace(self, run: Attempt, finished: Finished) -> None:
        lanes, busy_s = self._lanes[run.job.model], self._now_s() - run.begun_s
        took = Took(
            work=Work(run.job.request_bytes, run.job.max_tokens),
            completion_tokens=finished.usage.completion_tokens,
            prompt_s=finished.prompt_ms / 1000,
            generate_s=finished.generate_ms / 1000,
            busy_s=busy_s,
            beside=(lanes.lane_s - run.begun_lane_s) / busy_s - 1 if busy_s > 0 else 0.0,
        )
        self._pace.note(run.job.model, took, lanes=max(1, self._parallel(run.job.model)))

    def _parallel(self, model: str) -> int:
        limits = self._supervisor().status(model).limits
        return limits.parallel if limits else 1

    def _cancel(self, job: Job) -> None:
        run = self._lanes[job.model].running.get(job_id(job))
        if run is not None and not run.over:
            self._stop_run(run, JobState.CANCELED, Failure.because(Code.CANCELED, "canceled while it ran"))

    def _watch_time(self) -> None:
        now_s = self._now_s()
        for run in self._all_running():
            if run.over:
                continue
            if now_s >= run.deadline_s:
                self._time_out(run)
            elif now_s >= run.progress_s:
                run.progress_s = now_s + PROGRESS_S
                self._outbox.progress(run.job, tokens=run.tokens)

    def _time_out(self, run: Attempt) -> None:
        if self._store.now_s() >= run.job.expires_s:
            failure = Failure.because(Code.EXPIRED, "ttl_s: the job's time to live ended while it ran")
            self._stop_run(run, JobState.EXPIRED, failure)
        else:
            failure = Failure.because(Code.TIMEOUT, "timeout_s: the job ran longer than that")
            self._stop_run(run, JobState.FAILED, failure)

    def _stop_run(self, run: Attempt, state: JobState, failure: Failure) -> None:
        """Decide a job's outcome now; the engine lets go of it when it hears of it."""
        run.over = True
        self._end(run, state, failure=failure)
        process = self._supervisor().process(run.job.model)
        if process is not None:
            process.cancel(run.id)

    def _fail(self, run: Attempt, error: EdgeAgentError) -> None:
        """End an attempt as the engine said; what may go well later is tried again, or by another agent of the pool."""
        outcome = self._outcome(run, JobState.FAILED, failure=Failure.of(error))
        if run.job.pool is not None and error.code in POOL_RETRYABLE - RETRYABLE:
            self._store.do(
                lambda queue: queue.hand_back(run.job),
                lambda job: self._outbox.hand_back([job] if job else [], error),
            )
        else:
            # Memory that was short may have been so for its neighbours' sake: it runs by itself then.
            self._store.do(lambda queue: queue.fail(run.job, outcome, alone=True), partial(_log_end, run, error.code))

    def _end(
        self,
        run: Attempt,
        state: JobState,
        *,
        failure: Failure | None = None,
        finished: Finished | None = None,
    ) -> None:
        outcome = self._outcome(run, state, failure=failure, finished=finished)
        # Its end is said once it is written, which a full disk puts off.
        log.info("job.computed", job_id=run.job.job_id, client=run.job.client, row=run.job.row, tokens=run.tokens)
        self._store.do(
            lambda queue: queue.end(run.job, state, outcome),
            partial(_log_end, run, failure.code if failure else None),
        )

    def _outcome(
        self, run: Attempt, state: JobState, *, failure: Failure | None = None, finished: Finished | None = None
    ) -> Outcome:
        last_seq = self._outbox.close(run.stream)
        return run.outcome(
            state,
            engine=self._supervisor().status(run.job.model),
            last_seq=last_seq,
            age_ms=self._age_ms(run.job),
            failure=failure,
            finished=finished,
        )

    def _age_ms(self, job: Job) -> float:
        return (self._store.now_s() - job.accepted_s) * 1000

    def _condemned(self, model: str, run: Attempt, failure: Failure) -> bool:
        """Have the engine ended that failed a job, when the device is to blame and there is another; see blame.py."""
        lanes = self._lanes[model]
        alone = len(lanes.running) == 1
        devices = is_the_devices(failure.code, lost=False, alone=alone, strikes=run.job.strikes, fell_before=False)
        return devices and lanes.engine is not None and self._supervisor().condemn(model, lanes.engine, failure)

    def _bereave(self, model: str, failure: Failure, place: str | None) -> None:
        """Deal with the jobs that were in an engine: those for which another place is tried cost them no strike."""
        lanes = self._lanes[model]
        jobs = [run.job for run in lanes.running.values() if not run.over]
        alone = len(lanes.running) == 1
        moving = [job for job in jobs if place is not None and self._moves(job, failure.code, place, alone=alone)]
        staying = [job for job in jobs if job not in moving]
        others = len(lanes.running) - len(staying)
        lanes.count(self._now_s())
        if alone and staying and (place is not None or self._falls.of(staying[0].row)):
            self._supervisor().forgive(model)
        for job in moving:
            self._falls.note(job.row, place or "")
        for run in lanes.running.values():
            self._outbox.close(run.stream)
        lanes.running.clear()
        self._give_back(moving, alone=True)
        if staying:
            self._store.do(lambda queue: queue.bereave(staying, failure, others=others))

    def _moves(self, job: Job, code: Code, place: str, *, alone: bool) -> bool:
        fell_before = place in self._falls.of(job.row)
        return is_the_devices(code, lost=True, alone=alone, strikes=job.strikes, fell_before=fell_before)

    def _hand_back(self) -> None:
        self._stopped = self._draining = True  # or it would claim again what it hands back
        for lanes in self._lanes.values():
            self._put_back(lanes)

    def _put_back(self, lanes: Lanes) -> None:
        """Give up what an engine runs; it does not count as an attempt that failed."""
        running = [run for run in lanes.running.values() if not run.over]
        for run in running:
            self._outbox.close(run.stream)
        lanes.running.clear()
        self._give_back([run.job for run in running])

    def _give_back(self, jobs: Sequence[Job], *, alone: bool = False) -> None:
        """Put jobs back in their place; they ended through no fault of theirs. `alone`: each then runs by itself."""

        def requeue(queue: Queue) -> None:
            for job in jobs:
                queue.requeue(job, give_back=True, alone=alone)

        if jobs:
            self._store.do(requeue)


def _log_end(run: Attempt, code: Code | None, job: Job | None) -> None:
    """Say what became of an attempt; nothing when something else had ended it before."""
    if job is not None:
        event = "job.retried" if job.state is JobState.QUEUED else "job.ended"
        log.info(
            event,
            job_id=job.job_id,
            client=job.client,
            row=job.row,
            state=job.state,
            code=code,
            tokens=run.tokens,
        )
