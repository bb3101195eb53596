"""What a connection wants to hear, and what the broker does not let it."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from edge_agent.log import get_logger

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
        self._asked: dict[int | None, Sequence[Subscription]] = {}
        self.refused: tuple[str, ...] = ()
        """Filters that the broker has refused on this connection."""

    def begin(self) -> None:
        """Ask for all of them, on a new connection."""
        with self._lock:
            self._asked.clear()
            self.refused = ()
            self._begun = True
            for first in range(0, len(self._wanted), FILTERS_AT_ONCE):
                self._send(self._wanted[first : first + FILTERS_AT_ONCE])

    def end(self) -> None:
        """Ask for nothing until the next connection."""
        with self._lock:
            self._begun = False

    def add(self, subscription: Subscription) -> None:
        """Ask for another one, from now on."""
        with self._lock:
            if subscription in self._wanted:
                return
            self._wanted += (subscription,)
            if self._begun:
                self._send((subscription,))

    def answered(self, mid: int, failures: Sequence[bool]) -> None:
        """Take in, of one SUBSCRIBE, which filters the broker refuses."""
        with self._lock:
            asked = self._asked.pop(mid, ())
        refused = tuple(each.topic for each, failed in zip(asked, failures, strict=False) if failed and each.needed)
        self.refused += refused
        if refused:
            log.error(
                "link.subscription_refused",
                filters=refused,
                next="let the agent read these topics in the broker's ACL",
            )

    def _send(self, batch: Sequence[Subscription]) -> None:
        self._asked[self._ask(batch)] = batch  # under the lock: the answer may be here before we have its id
