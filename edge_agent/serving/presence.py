"""Birth and death of the agent on the broker, in order, and the watch over what the broker believes of us."""

import threading
import time
from collections.abc import Callable
from typing import Protocol

from pydantic import ValidationError

from edge_agent.base.log import get_logger
from edge_agent.base.signal import Signal
from edge_agent.health.condition import Condition
from edge_agent.protocol.messages import Inbound, Publication
from edge_agent.protocol.payloads import DecisionReport, Info, Payload, Presence
from edge_agent.protocol.topics import KEPT, Topics
from edge_agent.serving.retained import RetainedTopic
from edge_agent.serving.strangers import Sparing

DUPLICATE_S = 7200.0
"""Another agent of our name is believed to live on for so long at most: twice the longest time a link stays away."""
CLONE_S = 300.0
"""One that works from a copy of our state folder takes our session, and we take it back: what the broker says of it
proves nothing. It is believed to live on for so long, or for three times the time between the last two signs of it."""
TAG_CHARACTERS = 8
ANOTHER = "another agent has this id"
CLONE = "another agent has this id and a copy of our state folder"
MEND = "give one of them another agent.id; one that was copied with its state folder gets an empty one, too"
VANISHED = "connection lost"
"""What the broker says of one that did not leave in order; of two that push each other off it says it every time."""

log = get_logger()


class AgentReport(Protocol):
    """What an agent says of itself."""

    def condition(self) -> Condition:
        """Return how it is."""

    def describe(self, conn_seq: int) -> Info:
        """Return the birth certificate for a connection."""

    def decisions(self) -> DecisionReport:
        """Return what runs where and why."""


