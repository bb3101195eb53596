"""The pools an agent shares with others: the broker gives each of their jobs to one agent that has subscribed.

The subscriptions are on a connection of their own, because brokers go on to deal jobs to whoever is subscribed, however
busy. It exists only while the agent is well and has room; it leaves by disconnecting.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from edge_agent.base.log import get_logger
from edge_agent.mqtt import session
from edge_agent.mqtt.access import Access
from edge_agent.mqtt.link import Callbacks, Link, Receipt
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


class Pools:
    """Joins and leaves. `attend` and `stop` belong to the main thread; `look` may be called from any.

    `wake` is called when `attend` has something to do before its time, `changed` when `reasons` are others; `healthy`,
    `unfinished` and `lanes` are asked often and must be quick.
    """

    def __init__(
        self,
        access: Access,
        *,
        names: Sequence[str],
        topics: Topics,
        receive: Callable[[Inbound, Callable[[], None]], None],
        connected: Callable[[], bool],
        healthy: Callable[[], bool],
        unfinished: Callable[[], int],
        lanes: Callable[[], int],
        wake: Callable[[], None],
        changed: Callable[[], None] = lambda: None,
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
        self._receive = receive
        self._connected = connected
        self._healthy = healthy
        self._unfinished = unfinished
        self._lanes = lanes
        self._wake = wake
        self._changed = changed
        self._link: Link | None = None
        self._joined = False
        self._refused: Mapping[str, str] = {}

    @property
    def reasons(self) -> tuple[str, ...]:
        """Which pools the broker keeps us out of, and why; until the agent connects anew."""
        return tuple(f"not in the pool {self._names[each]}: {why}" for each, why in self._refused.items())

    @property
    def full(self) -> bool:
        """Whether a job that still comes is refused."""
        return full(self._unfinished(), self._lanes())

    @property
    def links(self) -> list[Link]:
        """The connection, while there is one."""
        return [self._link] if self._link else []

    def look(self) -> None:
        """Notice that the number of unfinished jobs has changed."""
        if self._subscriptions and (self._absence(healthy=True) is None) != (self._link is not None):
            self._wake()

    def reset(self) -> None:
        """Notice that the agent has connected anew."""
        self._refused = {}
        self._wake()

    def attend(self) -> None:
        """Join or leave, if it is time."""
        if not self._subscriptions:
            return
        why = self._absence(healthy=self._healthy())
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
                connected=self._connected(),
                healthy=healthy,
                unfinished=self._unfinished(),
                lanes=self._lanes(),
            )
        )

    def _join(self) -> None:
        def receive(inbound: Inbound, receipt: Receipt) -> None:
            self._receive(inbound, lambda: link.ack(receipt))

        callbacks = Callbacks(receive=receive, subscribed=self._subscribed)
        self._link = link = Link(
            self._access, subscriptions=self._subscriptions, callbacks=callbacks, thread="mqtt-pool"
        )
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
            self._changed()
            self._wake()
