"""The pools an agent shares with others: the broker gives each of their jobs to one agent that has subscribed.

The subscriptions are on a connection of their own, because brokers go on to deal jobs to whoever is subscribed, however
busy. It exists only while the agent is well and has room; it leaves by disconnecting.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from edge_agent.base.log import get_logger
from edge_agent.base.signal import Signal
from edge_agent.engine.hosting.engines import Engines
from edge_agent.health.restraint import Restraint
from edge_agent.jobs.queue import Queue
from edge_agent.mqtt import session
from edge_agent.mqtt.access import Access
from edge_agent.mqtt.link import Link
from edge_agent.mqtt.subscriptions import Subscription
from edge_agent.protocol.messages import Inbound
from edge_agent.protocol.topics import Topics

log = get_logger()


@dataclass(frozen=True, slots=True)
class PoolView:
    """What the decision to be in the pools rests on. `unfinished` jobs, of pools or not; `lanes` jobs run at once."""

    member: bool
    connected: bool
    healthy: bool
    unfinished: int
    lanes: int


def absence(view: PoolView) -> str | None:
    """Return why an agent shall not be in its pools; None when it shall (pure).

    It leaves when as many jobs wait as it has lanes, beside those that run, and comes back at half of that: so it is
    never without work while its connection is made, and no job waits longer for it than for one before it.
    """
    if not view.connected:
        return "no broker"
    if not view.healthy or view.lanes < 1:
        return "not well"
    waiting = max(0, view.unfinished - view.lanes)
    enough = view.lanes if view.member else view.lanes // 2 + 1
    return "enough to do" if waiting >= enough else None


def full(unfinished: int, lanes: int) -> bool:
    """Return whether a job that still comes is refused, so that another agent gets it."""
    return unfinished >= 2 * lanes


class PoolRoom:
    """How much an agent has to do, and how much it does at once; asked often, by any thread."""

    def __init__(self, *, queue: Queue, engines: Engines, restraint: Restraint) -> None:
        self._queue = queue
        self._engines = engines
        self._restraint = restraint

    @property
    def unfinished(self) -> int:
        """Unfinished jobs that somebody asked for: those go before what is watched."""
        return self._queue.asked.jobs

    @property
    def lanes(self) -> int:
        """How many jobs the engines that are there run at once."""
        limits = (engine.limits for engine in self._engines.statuses())
        return sum(self._restraint.lanes(each.parallel) for each in limits if each)

    def full(self) -> bool:
        """Return whether a job that still comes is refused."""
        return full(self.unfinished, self.lanes)


class Pools:
    """Joins and leaves. `attend` and `stop` belong to the main thread; `look` may be called from any.

    `wake` is set when `attend` has something to do before its time. `on_received`: a job of a pool came, with what
    acknowledges it; `on_changed`: `reasons` are others. `link` is the agent's own connection.
    """

    def __init__(
        self,
        access: Access,
        *,
        names: Sequence[str],
        topics: Topics,
        link: Link,
        room: PoolRoom,
        wake: threading.Event,
    ) -> None:
        self._access = replace(
            access,
            client_id=f"{access.client_id}.pool",
            session=session.derived(access.session, "pool"),
            clean_start=True,
            session_expiry_s=0,
            receive_max=1,
        )
        self._names = {topics.pool_jobs(name): name for name in names}
        self._subscriptions = tuple(map(Subscription, self._names))
        self.on_received: Signal[Inbound, Callable[[], None]] = Signal()
        self.on_changed: Signal[[]] = Signal()
        self._main_link = link
        self._room = room
        self._wake = wake
        self._link: Link | None = None
        self._joined = False
        self._refused: Mapping[str, str] = {}

    @property
    def reasons(self) -> tuple[str, ...]:
        """Which pools the broker keeps us out of, and why; until the agent connects anew."""
        return tuple(f"not in the pool {self._names[each]}: {why}" for each, why in self._refused.items())

    @property
    def links(self) -> list[Link]:
        """The connection, while there is one."""
        return [self._link] if self._link else []

    def look(self) -> None:
        """Notice that the number of unfinished jobs has changed."""
        if self._subscriptions and (self._absence(healthy=True) is None) != (self._link is not None):
            self._wake.set()

    def reset(self) -> None:
        """Notice that the agent has connected anew."""
        self._refused = {}
        self._wake.set()

    def attend(self, *, healthy: bool) -> None:
        """Join or leave, if it is time; `healthy`: whether jobs may come that others could do as well."""
        if not self._subscriptions:
            return
        why = self._absence(healthy=healthy)
        if len(self._refused) == len(self._subscriptions):
            why = why or "refused"
        if self._link is None and why is None:
            self._join()
        elif self._link is not None and why is not None:
            self._leave(why)

    def stop(self) -> None:
        """Leave for good."""
        if self._link is not None:
            self._leave("stopping")

    def _absence(self, *, healthy: bool) -> str | None:
        return absence(
            PoolView(
                member=self._link is not None,
                connected=self._main_link.connected,
                healthy=healthy,
                unfinished=self._room.unfinished,
                lanes=self._room.lanes,
            )
        )

    def _join(self) -> None:
        self._link = link = Link(self._access, subscriptions=self._subscriptions, thread="mqtt-pool")
        link.on_received.connect(lambda inbound, receipt: self.on_received(inbound, receipt.acknowledge))
        link.on_subscribed.connect(self._subscribed)
        self._joined = False
        link.start()

    def _leave(self, why: str) -> None:
        link, self._link = self._link, None
        if link is not None:
            link.stop()
        log.info("pool.left", reason=why)

    def _subscribed(self, refused: Mapping[str, str]) -> None:
        news, self._refused = dict(refused) != self._refused, dict(refused)
        joined = len(self._subscriptions) - len(refused)
        if joined and not self._joined:
            self._joined = True
            log.info("pool.joined", pools=joined)
        if news:
            self.on_changed()
            self._wake.set()
