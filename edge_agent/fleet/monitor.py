"""The connection of who watches a fleet: hears what every agent says of itself, and says nothing."""

import queue as stdlib_queue
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Self

from edge_agent.fleet import rows
from edge_agent.fleet.roster import BYTES_MAX, Roster
from edge_agent.mqtt.access import Access
from edge_agent.mqtt.link import Link, Receipt
from edge_agent.mqtt.subscriptions import Subscription
from edge_agent.protocol.messages import Inbound

PACKET_BYTES_MAX = 2 * max(BYTES_MAX.values())
"""The broker is told to send us nothing larger."""
AT_ONCE = 500
"""Messages that are taken in before somebody may look at the picture again."""
SETTLED_S = 0.5
"""When the broker has sent nothing it had kept for so long, there is no more of it."""


class Monitor:
    """A roster that is kept up to date; use it as a context manager, and call `attend` often from one thread."""

    def __init__(self, access: Access, *, root: str, now_s: Callable[[], float] = time.monotonic) -> None:
        self.roster = Roster(root)
        self.refused: Mapping[str, str] = {}
        """Filters that the broker does not let us have."""
        self._now_s = now_s
        self._subscribed_s: float | None = None
        self._kept_s = 0.0
        self._notes: stdlib_queue.SimpleQueue[Callable[[], None]] = stdlib_queue.SimpleQueue()
        """What the connection's thread leaves to be done here."""
        self._link = Link(
            replace(access, receive_bytes_max=PACKET_BYTES_MAX),
            subscriptions=tuple(
                Subscription(topic, retained="always", as_published=False) for topic in self.roster.filters
            ),
        )
        self._link.on_received.connect(lambda inbound, receipt: self._notes.put(partial(self._hear, inbound, receipt)))
        self._link.on_up.connect(lambda _epoch: self._notes.put(self._hearing))
        self._link.on_down.connect(lambda _reason: self._notes.put(self._deaf))
        self._link.on_subscribed.connect(lambda refused: self._notes.put(partial(self._granted, refused)))

    def __enter__(self) -> Self:
        self._link.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._link.stop()

    @property
    def connected(self) -> bool:
        """Whether the broker is there."""
        return self._link.connected

    @property
    def trouble(self) -> str | None:
        """Why there is no connection and what mends it, in a sentence; None while there is one."""
        return None if self._link.excuse is None else str(self._link.excuse)

    def wait_connected(self, timeout_s: float) -> bool:
        """Wait for the broker; return whether it is there."""
        return self._link.wait_connected(timeout_s)

    def attend(self) -> bool:
        """Take in what has come; return whether there was anything. Returns at once."""
        self._link.attend()
        for taken in range(AT_ONCE):
            try:
                note = self._notes.get_nowait()
            except stdlib_queue.Empty:
                return taken > 0
            note()
        return True

    def settled(self) -> bool:
        """Return whether everything has come that the broker had kept."""
        quiet_s = self._now_s() - max(self._kept_s, self._subscribed_s or 0.0)
        return self._subscribed_s is not None and self._notes.empty() and quiet_s >= SETTLED_S

    def complete(self) -> bool:
        """Return whether every agent has reported that is not gone: how it is now, not how it was."""
        return self.settled() and rows.unheard(self.roster, self._now_s()) == 0

    def _hear(self, inbound: Inbound, receipt: Receipt) -> None:
        now_s = self._now_s()
        self.roster.take(inbound, now_s)
        if inbound.retained:
            self._kept_s = now_s
        self._link.ack(receipt)

    def _hearing(self) -> None:
        self.roster.hearing(self._now_s())

    def _granted(self, refused: Mapping[str, str]) -> None:
        self.refused, self._subscribed_s = refused, self._now_s()

    def _deaf(self) -> None:
        self._subscribed_s = None
        self.roster.deaf(self._now_s())
