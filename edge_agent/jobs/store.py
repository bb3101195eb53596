"""The thread that owns the queue: everything that waits is done in one transaction, then everybody is told.

Group commit: the disk is asked once for all that came while it was busy, so that a thousand jobs a second cost tens
of syncs, not a thousand. What waits for a commit (an acknowledgement, a reply) is done after it, in the order of
arrival.
"""

import math
import queue as stdlib_queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from edge_agent.base.awake import awake_s, result_awake
from edge_agent.base.errors import EdgeAgentError
from edge_agent.base.heartbeat import Heartbeat
from edge_agent.base.log import get_logger
from edge_agent.base.signal import Signal
from edge_agent.jobs.cleaning import Cleaning
from edge_agent.jobs.database import LockedError, StorageError
from edge_agent.jobs.job import TERMINAL, Job
from edge_agent.jobs.queue import ROWS_AT_ONCE, Queue

T = TypeVar("T")

GROUP_MAX = 256
"""Operations in one transaction: enough to share a sync, few enough to wait only milliseconds for each other."""
RETRY_S = 1.0
"""How long to wait before what must be written is tried again on a disk that was full."""
LOCK_S = 30.0
"""How long another program's lock may keep waiting what could be refused; a backup takes seconds."""
LOCK_STOP_S = 10.0
"""How long it is waited for at the end, beyond what whoever stops us waited before."""
HOUSEKEEPING_S = 60.0
"""How often old jobs are forgotten; sooner when as many have ended as are forgotten at once, or they hold too much."""

log = get_logger()


@dataclass(frozen=True, slots=True)
class Operation(Generic[T]):
    """Something to do inside a transaction.

    `act` may raise EdgeAgentError before it has changed anything; that is its outcome. `then` gets the outcome once
    it is durable. `refuse`, if given, is called instead when the disk takes nothing, or another program holds the lock
    for more than LOCK_S; without it the operation waits.
    """

    act: Callable[[Queue], T]
    then: Callable[[T | EdgeAgentError], None]
    refuse: Callable[[StorageError], None] | None = None


