"""What is published on watched topics, from raw message to committed job.

Watching has a connection of its own, so that photos never stand in the way of jobs, cancels and keepalives, and so
that what is not stored yet is bounded apart. Its thread judges each message; the store's thread makes room for the
newest and commits; then the message is acknowledged.
"""

import hashlib
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from edge_agent.base.errors import Code, EdgeAgentError
from edge_agent.base.log import get_logger
from edge_agent.images.spool import Holder, Spool
from edge_agent.jobs.database import StorageError
from edge_agent.jobs.ids import watch_client, watch_of
from edge_agent.jobs.job import TERMINAL, Destination, Job, JobState
from edge_agent.jobs.queue import Envelope, Queue
from edge_agent.jobs.request import Attached, Request
from edge_agent.jobs.store import Operation, Store
from edge_agent.mqtt.link import Receipt
from edge_agent.mqtt.subscriptions import Subscription
from edge_agent.protocol.filters import apart, intersect
from edge_agent.protocol.messages import TRACEPARENT_BYTES_MAX, Inbound, hops
from edge_agent.protocol.payloads import WatchReading
from edge_agent.watch.decide import HOPS_MAX, WANTED, Drop, Memory, Reason, Rule, Take, decide
from edge_agent.watch.decode import decode_seen
from edge_agent.watch.template import Seen

SESSION_S = 300
"""How long the broker keeps messages of QoS 1 for us while we are away. Photos are large, and old ones of no use."""
RECEIVE_MAX = 4
"""Unacknowledged messages of QoS 1 the broker may send: with the largest message the bound on what we hold of them."""
UNSTORED_MAX = 256
"""Messages that may wait for the store; those of QoS 0 beyond it are dropped. Their bytes are bounded by the link."""

log = get_logger()


def subscriptions(rules: Sequence[Rule]) -> tuple[Subscription, ...]:
    """Return what to subscribe to, so that every message a rule takes comes once."""
    wanted = [(topic, rule.section) for rule in rules for topic in rule.section.topics]
    found = []
    for topic in apart(topic for topic, _ in wanted):
        sections = [section for own, section in wanted if intersect(own, topic)]
        found.append(
            Subscription(
                topic,
                qos=max(section.qos for section in sections),
                retained="new" if any(section.retained == "once" for section in sections) else "never",
                as_published=False,
            )
        )
    return tuple(found)


def session(wanted: Sequence[Subscription]) -> str:
    """Return what the session of the watching connection is called.

    Other filters make another session: what an earlier one subscribed to ends with it, and nothing of it comes here.
    """
    return f"watch-{hashlib.sha256(repr(sorted(each.topic for each in wanted)).encode()).hexdigest()[:8]}"


@dataclass(frozen=True, slots=True)
class _Order:
    """A job to store for a rule."""

    rule: Rule
    topic: str
    request: Request
    envelope: Envelope
    image: bytes | None


_Outcome = list[tuple[_Order, Job | EdgeAgentError]]


