"""Keeps engines full: claims jobs, hands them over, turns what engines say into chunks and results.

One thread. Whatever takes long (a commit, a message) is handed to somebody else and comes back as an event, so that
the next token never waits for the disk.
"""

import contextlib
import queue as stdlib_queue
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from edge_agent.base.awake import awake_s
from edge_agent.base.errors import Code, EdgeAgentError
from edge_agent.base.heartbeat import IDLE_S, Heartbeat
from edge_agent.base.log import get_logger
from edge_agent.engine.guides.guide import TOO_SLOW
from edge_agent.engine.hosting.engines import Engines
from edge_agent.engine.hosting.prover import Prover
from edge_agent.engine.hosting.supervisor import Supervisor
from edge_agent.engine.messages import Event, Failed, Finished, Progress, Start, Text
from edge_agent.health.restraint import Restraint
from edge_agent.jobs.job import Failure, Job, JobState
from edge_agent.jobs.pace import Pace
from edge_agent.jobs.queue import Queue
from edge_agent.jobs.store import Store
from edge_agent.running.attempt import Attempt, job_id
from edge_agent.running.endings import Endings
from edge_agent.running.occupancy import Occupancy
from edge_agent.serving.outbox import Outbox

PROGRESS_S = 10.0
"""How often a running job repeats its state."""

log = get_logger()


