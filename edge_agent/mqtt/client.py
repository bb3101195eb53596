"""EdgeClient: how a program sends jobs and follows them to their end, over reconnects and restarts on either side."""

import queue as stdlib_queue
import threading
import time
import uuid
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pydantic import ValidationError
from pydantic_core import to_json

from edge_agent.errors import Code, EdgeAgentError
from edge_agent.jobs.job import TERMINAL
from edge_agent.jobs.request import Request
from edge_agent.mqtt import pictures
from edge_agent.mqtt.access import Access
from edge_agent.mqtt.handle import Handle, JobRejectedError
from edge_agent.mqtt.hearing import hear
from edge_agent.mqtt.link import Callbacks, Link, Receipt, Subscription
from edge_agent.mqtt.order_book import OrderBook, OrderHandle
from edge_agent.mqtt.payloads import (
    Chunk,
    JobRef,
    ModelOrder,
    OrderResult,
    OrderStatus,
    Presence,
    Result,
    Status,
)
from edge_agent.mqtt.tap import Tap
from edge_agent.mqtt.topics import Command, Topics
from edge_agent.mqtt.wire import Inbound, Publication, faults

RESEND_FIRST_S = 5.0
RESEND_MOST_S = 60.0
"""An unanswered job is sent again after 5 s, then after twice as long each time."""
POOL_RESEND_MOST_S = 20.0
"""The same for a pool: some brokers drop without a word what no agent took."""
LAST_WORD_S = 10.0
"""How long a job nobody accepted is asked after when its time to live is over: an answer may have been lost."""
UNHEARD_FIRST_S = 0.5
"""The same when the broker said that nobody listens yet."""
ASK_S = 30.0
"""An accepted job nothing was heard of for so long is asked after."""
ASKS_MOST = 3
"""An agent of a pool that is asked so often in vain, every 5 s, is as good as offline: its will may be lost."""
CANCEL_GRACE_S = 2.0
"""How long a canceled job of a pool may still be accepted by an agent it was on its way to."""
CLOSED_MOST = 10_000
"""Ended jobs of pools that are remembered, to tell agents that still have them."""
TICK_S = 0.5
REFUSED = 0x80
NO_SUBSCRIBERS = 0x10
CANCEL_EXPIRY_S = 300
STATUS_EXPIRY_S = 60


def job_id() -> str:
    """Return a new job id: time-ordered, as UUIDv7 (RFC 9562, section 5.7)."""
    milliseconds = time.time_ns() // 1_000_000
    random_bits = uuid.uuid4().int & ((1 << 74) - 1)
    high = milliseconds << 80 | 7 << 76 | (random_bits >> 62) << 64
    return str(uuid.UUID(int=high | 2 << 62 | random_bits & ((1 << 62) - 1)))


@dataclass(slots=True)
class _Open:
    """What the client knows of an open job. Times are monotonic seconds.

    Of a job of a pool: `agent` is the one that is followed, None while nobody has accepted it; `holders` are all that
    have, `dismissed` those that were told to drop it because another was first; `refusal` is why it was last refused.
    `uploading` are parts of its images that the broker has not answered.
    """

    handle: Handle
    ends_s: float
    agent: str | None
    accepted: bool = False
    tries: int = 0
    next_s: float = 0.0
    connection: int = 0
    canceled_s: float | None = None
    state_seq: int = -1
    attempt: int = 0
    chunk_seqs: set[int] = field(default_factory=set)
    holders: set[str] = field(default_factory=set)
    dismissed: set[str] = field(default_factory=set)
    refusal: JobRejectedError | None = None
    uploading: set[int] = field(default_factory=set)

    @property
    def key(self) -> tuple[str | None, str]:
        """What tells open jobs apart: the agent and the id, of a pool the id alone."""
        return (None if self.handle.pool else self.handle.agent, self.handle.job_id)

    @property
    def offered(self) -> bool:
        """Whether it is a pool's, and nobody's yet."""
        return self.agent is None

    def follow(self, agent: str) -> None:
        """Believe this agent from now on."""
        self.agent = self.handle.agent = agent
        self.accepted, self.state_seq, self.attempt = True, -1, 0
        self.chunk_seqs.clear()

    def lose(self, next_s: float) -> None:
        """Offer the job again: nobody has it, as far as we know."""
        if self.handle.pool:
            self.agent = self.handle.agent = None
        self.accepted, self.tries, self.next_s = False, 0, next_s


@dataclass(frozen=True, slots=True)
class _Answered:
    mid: int
    reason: int


@dataclass(frozen=True, slots=True)
class _Cancel:
    handle: Handle