class Watcher:
    """Makes jobs of messages.

    `receive` runs on the watching connection's thread, and acknowledges every message once; `told` on the store's;
    `readings` on any. `admit` returns the model that shall run a request or raises EdgeAgentError; `now_s` is a
    monotonic clock; `job_id` makes new ids.
    """

    def __init__(
        self,
        rules: Sequence[Rule],
        *,
        store: Store,
        spool: Spool,
        admit: Callable[[Queue, Request], str],
        ack: Callable[[Receipt], None],
        now_s: Callable[[], float],
        job_id: Callable[[], str],
    ) -> None:
        self._rules = rules
        self._store = store
        self._spool = spool
        self._admit = admit
        self._ack = ack
        self._now_s = now_s
        self._job_id = job_id
        self._lock = threading.Lock()
        self._memories = {rule.name: Memory() for rule in rules}
        self._counts: dict[str, Counter[str]] = {watch_client(rule.name): Counter() for rule in rules}
        self._dropped: dict[str, Counter[str]] = {rule.name: Counter() for rule in rules}

    def receive(self, inbound: Inbound, receipt: Receipt) -> None:
        """Judge a message and line up its jobs."""
        concerned = [rule for rule in self._rules if rule.takes(inbound.topic)]
        if inbound.qos == 0 and self._store.waiting > UNSTORED_MAX:
            for rule in concerned:
                self._drop(rule, Drop(Reason.BEHIND))
            self._ack(receipt)
            return
        if hops(inbound) >= HOPS_MAX:
            for rule in concerned:
                self._drop(rule, Drop(Reason.HOPS))
            concerned = []
        seen = decode_seen(inbound) if concerned else Seen(inbound.topic)
        orders = [order for rule in concerned if (order := self._judge(rule, seen, inbound))]
        # Also without orders: acknowledged in its turn, as MQTT 5 wants it.
        self._store.put(
            Operation(
                act=partial(self._take, orders=orders),
                then=partial(self._taken, receipt),
                refuse=partial(self._refused, orders, receipt),
            )
        )

    def told(self, changes: Sequence[Job]) -> None:
        """Count the ends of watches' jobs."""
        ended = {JobState.SUCCEEDED: "answered", JobState.CANCELED: "superseded"}
        for job in changes:
            if not job.watched or job.state not in TERMINAL or job.client not in self._counts:
                continue
            how = ended.get(job.state, "failed")
            with self._lock:
                self._counts[job.client][how] += 1
                count = self._counts[job.client][how]
            error = job.error
            if how == "failed" and error is not None and _seldom(count):
                log.warning(
                    "watch.failed", watch=watch_of(job.client), code=error.code, reason=error.message, count=count
                )

    def readings(self) -> tuple[WatchReading, ...]:
        """Return what every rule did since the start."""
        with self._lock:
            return tuple(
                WatchReading(
                    watch=rule.name,
                    **{name: self._counts[watch_client(rule.name)][name] for name in _COUNTED},
                    dropped=dict(self._dropped[rule.name]),
                )
                for rule in self._rules
            )

    def _judge(self, rule: Rule, seen: Seen, inbound: Inbound) -> _Order | None:
        """Return the job a message makes by a rule, or None; either is counted, and remembered."""
        memory = self._memories[rule.name]
        with self._lock:
            now_s = self._now_s()
            decision = decide(rule, seen, memory, retained=inbound.retained, now_s=now_s)
            memory.note(rule, seen, decision, now_s)
        if isinstance(decision, Drop):
            self._drop(rule, decision)
            return None
        return self._order(rule, decision, inbound)

    def _order(self, rule: Rule, take: Take, inbound: Inbound) -> _Order:
        section = rule.section
        image = None if take.image is None else hashlib.sha256(take.image).hexdigest()
        destination = Destination(
            topic=take.answer_topic,
            qos=section.answer_qos,
            retain=section.answer_retain,
            format=section.answer_format,
            hops=hops(inbound) + 1,
        )
        traced = inbound.traceparent is not None and len(inbound.traceparent.encode()) <= TRACEPARENT_BYTES_MAX
        return _Order(
            rule,
            inbound.topic,
            rule.request(take, job_id=self._job_id(), image_sha256=image),
            Envelope(
                watch_client(rule.name),
                section.ttl_s if inbound.expiry_s is None else min(section.ttl_s, inbound.expiry_s),
                traceparent=inbound.traceparent if traced else None,
                source=inbound.topic,
                answer=destination,
            ),
            take.image,
        )

    # On the store's thread

    def _take(self, queue: Queue, *, orders: Sequence[_Order]) -> _Outcome:
        """Store the jobs there is room for, each in the place of older ones."""
        outcome: _Outcome = []
        for order in orders:
            try:
                outcome.append((order, self._accept(queue, order)))
            except EdgeAgentError as error:
                outcome.append((order, error))
        return outcome

    def _accept(self, queue: Queue, order: _Order) -> Job:
        """Store a job in the place of older ones, whose room is its own. Raises EdgeAgentError; they stay then."""
        section, client = order.rule.section, order.envelope.client
        with queue.attempt():
            superseded = queue.supersede(client, order.topic, keep=section.pending - 1)
            crowded = queue.supersede(client, None, keep=section.waiting_jobs - 1)
            model = self._admit(queue, order.request)
            if queue.kept.full(client):
                raise EdgeAgentError(Code.QUOTA_EXCEEDED, "the broker has not taken this rule's answers yet")
            here = {}
            if order.image is not None:
                holder = Holder(client, queue.images.held(client), "payload", section.waiting_bytes)
                here[self._spool.add(order.image, holder)] = True
            job = queue.accept(order.request, order.envelope, model=model, attached=Attached(order.request, here))
        for _ in range(crowded):
            self._drop(order.rule, Drop(Reason.RULE_FULL))
        if (superseded or crowded) and here:
            self._store.do(lambda queue: self._spool.sweep(*queue.images.needed()))
        return job

    def _taken(self, receipt: Receipt, outcome: _Outcome | EdgeAgentError) -> None:
        assert not isinstance(outcome, EdgeAgentError)  # noqa: S101 - `_take` raises none
        for order, each in outcome:
            if isinstance(each, EdgeAgentError):
                self._give_up(order, each.code)
                continue
            with self._lock:
                self._counts[each.client]["taken"] += 1
        self._ack(receipt)

    def _refused(self, orders: Sequence[_Order], receipt: Receipt, _error: StorageError) -> None:
        """Let a message go when the disk takes nothing: the next one is as good."""
        for order in orders:
            self._give_up(order, Code.STORAGE_FULL)
        self._ack(receipt)

    def _give_up(self, order: _Order, code: Code) -> None:
        with self._lock:
            self._memories[order.rule.name].forget(order.rule, order.topic)
        self._drop(order.rule, code)

    def _drop(self, rule: Rule, why: Drop | Code) -> None:
        """Count a message that made no job; say so of the first, the second, the fourth … that nobody asked for."""
        reason, lacking = (why.reason, why.field) if isinstance(why, Drop) else (why, None)
        with self._lock:
            self._dropped[rule.name][reason] += 1
            count = self._dropped[rule.name][reason]
        if reason not in WANTED and _seldom(count):
            log.warning("watch.dropped", watch=rule.name, reason=reason, field=lacking, count=count)


def _seldom(count: int) -> bool:
    """Return whether this is the first, the second, the fourth …: what goes on happening is not said every time."""
    return count & (count - 1) == 0


_COUNTED = ("taken", "answered", "failed", "superseded")
