"""EdgeClient: how a program sends jobs and follows them to their end, over reconnects and restarts on either side."""

import queue as stdlib_queue
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from pydantic import ValidationError
from pydantic_core import to_json

from edge_agent.errors import Code, EdgeAgentError
from edge_agent.jobs.request import Request
from edge_agent.mqtt.link import Access, Callbacks, Link, Receipt
from edge_agent.mqtt.payloads import Chunk, JobRef, Result, Status
from edge_agent.mqtt.topics import Command, Topics
from edge_agent.mqtt.wire import Inbound, Publication, faults

RESEND_FIRST_S = 5.0
RESEND_MOST_S = 60.0
"""An unanswered job is sent again after 5 s, then after twice as long each time."""
LAST_WORD_S = 10.0
"""How long a job nobody accepted is asked after when its time to live is over: an answer may have been lost."""
UNHEARD_FIRST_S = 0.5
"""The same when the broker said that nobody listens yet."""
ASK_S = 30.0
"""An accepted job nothing was heard of for so long is asked after."""
TICK_S = 0.5
REFUSED = 0x80
NO_SUBSCRIBERS = 0x10
CANCEL_EXPIRY_S = 300
STATUS_EXPIRY_S = 60

Update = Status | Chunk | Result


class JobRejectedError(EdgeAgentError):
    """The agent refused the job; `code` and `message` say why."""


def job_id() -> str:
    """Return a new job id: time-ordered, as UUIDv7 (RFC 9562, section 5.7)."""
    milliseconds = time.time_ns() // 1_000_000
    random_bits = uuid.uuid4().int & ((1 << 74) - 1)
    high = milliseconds << 80 | 7 << 76 | (random_bits >> 62) << 64
    return str(uuid.UUID(int=high | 2 << 62 | random_bits & ((1 << 62) - 1)))


class Handle:
    """A job on its way. Iterate over `updates()`, or wait for `result()`."""

    def __init__(self, agent: str, request: Request, *, payload: bytes, cancel: Callable[["Handle"], None]) -> None:
        self.agent = agent
        self.request = request
        self.payload = payload
        self._cancel = cancel
        self._updates: stdlib_queue.SimpleQueue[Update | None] = stdlib_queue.SimpleQueue()
        self._done = threading.Event()
        self._result: Result | None = None
        self._error: EdgeAgentError | None = None
        self.status: Status | None = None
        """The newest state heard of."""
        self.unheard = False
        """Whether the broker last said that no such agent listens; the job is sent again all the same."""

    @property
    def job_id(self) -> str:
        """The job's id."""
        return self.request.job_id

    @property
    def done(self) -> bool:
        """Whether the job has ended or was refused."""
        return self._done.is_set()

    def updates(self, timeout_s: float | None = None) -> Iterator[Update]:
        """Yield states, text and at last the result, each once, as they come; one reader only.

        A chunk of a higher `attempt` begins the text anew. Raises JobRejectedError, or TimeoutError when nothing came
        for `timeout_s`.
        """
        while True:
            try:
                update = self._updates.get(timeout=timeout_s)
            except stdlib_queue.Empty:
                raise TimeoutError(f"nothing was heard of the job for {timeout_s} s") from None
            if update is None:
                if self._error:
                    raise self._error
                return
            yield update

    def result(self, timeout_s: float | None = None) -> Result:
        """Wait for the result, whatever became of the job. Raises JobRejectedError or TimeoutError."""
        if not self._done.wait(timeout_s):
            raise TimeoutError(f"the job has not ended after {timeout_s} s")
        if self._error:
            raise self._error
        assert self._result is not None  # noqa: S101 - done means one or the other
        return self._result

    def cancel(self) -> None:
        """Ask for the job to end; its result then says `canceled`, unless it ended before."""
        self._cancel(self)

    def _put(self, update: Update) -> None:
        self._updates.put(update)

    def _finish(self, result: Result | None, error: EdgeAgentError | None) -> None:
        self._result, self._error = result, error
        self._done.set()
        self._updates.put(None)