@dataclass(frozen=True, slots=True)
class _Up:
    """The connection is there."""


_Note = _Open | OrderHandle | _Answered | _Cancel | _Up | Inbound


class EdgeClient:
    """A requester. One client may have many jobs open with many agents; use it as a context manager.

    `name` is the requester's name in topics, the client id of `access` when absent; a broker with an ACL wants it to be
    the user name. With `access.session_expiry_s` the broker keeps what comes while the connection is down.
    """

    def __init__(
        self,
        access: Access,
        *,
        name: str | None = None,
        root: str = "edge/v1",
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = name or access.client_id
        self._root = root
        self._now_s = now_s
        self._notes: stdlib_queue.SimpleQueue[_Note | None] = stdlib_queue.SimpleQueue()
        self._open: dict[tuple[str | None, str], _Open] = {}
        self._taps: defaultdict[str, Tap] = defaultdict(Tap)
        self._closed: OrderedDict[str, None] = OrderedDict()
        self._born: dict[str, Presence] = {}
        self._asked: dict[int, _Open] = {}
        """Jobs and questions the broker has not answered, by message id."""
        inbox = f"{Topics(root, '+').inbox_root(self._client)}/#"
        self._link = Link(
            access,
            subscriptions=(Subscription(inbox),),
            callbacks=Callbacks(
                receive=self._receive,
                up=lambda _epoch: self._notes.put(_Up()),
                answered=lambda mid, reason: self._notes.put(_Answered(mid, reason)),
            ),
        )
        self._orders = OrderBook(
            self._client,
            topics=lambda agent: Topics(root, agent),
            publish=self._link.publish,
            now_s=now_s,
        )
        self._thread = threading.Thread(target=self._run, name="edge-client", daemon=True)

    def __enter__(self) -> Self:
        self._link.start()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._notes.put(None)
        self._thread.join()
        self._link.stop()

    def wait_connected(self, timeout_s: float) -> bool:
        """Wait for the broker; return whether it is there."""
        return self._link.wait_connected(timeout_s)

    @property
    def trouble(self) -> str | None:
        """Why there is no connection and what mends it, in a sentence; None while there is one."""
        return None if self._link.trouble is None else str(self._link.trouble)

    def submit(
        self,
        agent: str | None = None,
        *,
        pool: str | None = None,
        images: Sequence[bytes | str | Path] = (),
        **request: Any,
    ) -> Handle:
        """Send a job to an agent or to a pool, to be done by one of its agents.

        The keywords are the fields of a job request, `job_id` is made when it is absent. Returns at once. The job is
        sent again until it is accepted, refused, or its time to live is over; to a pool also when the agent that
        accepted it is gone. `images`, bytes or paths, are added to the last message: inside it while that fits, else
        uploaded when the agent asks for them. Raises EdgeAgentError BAD_REQUEST when no agent could take it, OSError
        when an image cannot be read.
        """
        if (agent is None) == (pool is None):
            raise EdgeAgentError(Code.BAD_REQUEST, "agent: give either an agent or a pool, and one of them")
        try:
            contents = [pictures.read(image) for image in images]
            fields, uploads = pictures.attach(request, contents, packet_bytes_max=self._link.packet_bytes_max)
            parsed = Request.model_validate_json(to_json({"job_id": job_id()} | fields))
        except ValidationError as error:
            raise EdgeAgentError(Code.BAD_REQUEST, faults(error)) from None
        handle = Handle(
            agent=agent,
            pool=pool,
            request=parsed,
            payload=parsed.to_json().encode(),
            cancel=lambda handle: self._notes.put(_Cancel(handle)),
            uploads=uploads,
        )
        self._notes.put(_Open(handle, ends_s=self._now_s() + parsed.ttl_s, agent=agent))
        return handle

    def admin(
        self, agent: str, op: str, model: str, *, op_id: str | None = None, pinned: bool | None = None
    ) -> OrderHandle:
        """Order an agent to `load`, `unload`, `pull`, `pin` or `unpin` a model; returns at once.

        Raises EdgeAgentError BAD_REQUEST when no agent could take the order.
        """
        fields = {"op_id": op_id or job_id(), "op": op, "model": model, "pinned": pinned}
        try:
            order = ModelOrder.model_validate_json(to_json(fields))
        except ValidationError as error:
            raise EdgeAgentError(Code.BAD_REQUEST, faults(error)) from None
        handle = OrderHandle(agent, order)
        self._notes.put(handle)
        return handle

    # The client's thread

    def _receive(self, inbound: Inbound, receipt: Receipt) -> None:
        self._notes.put(inbound)
        self._link.ack(receipt)

    def _run(self) -> None:
        while True:
            try:
                note = self._notes.get(timeout=TICK_S)
            except stdlib_queue.Empty:
                pass
            else:
                if note is None:
                    return
                self._take(note)
            self._chase()
            if self._link.connected:
                self._orders.chase()
            self._link.attend()

    def _take(self, note: _Note) -> None:
        match note:
            case _Open(handle):
                self._take_open(handle, note)
            case OrderHandle():
                self._orders.add(note)
            case _Cancel(handle):
                self._cancel(handle)
            case _Up():
                self._resume()
            case _Answered(mid, reason):
                self._answered(mid, reason)
                self._orders.answered(mid, reason)
            case Inbound():
                self._hear(note)

    def _cancel(self, handle: Handle) -> None:
        job = self._open.get((None if handle.pool else handle.agent, handle.job_id))
        if job is not None:
            job.canceled_s = self._now_s()
            self._send_cancel(job)

    def _resume(self) -> None:
        """Ask after what was sent over the connection before this one."""
        for job in self._open.values():
            if job.connection != self._link.connections and not job.offered:
                job.tries, job.next_s = 0, 0.0  # what was offered to a pool may be accepted: hear that first
            if job.canceled_s is not None:
                self._send_cancel(job)

    def _take_open(self, handle: Handle, job: _Open) -> None:
        """Follow a job; of two handles of one id only one could get the result, so the later is refused."""
        if job.key in self._open:
            sentence = "job_id: this client has the job open already; wait for its first handle, or take a new id"
            handle.finish(None, JobRejectedError(Code.DUPLICATE_ID, sentence))
        else:
            self._open[job.key] = job

    def _chase(self) -> None:
        """Send what was not answered, ask after what fell silent."""
        now_s, shut = self._now_s(), set[str]()
        for job in sorted(self._open.values(), key=lambda job: -job.handle.request.priority):
            if not job.accepted and now_s >= job.ends_s + LAST_WORD_S:
                sentence = "ttl_s: no agent accepted the job within its time to live"
                self._close(job, error=job.refusal or JobRejectedError(Code.EXPIRED, sentence))
            elif job.agent is None and job.canceled_s is not None:
                if now_s >= job.canceled_s + (CANCEL_GRACE_S if job.connection else 0.0):
                    sentence = "canceled before any agent of the pool had accepted it"
                    self._close(job, error=JobRejectedError(Code.CANCELED, sentence))
            elif now_s >= job.next_s and self._link.connected and not (job.offered and job.handle.pool in shut):
                self._send(job, now_s, shut)

    def _send(self, job: _Open, now_s: float, shut: set[str]) -> None:
        """Send a job while nobody accepted it and its time lasts; after that, ask what became of it.

        A pool that takes no more for now is added to `shut`.
        """
        if job.handle.pool is not None and job.accepted and job.tries >= ASKS_MOST:
            job.lose(now_s)
        if job.offered:
            self._offer(job, now_s, shut)
            return
        if job.accepted or now_s >= job.ends_s:
            job.next_s = now_s + (ASK_S if job.accepted and job.handle.pool is None else RESEND_FIRST_S)
            self._ask(job, Command.STATUS, _ref(job), expiry_s=STATUS_EXPIRY_S)
        else:
            job.next_s = now_s + min(RESEND_MOST_S, RESEND_FIRST_S * 2**job.tries)
            self._ask(job, Command.JOB, job.handle.payload, expiry_s=_left_s(job, now_s))

    def _offer(self, job: _Open, now_s: float, shut: set[str]) -> None:
        """Send a job to its pool, if that takes any now."""
        pool = job.handle.pool or ""
        if now_s >= job.ends_s:
            return  # an agent may have accepted it whose answer is still to come
        if not self._taps[pool].open(now_s):
            shut.add(pool)
            return
        job.next_s = now_s + min(POOL_RESEND_MOST_S, RESEND_FIRST_S * 2**job.tries)
        self._taps[pool].sent(job.handle.job_id, now_s)
        self._ask(job, Command.JOB, job.handle.payload, expiry_s=_left_s(job, now_s))

    def _send_cancel(self, job: _Open) -> None:
        """Tell the agent; of a pool all of them, for the job may be on its way to any."""
        if not self._link.connected:
            return
        topics = Topics(self._root, job.agent or "")
        if job.handle.pool is not None:
            topic = topics.pool_command(job.handle.pool, Command.CANCEL, self._client)
        else:
            topic = topics.command(Command.CANCEL, self._client)
        self._link.publish(Publication(topic, _ref(job), qos=1, expiry_s=CANCEL_EXPIRY_S))

    def _dismiss(self, agent: str, name: str) -> None:
        """Tell one agent of a pool that another has the job, or had it."""
        topic = Topics(self._root, agent).command(Command.CANCEL, self._client)
        payload = JobRef(job_id=name).model_dump_json().encode()
        self._link.publish(Publication(topic, payload, qos=1, expiry_s=CANCEL_EXPIRY_S))

    def _ask(self, job: _Open, command: Command, payload: bytes, *, expiry_s: int) -> None:
        """Publish something whose answer by the broker matters."""
        topics = Topics(self._root, job.agent or "")
        if job.offered:
            topic = topics.pool_command(job.handle.pool or "", command, self._client)
        else:
            topic = topics.command(command, self._client)
        job.connection = self._link.connections
        job.tries += 1
        mid = self._link.publish(Publication(topic, payload, qos=1, expiry_s=expiry_s))
        if mid is not None:
            self._asked[mid] = job

    def _answered(self, mid: int, reason: int) -> None:
        job = self._asked.pop(mid, None)
        if job is None or job.handle.done:
            return
        uploaded = mid in job.uploading
        job.uploading.discard(mid)
        if uploaded and reason < REFUSED:
            return
        job.handle.unheard = reason == NO_SUBSCRIBERS
        if job.handle.unheard:
            self._unheard(job, self._now_s())
        if reason >= REFUSED:
            to = job.handle.pool or job.handle.agent
            sentence = f"the broker refuses jobs of {self._client} for {to} (reason {reason:#x}); mend its ACL"
            self._close(job, error=JobRejectedError(Code.BAD_REQUEST, sentence))

    def _unheard(self, job: _Open, now_s: float) -> None:
        """Try again what nobody heard; an agent of a pool may still be on its way back after the broker was."""
        if job.offered:
            job.tries, job.next_s = 0, now_s
            self._taps[job.handle.pool or ""].full(job.handle.job_id, now_s)
        else:
            job.next_s = now_s + min(RESEND_MOST_S, UNHEARD_FIRST_S * 2**job.tries)

    def _hear(self, inbound: Inbound) -> None:
        levels = inbound.topic.rsplit("/", 3)
        if len(levels) != 4:
            return
        _, agent, name, leaf = levels
        try:
            if leaf == "presence":
                self._hear_presence(agent, hear(Presence, inbound.payload, agent))
                return
            if self._orders.owns(agent, name):
                kind: type[OrderResult | OrderStatus] = OrderResult if leaf == "result" else OrderStatus
                self._orders.hear(agent, name, hear(kind, inbound.payload, agent))
                return
            job = self._open.get((agent, name)) or self._open.get((None, name))
            if job is None:
                if leaf == "status" and name in self._closed:
                    self._hear_late(agent, hear(Status, inbound.payload, agent))
                return
            match leaf:
                case "status":
                    self._hear_status(job, hear(Status, inbound.payload, agent))
                case "chunk":
                    self._hear_chunk(job, hear(Chunk, inbound.payload, agent))
                case "result":
                    self._hear_result(job, hear(Result, inbound.payload, agent))
        except ValueError:
            return  # not from an agent we understand; the job is asked after

    def _hear_presence(self, agent: str, presence: Presence) -> None:
        """Offer the jobs of an agent that is gone again; its last word counts only when it is of its last birth."""
        if presence.state == "online":
            self._born[agent] = presence
            return
        born = self._born.get(agent)
        if born is None or (born.boot_id, born.conn_seq) == (presence.boot_id, presence.conn_seq):
            for job in self._open.values():
                if job.handle.pool is not None and job.agent == agent:
                    job.lose(self._now_s())

    def _hear_late(self, agent: str, status: Status) -> None:
        """Spare an agent the work on a job of a pool that another has done."""
        if status.state != "rejected" and status.state not in TERMINAL:
            self._dismiss(agent, status.job_id)

    def _hear_status(self, job: _Open, status: Status) -> None:
        if status.state == "rejected":
            self._hear_refusal(job, status)
            return
        if job.handle.pool is not None and not self._settle(job, status):
            return
        job.next_s = self._now_s() + ASK_S
        if status.missing:
            self._upload(job, status.missing)
        if status.state_seq >= job.state_seq:
            job.accepted, job.tries = True, 0
            news = status != job.handle.status
            job.state_seq, job.handle.status = status.state_seq, status
            if news:
                job.handle.put(status)

    def _upload(self, job: _Open, missing: Sequence[str]) -> None:
        """Send the images an agent asks for, unless some are on their way: it asks again for what gets lost."""
        if job.uploading:
            return
        topic = Topics(self._root, job.agent or "").command(Command.IMAGE, self._client)
        expiry_s = _left_s(job, self._now_s())
        bound = self._link.packet_bytes_max
        for sha256 in set(missing) & job.handle.uploads.keys():
            for user, piece in pictures.parts(job.handle.uploads[sha256], packet_bytes_max=bound):
                mid = self._link.publish(Publication(topic, piece, qos=1, expiry_s=expiry_s, user=user))
                if mid is not None:
                    job.uploading.add(mid)
                    self._asked[mid] = job

    def _settle(self, job: _Open, status: Status) -> bool:
        """Return whether this agent of the pool is the one to follow: the first that accepts; later ones drop it."""
        agent, ended = status.agent, status.state in TERMINAL
        if job.agent is None and not (ended and agent in job.dismissed):
            job.follow(agent)
            self._taps[job.handle.pool or ""].taken(job.handle.job_id)
            self._link.subscribe(Topics(self._root, agent).event("presence"))
        if agent == job.agent:
            job.holders.add(agent)
            if status.state != "queued" and status.state_seq > job.state_seq:
                self._taps[job.handle.pool or ""].stir(self._now_s())
            return True
        if not ended:
            job.dismissed.add(agent)
            self._dismiss(agent, job.handle.job_id)
        return False

    def _hear_refusal(self, job: _Open, status: Status) -> None:
        error = status.error
        refusal = JobRejectedError(error.code, error.message) if error else JobRejectedError(Code.INTERNAL, "")
        now_s = self._now_s()
        if job.handle.pool is not None and status.agent != job.agent and job.agent is not None:
            job.holders.discard(status.agent)  # one we did not follow anyway
        elif refusal.code is Code.UNKNOWN_JOB:
            job.lose(now_s)
        elif job.accepted and refusal.code is Code.STORAGE_FULL:
            # The question was refused, not the job, which the agent has: ask again.
            job.next_s = now_s + ((error and error.retry_after_s) or ASK_S)
        elif job.handle.pool is not None and error is not None and error.retryable:
            self._offer_again(job, refusal, now_s)
        else:
            self._close(job, error=refusal)

    def _offer_again(self, job: _Open, refusal: JobRejectedError, now_s: float) -> None:
        """Give a job back to the pool that this agent cannot do, or has not begun; another one may."""
        tries, tap = job.tries, self._taps[job.handle.pool or ""]
        if refusal.code is Code.QUEUE_FULL:
            tap.full(job.handle.job_id, now_s)
            job.lose(now_s)
        else:
            tap.taken(job.handle.job_id)
            job.lose(now_s if job.accepted else job.next_s)
            job.tries = tries
            job.refusal = refusal

    def _hear_chunk(self, job: _Open, chunk: Chunk) -> None:
        if job.agent != chunk.agent:
            return
        job.accepted, job.tries, job.next_s = True, 0, self._now_s() + ASK_S
        if chunk.attempt > job.attempt:
            job.attempt = chunk.attempt
            job.chunk_seqs.clear()
        if chunk.attempt == job.attempt and chunk.seq not in job.chunk_seqs:
            job.chunk_seqs.add(chunk.seq)
            job.handle.put(chunk)

    def _hear_result(self, job: _Open, result: Result) -> None:
        """Take the result; of several agents of a pool the first success, or what the followed one says."""
        if job.handle.pool is not None:
            job.holders.discard(result.agent)
            follows = result.agent == job.agent or (job.agent is None and result.agent not in job.dismissed)
            if result.state != "succeeded" and not follows:
                return
            job.handle.agent = result.agent
        job.handle.put(result)
        self._close(job, result=result)

    def _close(self, job: _Open, *, result: Result | None = None, error: EdgeAgentError | None = None) -> None:
        del self._open[job.key]
        if job.handle.pool is not None:
            self._taps[job.handle.pool].forget(job.handle.job_id)
            for agent in job.holders:
                self._dismiss(agent, job.handle.job_id)
            self._closed[job.handle.job_id] = None
            if len(self._closed) > CLOSED_MOST:
                self._closed.popitem(last=False)
        job.handle.finish(result, error)


def _left_s(job: _Open, now_s: float) -> int:
    return max(1, round(job.ends_s - now_s))


def _ref(job: _Open) -> bytes:
    return JobRef(job_id=job.handle.job_id).model_dump_json().encode()