class Dispatcher:
    """Runs jobs. The methods called by others (`said`, `up`, `lost`, `unloaded`, `cancel`, `look`) only leave notes.

    `occupancy` is by model, and the dispatcher's to write. `restraint` says how many of an engine's lanes may be used
    now; what runs in others ends there. `apart`: whether what is computed for a client serves that client alone.
    """

    def __init__(
        self,
        *,
        occupancy: Mapping[str, Occupancy],
        store: Store,
        outbox: Outbox,
        engines: Engines,
        supervisor: Supervisor,
        restraint: Restraint,
        pace: Pace,
        guides: Prover,
        apart: bool = False,
        now_s: Callable[[], float] = awake_s,
    ) -> None:
        self._restraint = restraint
        self._apart = apart
        self._lanes = occupancy
        self._store = store
        self._outbox = outbox
        self._engines = engines
        self._guides = guides
        self._now_s = now_s
        self._endings = Endings(
            store=store, outbox=outbox, engines=engines, supervisor=supervisor, pace=pace, now_s=now_s
        )
        self._notes: stdlib_queue.SimpleQueue[Callable[[], None]] = stdlib_queue.SimpleQueue()
        self._draining = False
        self._idle = threading.Event()
        self._stopped = False
        self._over = threading.Event()
        self.beat = Heartbeat("dispatcher", now_s=now_s)
        self._thread = threading.Thread(target=self._run, name="dispatcher")

    def start(self) -> None:
        """Begin to claim."""
        self._thread.start()

    def drain(self, timeout_s: float) -> bool:
        """Claim no more; wait for what runs to finish; return whether all did."""
        self._draining = True
        self.look()
        return self._idle.wait(timeout_s)

    def stop(self) -> None:
        """Put back what still runs, its strike returned, and end."""
        self._notes.put(self._end)
        self._thread.join()
        self._over.set()
        self._take_late()

    def _take_late(self) -> None:
        """Take the notes that came too late: what the queue gave goes back, of the others nothing comes any more."""
        with contextlib.suppress(stdlib_queue.Empty):
            while True:
                self._notes.get_nowait()()

    # Notes from other threads

    def said(self, model: str, event: Event) -> None:
        """An engine said something of a job."""
        self._notes.put(partial(self._hear, model, event))

    def up(self, model: str, load_s: float) -> None:
        """An engine is ready; its start took so long."""
        self._notes.put(partial(self._take_up, model, load_s))

    def lost(self, model: str, failure: Failure, place: str | None = None) -> None:
        """An engine is gone, and with it the jobs in it; `place` was set aside for it, if there is another."""
        self._notes.put(partial(self._endings.engine_lost, model, self._lanes[model], failure, place))

    def unloaded(self, model: str) -> None:
        """An engine goes through no fault of its own; the jobs in it go back to their place."""
        self._notes.put(partial(self._endings.put_back, self._lanes[model]))

    def cancel(self, job: Job) -> None:
        """A requester wants a running job to end."""
        self._notes.put(partial(self._cancel, job))

    def look(self) -> None:
        """There may be something to claim."""
        self._notes.put(self._look_anew)

    def running(self, model: str) -> int:
        """Return how many jobs an engine has; a reading for reports."""
        return len(self._lanes[model].running)

    # The thread

    def _run(self) -> None:
        while not self._stopped:
            patience_s = self._patience_s()
            self.beat(patience_s)
            try:
                note = self._notes.get(timeout=patience_s)
            except stdlib_queue.Empty:
                note = self._look_anew
            self.beat()
            note()
            self._watch_time()
            for model in self._lanes:
                self._fill(model)
            if self._draining and not any(lanes.busy for lanes in self._lanes.values()):
                self._idle.set()
        self.beat.over()

    def _all_running(self) -> list[Attempt]:
        return [run for lanes in self._lanes.values() for run in lanes.running.values()]

    def _patience_s(self) -> float:
        now_s, queue_s = self._now_s(), self._store.now_s()
        left_s = (
            min(run.deadline_s - now_s, run.progress_s - now_s, run.job.expires_s - queue_s)
            for run in self._all_running()
            if not run.over
        )
        return max(0.0, min(left_s, default=IDLE_S))

    def _take_up(self, model: str, load_s: float) -> None:
        lanes = self._lanes[model]
        lanes.ready_s, lanes.load_s, lanes.changed = self._store.now_s(), load_s, True

    def _look_anew(self) -> None:
        for lanes in self._lanes.values():
            lanes.changed = True

    def _end(self) -> None:
        self._stopped = self._draining = True  # or it would claim again what it puts back
        for lanes in self._lanes.values():
            self._endings.put_back(lanes)

    def _fill(self, model: str) -> None:
        """Ask for as many jobs as there are free lanes, if that can be answered otherwise than before."""
        lanes = self._lanes[model]
        if self._draining or lanes.claiming or not lanes.changed:
            return
        process = self._engines.process(model)
        if process is None or process.ready is None or not self._engines.takes_jobs(model):
            return
        free = self._restraint.lanes(process.ready.limits.parallel) - len(lanes.running)
        if free <= 0 or lanes.reserved:
            return
        lanes.claiming, lanes.changed = True, False
        idle = not lanes.running

        def claim(queue: Queue) -> list[Job]:
            jobs: list[Job] = []
            while len(jobs) < free and (job := queue.claim(model, idle=idle and not jobs)):
                jobs.append(job)
                if job.alone:
                    break
            return jobs

        def claimed(jobs: list[Job]) -> None:
            self._notes.put(partial(self._take_claimed, model, jobs))
            if self._over.is_set():
                self._take_late()

        self._store.do(claim, claimed)

    def _take_claimed(self, model: str, jobs: Sequence[Job]) -> None:
        """Begin what the queue gave; when that was nothing, it is not asked again before something has changed."""
        if self._stopped:
            self._endings.give_back(jobs)
            return
        lanes = self._lanes[model]
        for job in jobs:
            self._begin(lanes, model, job)
        lanes.claiming = False
        lanes.changed = lanes.changed or bool(jobs)

    def _begin(self, lanes: Occupancy, model: str, job: Job) -> None:
        process = self._engines.process(model)
        if process is None:  # it died between the claim and now; the job never reached it
            self._endings.give_back([job])
            return
        now_s = self._now_s()
        lanes.count(now_s)
        waited_s = min(lanes.load_s, max(0.0, lanes.ready_s - job.accepted_s))
        run = Attempt(
            job=job,
            stream=self._outbox.open(job),
            begun_s=now_s,
            deadline_s=now_s + job.timeout_s,
            progress_s=now_s + PROGRESS_S,
            load_ms=waited_s * 1000,
            begun_lane_s=lanes.lane_s,
            owner=job.client if self._apart else "",
            reserved=job.alone,
        )
        try:
            start = Start(run.generation)
        except EdgeAgentError as error:
            self._endings.fail(run, error)
            return
        guide = start.generation.guide
        kept_bytes = 0 if guide is None else self._guides.proven(guide, process)
        if kept_bytes is None:
            self._outbox.close(run.stream)
            self._endings.unprepare(job)
            return
        lanes.running[run.id] = run
        lanes.engine = process
        process.start(start, kept_bytes=kept_bytes)
        log.info("job.started", job_id=job.job_id, client=job.client, row=job.row, attempt=job.attempt)

    def _hear(self, model: str, event: Event) -> None:
        lanes = self._lanes[model]
        run = lanes.running.get(event.job_id)
        if run is None:
            return
        now_s = self._now_s()
        lanes.count(now_s)
        lanes.changed = run.heard(now_s) or lanes.changed
        match event:
            case Progress(_, unprocessed, _, _) if not run.tokens:  # later ones speak of a sequence computed anew
                run.prompt_tokens = max(run.prompt_tokens, unprocessed)
            case Text(_, text, tokens) if not run.over:
                run.add(text, tokens, age_ms=run.age_ms(self._store.now_s()))
                self._outbox.write(run.stream, text, tokens)
            case Finished() as finished:
                lanes.release(run)
                if not run.over:
                    self._endings.finish(run, finished, lanes)
            case Failed(_, code, message):
                if message == TOO_SLOW:
                    self._refuse(lanes, run, EdgeAgentError(code, message))
                if not run.over and self._endings.mark_for_kill(model, run, Failure.because(code, message), lanes):
                    return  # it is put back when the engine is gone
                lanes.release(run)
                if not run.over:
                    self._endings.fail(run, EdgeAgentError(code, message))

    def _refuse(self, lanes: Occupancy, run: Attempt, error: EdgeAgentError) -> None:
        """Note that a guide held up an engine: who sends it again is refused before."""
        guide = run.generation.guide
        if guide is not None and lanes.engine is not None:
            self._guides.refuse(guide, lanes.engine, error)

    def _cancel(self, job: Job) -> None:
        run = self._lanes[job.model].running.get(job_id(job))
        if run is not None and not run.over:
            self._stop_run(run, JobState.CANCELED, Failure.because(Code.CANCELED, "canceled while it ran"))

    def _watch_time(self) -> None:
        now_s = self._now_s()
        for run in self._all_running():
            if run.over:
                continue
            if now_s >= run.deadline_s or self._store.now_s() >= run.job.expires_s:
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
        self._endings.end(run, state, failure=failure)
        process = self._engines.process(run.job.model)
        if process is not None:
            process.cancel(run.id)
