"""The thread that looks at the machine and tells the fleet how this agent is, every few seconds."""

import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial

from edge_agent import __version__
from edge_agent.base.awake import result_awake
from edge_agent.base.errors import EdgeAgentError
from edge_agent.base.heartbeat import Heartbeat
from edge_agent.engine.hosting.status import EngineStatus
from edge_agent.health.condition import Condition
from edge_agent.health.counters import Counters, Counts
from edge_agent.health.snapshot import Snapshots
from edge_agent.jobs.queue import Queue
from edge_agent.jobs.store import Operation, Store
from edge_agent.protocol.messages import TELEMETRY_PERIODS, Publication
from edge_agent.protocol.payloads import EngineReading, MachineReading, Telemetry, WatchReading
from edge_agent.protocol.topics import Topics
from edge_agent.serving.outbox import Outbox
from hardware.readings import Readings

JITTER = 0.1
"""Share of the period by which each report is moved, so that a fleet started at once does not report at once."""
LOOK_S = 5.0
"""How often the machine is looked at, whatever the period of the reports."""
COUNT_S = 2.0
"""How long who asks how the agent is waits for the queue's counts."""


@dataclass(frozen=True, slots=True)
class _QueueReading:
    """Unfinished jobs by state, the age of the oldest in seconds, and what was counted since the queue was made."""

    unfinished: dict[str, int]
    oldest_s: float | None
    lifetime: dict[str, int] | None


_UNREAD = _QueueReading({}, None, None)


class Reporter:
    """Publishes telemetry; `refresh` is called before each report so that presence and info are never older than it.

    `look` is given every reading of the hardware; `reading` tells of an engine, given what was counted of its model.
    """

    def __init__(
        self,
        *,
        topics: Topics,
        boot_id: str,
        period_s: float,
        snapshots: Snapshots,
        counters: Counters,
        store: Store,
        outbox: Outbox,
        engines: Callable[[], list[EngineStatus]],
        reading: Callable[[EngineStatus, Counts], EngineReading],
        condition: Callable[[], Condition],
        connections: Callable[[], int],
        look: Callable[[Readings], None],
        restraint: Callable[[], int],
        refresh: Callable[[], None],
        watches: Callable[[], tuple[WatchReading, ...]],
        say: Callable[[Publication], None],
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._topics = topics
        self._boot_id = boot_id
        self._period_s = period_s
        self._snapshots = snapshots
        self._counters = counters
        self._store = store
        self._outbox = outbox
        self._engines = engines
        self._reading = reading
        self._condition = condition
        self._connections = connections
        self._look = look
        self._restraint = restraint
        self._refresh = refresh
        self._watches = watches
        self._say = say
        self._chance = chance
        self._begun_s = time.monotonic()
        self._stop = threading.Event()
        self.latest: Telemetry | None = None
        """The last report; None before the first."""
        self.beat = Heartbeat("reporter")
        self._thread = threading.Thread(target=self._run, name="reporter")

    def start(self) -> None:
        """Begin to report."""
        self._thread.start()

    def stop(self) -> None:
        """Report no more."""
        self._stop.set()
        self._thread.join()
        self._snapshots.close()

    def _run(self) -> None:
        due_s = time.monotonic()
        while True:
            self.beat()
            seen = self._snapshots.look()
            self._look(seen)
            if (now_s := time.monotonic()) >= due_s:
                due_s = now_s + self._period_s * (1 + JITTER * (2 * self._chance() - 1))
                self._report(seen)
            wait_s = min(LOOK_S, max(0.0, due_s - time.monotonic()))
            self.beat(wait_s)
            if self._stop.wait(wait_s):
                break
        self.beat.over()

    def _report(self, seen: Readings) -> None:
        self._refresh()
        machine = self._snapshots.take(seen)
        # The queue is counted, and the report sent, by its owner: a slow disk delays a report, not this thread.
        # On a full one reports go without the counts, or they would pile up and the agent look dead.
        publish = partial(self._publish, machine)
        self._store.put(Operation(_count, publish, refuse=lambda _error: publish(_UNREAD)))

    def now(self) -> Telemetry:
        """Return what a report would say now, to whoever asks; without the queue's counts when its owner is busy."""
        counting: Future[_QueueReading | EdgeAgentError] = Future()
        self._store.put(Operation(_count, counting.set_result, refuse=lambda _error: counting.set_result(_UNREAD)))
        try:
            counted = result_awake(counting, COUNT_S)
        except TimeoutError:
            counted = _UNREAD
        return self._telemetry(self._snapshots.now(), counted)

    def _publish(self, machine: MachineReading, counted: _QueueReading | EdgeAgentError) -> None:
        self.latest = telemetry = self._telemetry(machine, counted)
        expiry_s = round(TELEMETRY_PERIODS * self._period_s)
        self._say(Publication(self._topics.event("telemetry"), telemetry.encode(), qos=0, expiry_s=expiry_s))

    def _telemetry(self, machine: MachineReading, counted: _QueueReading | EdgeAgentError) -> Telemetry:
        queue = _UNREAD if isinstance(counted, EdgeAgentError) else counted
        condition, counts = self._condition(), self._counters.counts()
        return Telemetry(
            **dict(machine),
            agent=self._topics.agent,
            version=__version__,
            boot_id=self._boot_id,
            uptime_s=round(time.monotonic() - self._begun_s, 1),
            health=condition.health,
            reasons=condition.reasons,
            restraint=self._restraint(),
            queue=queue.unfinished,
            queue_oldest_s=queue.oldest_s,
            engines=tuple(self._reading(engine, counts) for engine in self._engines()),
            counters=counts.summary(),
            lifetime=queue.lifetime,
            outbox_waiting=self._outbox.waiting,
            outbox_in_flight=self._outbox.in_flight,
            outbox_dropped=self._outbox.dropped,
            reconnects=max(0, self._connections() - 1),
            watches=self._watches() or None,
        )


def _count(queue: Queue) -> _QueueReading:
    oldest_s = queue.overview.oldest_age_s()
    return _QueueReading(
        unfinished={str(state): count for state, count in queue.overview.unfinished().items()},
        oldest_s=None if oldest_s is None else round(oldest_s, 1),
        lifetime=queue.overview.totals(),
    )