@dataclass(slots=True)
class _Open:
    """What the client knows of an open job. Times are monotonic seconds."""

    handle: Handle
    ends_s: float
    accepted: bool = False
    tries: int = 0
    next_s: float = 0.0
    connection: int = 0
    canceled: bool = False
    state_seq: int = -1
    attempt: int = 0
    chunk_seqs: set[int] = field(default_factory=set)


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


_Note = _Open | _Answered | _Cancel | _Up | Inbound


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
        self._open: dict[tuple[str, str], _Open] = {}
        self._asked: dict[int, _Open] = {}
        """Jobs and questions the broker has not answered, by message id."""
        inbox = f"{Topics(root, '+').inbox_root(self._client)}/#"
        self._link = Link(
            access,
            filters=(inbox,),
            callbacks=Callbacks(
                receive=self._receive,
                up=lambda _epoch: self._notes.put(_Up()),
                answered=lambda mid, reason: self._notes.put(_Answered(mid, reason)),
            ),
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

    def submit(self, agent: str, **request: Any) -> Handle:
        """Send a job; the keywords are the fields of a job request, `job_id` is made when it is absent.

        Returns at once. The job is sent again until it is accepted, refused, or its time to live is over.
        Raises EdgeAgentError BAD_REQUEST when no agent could take it.
        """
        try:
            parsed = Request.model_validate_json(to_json({"job_id": job_id()} | request))
        except ValidationError as error:
            raise EdgeAgentError(Code.BAD_REQUEST, faults(error)) from None
        handle = Handle(
            agent,
            parsed,
            payload=parsed.to_json().encode(),
            cancel=lambda handle: self._notes.put(_Cancel(handle)),
        )
        self._notes.put(_Open(handle, ends_s=self._now_s() + parsed.ttl_s))
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

    def _take(self, note: _Note) -> None:
        match note:
            case _Open(handle):
                self._take_open(handle, note)
            case _Cancel(handle):
                job = self._open.get((handle.agent, handle.job_id))
                if job is not None:
                    job.canceled = True
                    self._send_cancel(job)
            case _Up():
                for job in self._open.values():
                    if job.connection != self._link.connections:
                        job.tries, job.next_s = 0, 0.0
                    if job.canceled:
                        self._send_cancel(job)
            case _Answered(mid, reason):
                self._answered(mid, reason)
            case Inbound():
                self._hear(note)

    def _take_open(self, handle: Handle, job: _Open) -> None:
        """Follow a job; of two handles of one id only one could get the result, so the later is refused."""
        key = handle.agent, handle.job_id
        if key in self._open:
            sentence = "job_id: this client has the job open already; wait for its first handle, or take a new id"
            handle._finish(None, JobRejectedError(Code.DUPLICATE_ID, sentence))  # noqa: SLF001 - handle and client are one
        else:
            self._open[key] = job

    def _chase(self) -> None:
        """Send what was not answered, ask after what fell silent."""
        now_s = self._now_s()
        for job in list(self._open.values()):
            if not job.accepted and now_s >= job.ends_s + LAST_WORD_S:
                sentence = "ttl_s: no agent accepted the job within its time to live"
                self._close(job, error=JobRejectedError(Code.EXPIRED, sentence))
            elif now_s >= job.next_s and self._link.connected:
                self._send(job, now_s)

    def _send(self, job: _Open, now_s: float) -> None:
        """Send a job while nobody accepted it and its time lasts; after that, ask what became of it."""
        job.connection = self._link.connections
        if job.accepted or now_s >= job.ends_s:
            job.next_s = now_s + (ASK_S if job.accepted else RESEND_FIRST_S)
            mid = self._command(job, Command.STATUS, _ref(job), expiry_s=STATUS_EXPIRY_S)
        else:
            job.next_s = now_s + min(RESEND_MOST_S, RESEND_FIRST_S * 2**job.tries)
            left_s = max(1, round(job.ends_s - now_s))
            mid = self._command(job, Command.JOB, job.handle.payload, expiry_s=left_s)
        job.tries += 1
        if mid is not None:
            self._asked[mid] = job

    def _send_cancel(self, job: _Open) -> None:
        if self._link.connected:
            self._command(job, Command.CANCEL, _ref(job), expiry_s=CANCEL_EXPIRY_S)

    def _command(self, job: _Open, command: Command, payload: bytes, *, expiry_s: int) -> int | None:
        topic = Topics(self._root, job.handle.agent).command(command, self._client)
        return self._link.publish(Publication(topic, payload, qos=1, expiry_s=expiry_s))

    def _answered(self, mid: int, reason: int) -> None:
        job = self._asked.pop(mid, None)
        if job is None or job.handle.done:
            return
        job.handle.unheard = reason == NO_SUBSCRIBERS
        if job.handle.unheard:
            job.next_s = self._now_s() + min(RESEND_MOST_S, UNHEARD_FIRST_S * 2**job.tries)
        if reason >= REFUSED:
            sentence = (
                f"the broker refuses jobs of {self._client} for {job.handle.agent} (reason {reason:#x}); mend its ACL"
            )
            self._close(job, error=JobRejectedError(Code.BAD_REQUEST, sentence))

    def _hear(self, inbound: Inbound) -> None:
        levels = inbound.topic.rsplit("/", 3)
        if len(levels) != 4:
            return
        _, agent, name, leaf = levels
        job = self._open.get((agent, name))
        if job is None or job.handle.done:
            return
        job.next_s = self._now_s() + ASK_S
        try:
            match leaf:
                case "status":
                    self._hear_status(job, _read(Status, inbound.payload))
                case "chunk":
                    self._hear_chunk(job, _read(Chunk, inbound.payload))
                case "result":
                    self._hear_result(job, _read(Result, inbound.payload))
        except ValidationError:
            return  # not from an agent we understand; the job is asked after

    def _hear_status(self, job: _Open, status: Status) -> None:
        if status.error and status.error.code is Code.UNKNOWN_JOB:
            job.accepted, job.next_s = False, 0.0
        elif status.state == "rejected":
            error = status.error
            if job.accepted and error and error.code is Code.STORAGE_FULL:
                # The question was refused, not the job, which the agent has: ask again.
                job.next_s = self._now_s() + (error.retry_after_s or ASK_S)
                return
            self._close(
                job,
                error=JobRejectedError(error.code, error.message) if error else JobRejectedError(Code.INTERNAL, ""),
            )
        elif status.state_seq >= job.state_seq:
            job.accepted, job.tries = True, 0
            news = status != job.handle.status
            job.state_seq, job.handle.status = status.state_seq, status
            if news:
                job.handle._put(status)  # noqa: SLF001 - handle and client are one

    def _hear_chunk(self, job: _Open, chunk: Chunk) -> None:
        job.accepted = True
        if chunk.attempt > job.attempt:
            job.attempt = chunk.attempt
            job.chunk_seqs.clear()
        if chunk.attempt == job.attempt and chunk.seq not in job.chunk_seqs:
            job.chunk_seqs.add(chunk.seq)
            job.handle._put(chunk)  # noqa: SLF001

    def _hear_result(self, job: _Open, result: Result) -> None:
        job.handle._put(result)  # noqa: SLF001
        self._close(job, result=result)

    def _close(self, job: _Open, *, result: Result | None = None, error: EdgeAgentError | None = None) -> None:
        del self._open[job.handle.agent, job.handle.job_id]
        job.handle._finish(result, error)  # noqa: SLF001


def _ref(job: _Open) -> bytes:
    return JobRef(job_id=job.handle.job_id).model_dump_json().encode()


def _read(kind: type[Any], payload: bytes) -> Any:
    """Return a payload; fields of newer agents are passed over."""
    return kind.model_validate_json(payload, extra="ignore")
