"""The thread that looks at the machine and tells the fleet how this agent is, every few seconds."""

import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from edge_agent import __version__
from edge_agent.base.awake import result_awake
from edge_agent.base.errors import EdgeAgentError
from edge_agent.base.heartbeat import Heartbeat
from edge_agent.base.signal import Signal
from edge_agent.engine.hosting.engines import Engines
from edge_agent.engine.hosting.status import EngineStatus
from edge_agent.health.condition import Condition
from edge_agent.health.counters import Counters, Counts
from edge_agent.health.restraint import Restraint
from edge_agent.health.snapshot import Snapshots
from edge_agent.jobs.queue import Queue
from edge_agent.jobs.store import Operation, Store
from edge_agent.mqtt.link import Link
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


class EnginesReport(Protocol):
    """What an agent says of itself and its engines."""

    def condition(self) -> Condition:
        """Return how it is."""

    def reading(self, engine: EngineStatus, counts: Counts) -> EngineReading:
        """Return how an engine is, and what was counted of its model."""


class Reporter:
    """Publishes telemetry while somebody hears it: a report of an hour ago is no news, and must push no state out.

    `on_due` is told before each report, so that presence and info are never older than it.
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
        engines: Engines,
        link: Link,
        restraint: Restraint,
        watches: Callable[[], tuple[WatchReading, ...]],
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._topics = topics
        self._boot_id = boot_id
        self._period_s = period_s
        self._snapshots = snapshots
        self._counters = counters
        self._store = store
        self._outbox = outbox
        self.on_due: Signal[[]] = Signal()
        self._engines = engines
        self._link = link
        self._restraint = restraint
        self._watches = watches
        self._chance = chance
        self._begun_s = time.monotonic()
        self._stop = threading.Event()
        self.latest: Telemetry | None = None
        """The last report; None before the first."""
        self.beat = Heartbeat("reporter")
        self._thread: threading.Thread

    def start(self, report: EnginesReport) -> None:
        """Begin to report."""
        self._thread = threading.Thread(target=self._run, args=(report,), name="reporter")
        self._thread.start()

    def stop(self) -> None:
        """Report no more."""
        self._stop.set()
        self._thread.join()
        self._snapshots.close()

    def _run(self, report: EnginesReport) -> None:
        due_s = time.monotonic()
        while True:
            self.beat()
            seen = self._snapshots.look()
            self._restraint.look(seen)
            if (now_s := time.monotonic()) >= due_s:
                due_s = now_s + self._period_s * (1 + JITTER * (2 * self._chance() - 1))
                self._report(seen, report)
            wait_s = min(LOOK_S, max(0.0, due_s - time.monotonic()))
            self.beat(wait_s)
            if self._stop.wait(wait_s):
                break
        self.beat.over()

    def _report(self, seen: Readings, report: EnginesReport) -> None:
        self.on_due()
        machine = self._snapshots.take(seen)
        # The queue is counted, and the report sent, by its owner: a slow disk delays a report, not this thread.
        # On a full one reports go without the counts, or they would pile up and the agent look dead.
        publish = partial(self._publish, machine, report)
        self._store.put(Operation(_count, publish, refuse=lambda _error: publish(_UNREAD)))

    def now(self, report: EnginesReport) -> Telemetry:
        """Return what a report would say now, to whoever asks; without the queue's counts when its owner is busy."""
        counting: Future[_QueueReading | EdgeAgentError] = Future()
        self._store.put(Operation(_count, counting.set_result, refuse=lambda _error: counting.set_result(_UNREAD)))
        try:
            counted = result_awake(counting, COUNT_S)
        except TimeoutError:
            counted = _UNREAD
        return self._telemetry(self._snapshots.now(), counted, report)

    def _publish(self, machine: MachineReading, report: EnginesReport, counted: _QueueReading | EdgeAgentError) -> None:
        self.latest = telemetry = self._telemetry(machine, counted, report)
        expiry_s = round(TELEMETRY_PERIODS * self._period_s)
        if self._link.connected:
            self._outbox.say(Publication(self._topics.event("telemetry"), telemetry.encode(), qos=0, expiry_s=expiry_s))

    def _telemetry(
        self, machine: MachineReading, counted: _QueueReading | EdgeAgentError, report: EnginesReport
    ) -> Telemetry:
        queue = _UNREAD if isinstance(counted, EdgeAgentError) else counted
        condition, counts = report.condition(), self._counters.counts()
        return Telemetry(
            **dict(machine),
            agent=self._topics.agent,
            version=__version__,
            boot_id=self._boot_id,
            uptime_s=round(time.monotonic() - self._begun_s, 1),
            health=condition.health,
            reasons=condition.reasons,
            restraint=self._restraint.level,
            queue=queue.unfinished,
            queue_oldest_s=queue.oldest_s,
            engines=tuple(report.reading(engine, counts) for engine in self._engines.statuses()),
            counters=counts.summary(),
            lifetime=queue.lifetime,
            outbox_waiting=self._outbox.waiting,
            outbox_in_flight=self._outbox.in_flight,
            outbox_dropped=self._outbox.dropped,
            reconnects=max(0, self._link.connections - 1),
            watches=self._watches() or None,
        )


def _count(queue: Queue) -> _QueueReading:
    oldest_s = queue.overview.oldest_age_s()
    return _QueueReading(
        unfinished={str(state): count for state, count in queue.overview.unfinished().items()},
        oldest_s=None if oldest_s is None else round(oldest_s, 1),
        lifetime=queue.overview.totals(),
    )