class Store:
    """Owner of the queue.

    `on_changed` is told the rows that changed, after every commit that changed any or let some go on.
    `sync` returns once the disk has what lies beside the queue and its rows speak of; it may raise OSError.
    """

    def __init__(
        self,
        queue: Queue,
        *,
        keep_finished_s: float,
        keep_finished_jobs: int,
        sync: Callable[[], None] = lambda: None,
        retry_s: float = RETRY_S,
        lock_s: float = LOCK_S,
        monotonic_s: Callable[[], float] = awake_s,
    ) -> None:
        self._queue = queue
        self.on_changed: Signal[Sequence[Job]] = Signal()
        self._keep_s = keep_finished_s
        self._keep_jobs = keep_finished_jobs
        self._sync = sync
        self._retry_s = retry_s
        self._lock_s = lock_s
        self._monotonic_s = monotonic_s
        self._inbox: stdlib_queue.SimpleQueue[Operation[Any] | None] = stdlib_queue.SimpleQueue()
        self._stop = threading.Event()
        self._cleaning = Cleaning(queue.leftovers, now_s=monotonic_s)
        self._trouble: StorageError | None = None
        self._troubled_s = 0.0
        self._stopped_s = math.inf
        self._ended = 0
        self._doubt = ""
        self._next_due_s = 0.0
        self._next_housekeeping_s = self._untidy_s = 0.0
        self._rows = ROWS_AT_ONCE
        self.beat = Heartbeat("store")
        self._thread = threading.Thread(target=self._run, name="store")

    @property
    def now_s(self) -> Callable[[], float]:
        """The queue's clock."""
        return self._queue.clock.now_s

    @property
    def trouble(self) -> StorageError | None:
        """Why the last transaction could not be; None when it was."""
        return self._trouble

    @property
    def waiting(self) -> int:
        """How many operations wait."""
        return self._inbox.qsize()

    def start(self) -> None:
        """Begin; the first transaction deals with the jobs a dead agent left running."""
        self.do(lambda queue: queue.recover())
        self._thread.start()

    def stop(self) -> None:
        """Do everything that waits, then end. Operations added later are never done."""
        self.do(lambda queue: queue.remember_clock())
        self._stopped_s = self._monotonic_s()
        self._stop.set()
        self._inbox.put(None)
        self._thread.join()

    def put(self, operation: Operation[Any]) -> None:
        """Add an operation; returns at once."""
        self._inbox.put(operation)

    def do(self, act: Callable[[Queue], T], then: Callable[[T], None] | None = None) -> None:
        """Add an operation that cannot be refused; returns at once."""

        def told(outcome: T | EdgeAgentError) -> None:
            if isinstance(outcome, EdgeAgentError):
                raise outcome
            if then is not None:
                then(outcome)

        self._inbox.put(Operation(act, told))

    def ask(self, act: Callable[[Queue], T], *, timeout_s: float = 60.0) -> T:
        """Do something and wait for its outcome.

        Raises EdgeAgentError as `act` did, TimeoutError while the disk takes nothing; it may still be done later then.
        """
        return result_awake(self.asked(act), timeout_s)

    def asked(self, act: Callable[[Queue], T]) -> Future[T]:
        """Add an operation; its outcome, or the EdgeAgentError it raised, comes with the future. Returns at once."""
        future: Future[T] = Future()

        def then(outcome: T | EdgeAgentError) -> None:
            if isinstance(outcome, EdgeAgentError):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)

        self._inbox.put(Operation(act, then))
        return future

    def _run(self) -> None:
        held: list[Operation[Any]] = []
        while True:
            self._cleaning.turn(cut=self._trouble is None)
            group = held + self._take(wait=not held)
            held = []
            self.beat()
            if not group and self._stop.is_set():
                break
            if not group and self._idle_s() > 0:
                continue
            try:
                self._commit(group)
            except StorageError as error:
                self._note(error)
                held = self._refuse(group, error)
                if self._stop.is_set() and not self._waits_at_the_end(error):
                    log.error("store.abandoned", operations=len(held), reason=str(error))
                    break
                self._stop.wait(self._retry_s)
            else:
                self._tidy()
        self._queue.close()
        self.beat.over()

    def _take(self, *, wait: bool) -> list[Operation[Any]]:
        group: list[Operation[Any]] = []
        patience_s = self._patience_s()
        self.beat(patience_s)
        try:
            first = self._inbox.get(timeout=patience_s) if wait else self._inbox.get_nowait()
            while True:
                if first is not None:
                    group.append(first)
                if len(group) >= GROUP_MAX:
                    break
                first = self._inbox.get_nowait()
        except stdlib_queue.Empty:
            pass
        return group

    def _idle_s(self) -> float:
        """Return how long no job needs anything of our own accord."""
        due_s = min(self._next_housekeeping_s, self._next_due_s)
        return 0.0 if self._stop.is_set() else min(max(0.0, due_s - self.now_s()), HOUSEKEEPING_S)

    def _patience_s(self) -> float:
        """Return how long there is nothing to do of our own accord."""
        clean_s = self._cleaning.wait_s
        return self._idle_s() if clean_s is None else min(self._idle_s(), clean_s)

    def _commit(self, group: Sequence[Operation[Any]]) -> None:
        outcomes: list[Any] = []
        with self._queue.transaction() as changes:
            for operation in group:
                try:
                    outcomes.append(operation.act(self._queue))
                except EdgeAgentError as error:
                    outcomes.append(error)
            released, next_release_s = self._queue.release()
            self._next_due_s = min(self._queue.expire() or math.inf, next_release_s or math.inf)
            self._sync()
        self._recovered()
        self._ended += sum(job.state in TERMINAL for job in changes)
        for operation, outcome in zip(group, outcomes, strict=True):
            operation.then(outcome)
        if changes or released:
            self.on_changed(changes)

    def _tidy(self) -> None:
        """Forget what is old or too much: apart from what others wait for, which a full disk may still take."""
        if self.now_s() < self._untidy_s:
            return
        try:
            with self._queue.transaction():
                self._prune()
            self._rows = min(2 * self._rows, ROWS_AT_ONCE)
        except StorageError:  # it takes room before it gives some: less at a time, in a while
            self._rows = 1
            self._untidy_s = self._next_housekeeping_s = self.now_s() + self._retry_s

    def _prune(self) -> None:
        now_s = self.now_s()
        if now_s >= self._next_housekeeping_s or self._ended >= ROWS_AT_ONCE or self._queue.kept.over:
            self._ended = 0
            more = self._queue.prune(keep_s=self._keep_s, keep_jobs=self._keep_jobs, rows=self._rows)
            self._watch_clock()
            self._next_housekeeping_s = now_s if more else now_s + HOUSEKEEPING_S

    def _watch_clock(self) -> None:
        """Say when the wall clock is not believed, and when it is again."""
        doubt = self._queue.clock.doubt
        if doubt and doubt != self._doubt:
            log.warning(
                "clock.doubted", reason=doubt, next="set it; until then no time that the machine is off is counted"
            )
        elif self._doubt and not doubt:
            log.info("clock.believed")
        self._doubt = doubt

    def _note(self, error: StorageError) -> None:
        """Say what is wrong, once."""
        if type(error) is not type(self._trouble):
            event = "store.locked" if isinstance(error, LockedError) else "store.full"
            log.error(event, reason=str(error), next=f"{error.mend}; what is running waits to be written")
        if self._trouble is None:
            self._troubled_s = self._monotonic_s()
        self._trouble = error

    def _recovered(self) -> None:
        if self._trouble is not None:
            log.info("store.writable", after_s=round(self._monotonic_s() - self._troubled_s, 1))
        self._trouble = None

    def _waits_at_the_end(self, error: StorageError) -> bool:
        return isinstance(error, LockedError) and self._monotonic_s() - self._stopped_s < LOCK_STOP_S

    def _refuse(self, group: Sequence[Operation[Any]], error: StorageError) -> list[Operation[Any]]:
        """Answer what can be refused; return the rest, which must wait. For a lock all wait first: it ends soon."""
        if isinstance(error, LockedError) and self._monotonic_s() - self._troubled_s < self._lock_s:
            return list(group)
        held = []
        for operation in group:
            if operation.refuse is None:
                held.append(operation)
            else:
                operation.refuse(error)
        return held
