"""The thread that tells the fleet how this agent is, every few seconds."""

import random
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from edge_agent.engine.supervisor import EngineStatus
from edge_agent.errors import EdgeAgentError
from edge_agent.health import snapshot
from edge_agent.jobs.queue import Queue
from edge_agent.jobs.store import Operation, Store
from edge_agent.mqtt.payloads import EngineReading, Telemetry
from edge_agent.mqtt.presence import Condition
from edge_agent.mqtt.topics import Topics
from edge_agent.mqtt.wire import TELEMETRY_PERIODS, Publication

JITTER = 0.1
"""Share of the period by which each report is moved, so that a fleet started at once does not report at once."""

_Counted = tuple[dict[str, int], float | None]
_UNCOUNTED: _Counted = ({}, None)


class Reporter:
    """Publishes telemetry; `refresh` is called before each report so that presence and info are never older than it."""

    def __init__(
        self,
        *,
        topics: Topics,
        boot_id: str,
        period_s: float,
        state_dir: Path,
        store: Store,
        engines: Callable[[], list[EngineStatus]],
        reading: Callable[[EngineStatus], EngineReading],
        condition: Callable[[], Condition],
        connections: Callable[[], int],
        refresh: Callable[[], None],
        say: Callable[[Publication], None],
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._topics = topics
        self._boot_id = boot_id
        self._period_s = period_s
        self._state_dir = state_dir
        self._store = store
        self._engines = engines
        self._reading = reading
        self._condition = condition
        self._connections = connections
        self._refresh = refresh
        self._say = say
        self._chance = chance
        self._begun_s = time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reporter")

    def start(self) -> None:
        """Begin to report."""
        self._thread.start()

    def stop(self) -> None:
        """Report no more."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while True:
            self._refresh()
            # The queue is counted, and the report sent, by its owner: a slow disk delays a report, not this thread.
            # On a full one reports go without the counts, or they would pile up and the agent look dead.
            self._store.put(Operation(_count, self._publish, refuse=lambda _error: self._publish(_UNCOUNTED)))
            if self._stop.wait(self._period_s * (1 + JITTER * (2 * self._chance() - 1))):
                return

    def _publish(self, counted: _Counted | EdgeAgentError) -> None:
        counts, oldest_s = _UNCOUNTED if isinstance(counted, EdgeAgentError) else counted
        condition = self._condition()
        telemetry = Telemetry(
            agent=self._topics.agent,
            boot_id=self._boot_id,
            uptime_s=round(time.monotonic() - self._begun_s, 1),
            health=condition.health,
            reasons=condition.reasons,
            queue=counts,
            queue_oldest_s=oldest_s,
            engines=tuple(self._reading(engine) for engine in self._engines()),
            reconnects=max(0, self._connections() - 1),
            **asdict(snapshot.read(self._state_dir)),
        )
        expiry_s = round(TELEMETRY_PERIODS * self._period_s)
        self._say(Publication(self._topics.event("telemetry"), telemetry.encode(), qos=0, expiry_s=expiry_s))


def _count(queue: Queue) -> _Counted:
    """Return how many unfinished jobs are in each state, and how long the oldest has waited, in seconds."""
    unfinished = {str(state): count for state, count in queue.unfinished().items()}
    oldest_s = queue.oldest_age_s()
    return unfinished, None if oldest_s is None else round(oldest_s, 1)