class Announcer:
    """Publishes presence, info and decision, and mends what overwrote them.

    `tag` tells our session from those of others, and nothing of how it is called; see `Presence.session`.
    How the agent is, is asked of the `report` that comes with what is to be done.
    """

    def __init__(
        self,
        topics: Topics,
        *,
        boot_id: str,
        tag: str,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._topics = topics
        self._boot_id = boot_id
        self._tag = tag
        self.on_said: Signal[Publication] = Signal()
        self._now_s = now_s
        self._lock = threading.Lock()
        self._conn_seq = 0
        self._last: dict[str, Payload] = {}
        self._gone = False
        self._echoed_seq = 0
        self._kept = {topics.event(leaf): RetainedTopic() for leaf in KEPT}
        self._overwritten = Sparing(now_s)
        self._twin: Presence | None = None
        self._twin_s: float | None = None
        self._twin_until_s = float("-inf")

    @property
    def duplicate(self) -> str:
        """Why another agent of our name is believed to live, in words; empty when none is."""
        if self._now_s() >= self._twin_until_s:
            return ""
        return CLONE if self._cloned(self._twin) else ANOTHER

    def note_duplicate(self, twin: Presence | None = None) -> None:
        """Remember that another agent of our name showed itself: by its presence, or by taking our session."""
        now_s = self._now_s()
        if self._cloned(twin):
            between_s = 0.0 if self._twin_s is None else now_s - self._twin_s
            self._twin_until_s = now_s + min(DUPLICATE_S, max(CLONE_S, 3 * between_s))
        else:
            self._twin_until_s = now_s + DUPLICATE_S
        self._twin, self._twin_s = twin, now_s

    def will(self, conn_seq: int) -> Publication:
        """Return what the broker says of us when we vanish from this connection."""
        return self._presence("offline", conn_seq, reason=VANISHED)

    def birth(self, conn_seq: int, report: AgentReport) -> None:
        """Say that we are here, on a new connection."""
        with self._lock:
            self._conn_seq = conn_seq
            self._last = {}
            for kept in self._kept.values():
                kept.begin()
        self.refresh(report)

    def refresh(self, report: AgentReport) -> None:
        """Say how we are, if that is news."""
        with self._lock:
            if self._gone or not self._conn_seq:
                return
            now: dict[str, Payload] = {
                "presence": self._body("online", self._conn_seq, report.condition()),
                "info": report.describe(self._conn_seq),
                "decision": report.decisions(),
            }
            # Said under the lock: or an older condition, or one from before the farewell, could be said last.
            for leaf, body in now.items():
                if self._last.get(leaf) != body:
                    publication = self._retained(leaf, body.encode())
                    if publication.topic in self._kept:
                        self._kept[publication.topic].said(publication.payload)
                    self.on_said(publication)
            self._last = now

    def farewell(self, reason: str) -> None:
        """Say that we leave in order; nothing is said after it."""
        with self._lock:
            self._gone = True
            self.on_said(self._presence("offline", self._conn_seq, reason=reason))

    def owns(self, topic: str) -> bool:
        """Return whether a topic is one of those that are ours alone."""
        return topic in self._kept or topic == self._topics.event("presence")

    def seen(self, inbound: Inbound, report: AgentReport) -> None:
        """Take in what the broker now holds on such a topic; runs on the network thread."""
        if inbound.topic in self._kept:
            self._seen_kept(inbound.topic, bytes(inbound.payload), report)
        else:
            self._seen_presence(inbound, report)

    def _seen_kept(self, topic: str, payload: bytes, report: AgentReport) -> None:
        with self._lock:
            kept = self._kept[topic]
            if not kept.foreign(payload) or self._gone or self.duplicate:
                return  # another agent of our name would overwrite it again: said already
            self._last.pop(topic.rsplit("/", 1)[1], None)
            mend = kept.may_mend(self._now_s())
        self._say_overwritten(topic)
        if mend:
            self.refresh(report)

    def _seen_presence(self, inbound: Inbound, report: AgentReport) -> None:
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
        if self._echoed_seq > 0 and not ours and presence is not None and self._left(presence):
            self._twin_until_s = float("-inf")  # also before our birth comes back: it left while we were away
        if self._gone or (self._echoed_seq != self._conn_seq and not other):
            return  # what comes before our birth does was kept for us from an earlier connection: history
        if ours and online:
            return
        if other:
            known = self.duplicate
            self.note_duplicate(presence)
            if self.duplicate != known:
                log.error("presence.duplicate", agent=self._topics.agent, reason=self.duplicate, next=MEND)
            self.refresh(report)
            return
        self._say_overwritten(inbound.topic)
        with self._lock:
            self._last.pop("presence", None)
        self.refresh(report)

    def _say_overwritten(self, topic: str) -> None:
        if self._overwritten.due(topic) is not None:
            log.warning("presence.overwritten", agent=self._topics.agent, topic=topic)

    def _cloned(self, twin: Presence | None) -> bool:
        """Return whether one works from a copy of our state folder, for all that is known; one of old says nothing."""
        return twin is None or twin.session in (None, self._tag)

    def _left(self, presence: Presence) -> bool:
        """Return whether another agent of our name is gone, from the last that was said of it."""
        if presence.state != "offline":
            return False
        if presence.reason not in (None, VANISHED):
            return True  # it said farewell
        twin = self._twin
        vanished = twin is not None and (twin.boot_id, twin.conn_seq) == (presence.boot_id, presence.conn_seq)
        return vanished and not self._cloned(twin)

    def _body(self, state: str, conn_seq: int, condition: Condition) -> Presence:
        return Presence(
            agent=self._topics.agent,
            state=state,
            boot_id=self._boot_id,
            conn_seq=conn_seq,
            health=condition.health,
            reason="; ".join(condition.reasons) or None,
            session=self._tag,
        )

    def _presence(self, state: str, conn_seq: int, *, reason: str) -> Publication:
        presence = Presence(
            agent=self._topics.agent,
            state=state,
            boot_id=self._boot_id,
            conn_seq=conn_seq,
            reason=reason,
            session=self._tag,
        )
        return self._retained("presence", presence.encode())

    def _retained(self, leaf: str, payload: bytes) -> Publication:
        return Publication(self._topics.event(leaf), payload, qos=1, retain=True)
