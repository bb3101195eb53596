"""What a connection wants to hear, and what the broker does not let it."""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from edge_agent.base.log import get_logger
from edge_agent.mqtt.welcome import obstacle

FAILED = 0x80
FILTERS_AT_ONCE = 8
"""Topic filters in one SUBSCRIBE; hosted brokers take no more (aws/aws-iot-device-sdk-js#219)."""

log = get_logger()


@dataclass(frozen=True, slots=True)
class Subscription:
    """A topic filter, and how we want what it takes.

    `retained`: when the broker sends what it retains there: never, once the subscription is new to the broker, or on
    every connection. `as_published`: whether `Inbound.retained` means that it was published so; else, that it is such
    a kept message and not news. `needed`: whether we miss something without it.
    """

    topic: str
    qos: int = 1
    retained: Literal["never", "new", "always"] = "never"
    as_published: bool = True
    needed: bool = True


@dataclass(frozen=True, slots=True)
class Grant:
    """What a broker answers to one filter: a reason code (MQTT 5, section 3.9.3), and its words."""

    code: int
    words: str


class Subscriptions:
    """Those of one link, asked for anew on every connection. `ask` sends one SUBSCRIBE and returns its id.

    `add` may be called from any thread; all else belongs to the connection's.
    """

    def __init__(
        self, wanted: tuple[Subscription, ...], *, ask: Callable[[Sequence[Subscription]], int | None]
    ) -> None:
        self._wanted = wanted
        self._ask = ask
        self._lock = threading.Lock()
        self._begun = False
        self._lacks: frozenset[str] = frozenset()
        self._asked: dict[int | None, Sequence[Subscription]] = {}
        self.refused: Mapping[str, str] = {}
        """Filters that the broker has refused on this connection, and why."""

    @property
    def unanswered(self) -> bool:
        """Whether the broker owes an answer."""
        return bool(self._asked)

    def begin(self, lacks: frozenset[str] = frozenset()) -> None:
        """Ask for all of them that a broker can have that lacks this, on a new connection."""
        with self._lock:
            self._asked.clear()
            self.refused = {}
            self._begun, self._lacks = True, lacks
            possible = self._possible(self._wanted)
            for first in range(0, len(possible), FILTERS_AT_ONCE):
                self._send(possible[first : first + FILTERS_AT_ONCE])

    def end(self) -> None:
        """Ask for nothing until the next connection."""
        with self._lock:
            self._begun = False
            self._asked.clear()

    def add(self, subscription: Subscription) -> None:
        """Ask for another one, from now on."""
        with self._lock:
            if subscription in self._wanted:
                return
            self._wanted += (subscription,)
            if self._begun and (possible := self._possible((subscription,))):
                self._send(possible)

    def answered(self, mid: int, grants: Sequence[Grant]) -> None:
        """Take in what the broker answers to the filters of one SUBSCRIBE."""
        with self._lock:
            asked = self._asked.pop(mid, ())
        answers = [*zip(asked, grants, strict=False)]
        self._refuse({each.topic: grant.words for each, grant in answers if grant.code >= FAILED and each.needed})
        weak = [each.topic for each, grant in answers if grant.code < each.qos]
        if weak:
            log.warning(
                "link.subscription_weak",
                filters=weak,
                next="none; but the broker may lose what it sends here with a lower QoS than we ask for",
            )

    def _possible(self, wanted: Sequence[Subscription]) -> Sequence[Subscription]:
        """Return those that the broker can have; the others are refused without asking: it might hang up on us."""
        obstacles = {each.topic: obstacle(each.topic, self._lacks) for each in wanted}
        self._refuse({each.topic: obstacles[each.topic] for each in wanted if obstacles[each.topic] and each.needed})
        return [each for each in wanted if not obstacles[each.topic]]

    def _refuse(self, refused: Mapping[str, str]) -> None:
        if refused:
            self.refused = {**self.refused, **refused}
            log.error(
                "link.subscription_refused",
                filters=[*refused],
                reasons=sorted(set(refused.values())),
                next="let us read these topics in the broker's ACL, or use a broker that has what is missing",
            )

    def _send(self, batch: Sequence[Subscription]) -> None:
        self._asked[self._ask(batch)] = batch  # under the lock: the answer may be here before we have its id
