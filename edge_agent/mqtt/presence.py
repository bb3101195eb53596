"""Birth and death of the agent on the broker, in order, and the watch over what the broker believes of us."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from pydantic import ValidationError

from edge_agent.log import get_logger
from edge_agent.mqtt.payloads import DecisionReport, Info, Payload, Presence
from edge_agent.mqtt.topics import Topics
from edge_agent.mqtt.wire import Inbound, Publication

DUPLICATE_S = 7200.0
"""Another agent of our name is believed to live on for so long: twice the longest time the link stays away for it."""
VANISHED = "connection lost"
"""What the broker says of one that did not leave in order; of two that push each other off it says it every time."""

log = get_logger()


@dataclass(frozen=True, slots=True)
class Condition:
    """How the agent is: `starting`, `ready`, `degraded`, `draining` or `unhealthy`, and why."""

    health: str
    reasons: tuple[str, ...] = ()


class Announcer:
    """Publishes presence, info and decision, and mends what overwrote them.

    `describe` returns the birth certificate for a connection; `decided` what runs where and why; `condition` how the
    agent is now.
    """

    def __init__(
        self,
        topics: Topics,
        *,
        boot_id: str,
        condition: Callable[[], Condition],
        describe: Callable[[int], Info],
        decided: Callable[[], DecisionReport],
        say: Callable[[Publication], None],
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._topics = topics
        self._boot_id = boot_id
        self._condition = condition
        self._describe = describe
        self._decided = decided
        self._say = say
        self._now_s = now_s
        self._lock = threading.Lock()
        self._conn_seq = 0
        self._last: dict[str, Payload] = {}
        self._gone = False
        self._echoed_seq = 0
        self._foreign_s = float("-inf")

    @property
    def duplicate(self) -> bool:
        """Whether another agent of our name showed itself in the last DUPLICATE_S and has not said farewell since."""
        return self._now_s() - self._foreign_s < DUPLICATE_S

    def note_duplicate(self) -> None:
        """Remember that another agent of our name showed itself."""
        self._foreign_s = self._now_s()

    def will(self, conn_seq: int) -> Publication:
        """Return what the broker says of us when we vanish from this connection."""
        return self._presence("offline", conn_seq, reason=VANISHED)

    def birth(self, conn_seq: int) -> None:
        """Say that we are here, on a new connection."""
        with self._lock:
            self._conn_seq = conn_seq
            self._last = {}
        self.refresh()

    def refresh(self) -> None:
        """Say how we are, if that is news."""
        with self._lock:
            if self._gone or not self._conn_seq:
                return
            now: dict[str, Payload] = {
                "presence": self._body("online", self._conn_seq, self._condition()),
                "info": self._describe(self._conn_seq),
                "decision": self._decided(),
            }
            # Said under the lock: or an older condition, or one from before the farewell, could be said last.
            for leaf, body in now.items():
                if self._last.get(leaf) != body:
                    self._say(self._retained(leaf, body.encode()))
            self._last = now

    def farewell(self, reason: str) -> None:
        """Say that we leave in order; nothing is said after it."""
        with self._lock:
            self._gone = True
            self._say(self._presence("offline", self._conn_seq, reason=reason))

    def seen(self, inbound: Inbound) -> None:
        """Take in what the broker now holds as our presence; runs on the network thread."""
        try:
            presence = Presence.model_validate_json(inbound.payload)
        except ValidationError:
            presence = None
        ours = presence is not None and presence.boot_id == self._boot_id
        if ours and presence and presence.conn_seq == self._conn_seq:
            # The birth of this very connection, or its will: then it is down, and the next birth mends it.
            self._echoed_seq = self._conn_seq
            return
        online = presence is not None and presence.state == "online"
        # Who was born after a birth of ours came back lives beside us; before the first it may be our own last life.
        other = online and not ours and self._echoed_seq > 0
        if self._echoed_seq > 0 and not ours and _said_farewell(presence):
            self._foreign_s = float("-inf")  # also before our birth comes back: it left while we were away
        if self._gone or (self._echoed_seq != self._conn_seq and not other):
            return  # what comes before our birth does was kept for us from an earlier connection: history
        if ours and online:
            return
        if other:
            self.note_duplicate()
            log.error(
                "presence.duplicate",
                agent=self._topics.agent,
                next="another agent has this id: give one of them another",
            )
            self.refresh()
            return
        log.warning("presence.overwritten", agent=self._topics.agent)
        with self._lock:
            self._last = {}
        self.refresh()

    def _body(self, state: str, conn_seq: int, condition: Condition) -> Presence:
        return Presence(
            agent=self._topics.agent,
            state=state,
            boot_id=self._boot_id,
            conn_seq=conn_seq,
            health=condition.health,
            reason="; ".join(condition.reasons) or None,
        )

    def _presence(self, state: str, conn_seq: int, *, reason: str) -> Publication:
        presence = Presence(
            agent=self._topics.agent, state=state, boot_id=self._boot_id, conn_seq=conn_seq, reason=reason
        )
        return self._retained("presence", presence.encode())

    def _retained(self, leaf: str, payload: bytes) -> Publication:
        return Publication(self._topics.event(leaf), payload, qos=1, retain=True)


def _said_farewell(presence: Presence | None) -> bool:
    return presence is not None and presence.state == "offline" and presence.reason not in (None, VANISHED)
