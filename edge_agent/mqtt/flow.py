"""How much may be under way on a connection, in either direction."""

import threading
from collections import deque

from paho.mqtt.client import MQTTMessageInfo
from paho.mqtt.enums import MQTTErrorCode

UNSENT_MAX = 256
"""QoS 0 messages that may wait for a slow connection; further ones are dropped, as QoS 0 allows."""
HELD_BYTES_MAX = 4 * 2**20
"""What received messages may take that are not dealt with; one that is larger is waited for alone."""
HELD_MAX = 1024
"""So many of them, however small. Our Receive Maximum alone does not see to that: under load mosquitto 2.0.11 sends ten
thousand beyond it, and what our own jobs have to store waits behind all that came before."""
HELD_S = 5.0
"""No longer than this: the broker wants to hear of us."""


class ReceivedBytes:
    """The bytes of received messages that nobody has dealt with yet."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._bytes = 0
        self.count = 0
        """Messages."""

    def add(self, size_bytes: int) -> None:
        """Count a message in; wait a while when many have not been dealt with: no more is read meanwhile."""

        def bearable() -> bool:
            return self.count <= HELD_MAX and self._bytes <= max(HELD_BYTES_MAX, size_bytes)

        with self._changed:
            self._bytes += size_bytes
            self.count += 1
            self._changed.wait_for(bearable, HELD_S)

    def let_go(self, size_bytes: int) -> None:
        """Count a message out."""
        with self._changed:
            self._bytes -= size_bytes
            self.count -= 1
            self._changed.notify_all()


class Unsent:
    """The QoS 0 messages that paho has and the socket has not taken."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: deque[MQTTMessageInfo] = deque()

    def room(self) -> bool:
        """Return whether another may be handed over."""
        with self._lock:
            while self._waiting and (
                self._waiting[0].rc != MQTTErrorCode.MQTT_ERR_SUCCESS or self._waiting[0].is_published()
            ):
                self._waiting.popleft()
            return len(self._waiting) < UNSENT_MAX

    def add(self, info: MQTTMessageInfo) -> None:
        """Count a message in."""
        with self._lock:
            self._waiting.append(info)

    def forget(self) -> None:
        """Forget what waited for a connection that is gone; paho has dropped it."""
        with self._lock:
            self._waiting.clear()
