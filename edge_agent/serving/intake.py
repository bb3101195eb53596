"""What requesters ask, from raw message to committed row: parsed and stored by the store's thread, acknowledged after.

A message that cannot be taken is answered with a code and a sentence, then acknowledged. None is ever lost silently
but those whose author stands in no valid topic: there is nobody to answer.
"""

from collections.abc import Callable
from functools import partial
from typing import TypeVar

from edge_agent.base.errors import Code, EdgeAgentError
from edge_agent.base.signal import Signal
from edge_agent.engine.hosting.engines import Engines
from edge_agent.images.attachments import attach
from edge_agent.images.spool import PART_BYTES, Holder, Spool
from edge_agent.jobs.backlog import Backlog
from edge_agent.jobs.database import StorageError
from edge_agent.jobs.job import TERMINAL, Failure, Job, JobState
from edge_agent.jobs.pace import Pace
from edge_agent.jobs.queue import Envelope, Queue
from edge_agent.jobs.request import Attached, Request
from edge_agent.jobs.store import Operation, Store
from edge_agent.protocol.decode import printable
from edge_agent.protocol.encode import Speech
from edge_agent.protocol.messages import (
    UNREADABLE,
    Inbound,
    check_properties,
    decode_image,
    decode_ref,
    decode_request,
    loggable,
    readable_job_id,
)
from edge_agent.protocol.topics import CLIENT, MISNAMED, Asked, Command, Topics, answerable
from edge_agent.serving.outbox import Outbox
from edge_agent.serving.strangers import Strangers
from edge_agent.settings.load import ImagesSection, QueueSection, RequestersSection

UNCONFIRMED_MAX = 512
"""Messages that may wait to be stored. QoS 1 ones are bounded by the link; QoS 0 ones end here."""
RETRY_AFTER_DEFAULT_S = 10.0
"""What a full queue tells a requester before any job was measured."""
RETRY_AFTER_LEAST_S = 1.0
"""Sooner nobody needs to come back, however fast jobs are: many are told the same."""

T = TypeVar("T")

_Afterwards = Callable[[], None]
"""What to do once a message is stored; nothing is said, and nobody told, before it is true."""

_UNKNOWN_YET = EdgeAgentError(
    Code.UNKNOWN_JOB, "job_id: this agent has no such job of yours; should it still come, it ends canceled at once"
)


def _nothing() -> None:
    pass


class Intake:
    """Takes in jobs, cancels and questions. `receive` may be called from the network thread.

    `on_cancel`: a running job is to end. `on_rejected`: something was refused. `proven` tells whether a client's
    request of a model needs no trial of its guide.
    """

    def __init__(
        self,
        *,
        topics: Topics,
        strangers: Strangers,
        speech: Speech,
        settings: QueueSection,
        images: ImagesSection,
        spool: Spool,
        requesters: RequestersSection,
        store: Store,
        outbox: Outbox,
        engines: Engines,
        pace: Pace,
        free_bytes: Callable[[], int],
        pool_full: Callable[[], bool] = lambda: False,
        proven: Callable[[str, Request, str], bool] = lambda _model, _request, _client: False,
    ) -> None:
        self._topics = topics
        self._strangers = strangers
        self._speech = speech
        self._settings = settings
        self._images = images
        self._spool = spool
        self._store = store
        self._requesters = requesters
        self._outbox = outbox
        self._engines = engines
        self._pace = pace
        self.on_cancel: Signal[Job] = Signal()
        self._free_bytes = free_bytes
        self.on_rejected: Signal[Code] = Signal()
        self._pool_full = pool_full
        self._proven = proven

    def receive(self, inbound: Inbound, acknowledge: Callable[[], None]) -> None:
        """Line a message up to be taken in and then acknowledged; returns at once."""
        if inbound.qos == 0 and self._store.waiting > UNCONFIRMED_MAX:
            acknowledge()
            return
        self._store.put(
            Operation(
                act=partial(self._take, inbound=inbound),
                then=partial(self._confirm, inbound, acknowledge),
                refuse=partial(self._refuse, inbound, acknowledge),
            )
        )

    # On the store's thread

    def _take(self, queue: Queue, *, inbound: Inbound) -> _Afterwards:
        """Do what a message asks; return what to do once that is durable.

        Raises EdgeAgentError before anything has changed.
        """
        asked = self._asked(inbound)
        if asked is None:
            self._strangers.note(inbound.topic, f"the topic is no command; it ends in cmd/COMMAND/NAME; {MISNAMED}")
            return _nothing
        if not CLIENT.match(asked.client):
            raise EdgeAgentError(Code.BAD_REQUEST, MISNAMED)
        check_properties(inbound, inbox=self._topics.inbox_root(asked.client))
        if self._requesters.allow and asked.client not in self._requesters.allow:
            raise EdgeAgentError(Code.NOT_ALLOWED, "this agent works for named requesters only, and you are none")
        match asked.command:
            case Command.JOB:
                return self._take_job(queue, inbound, asked)
            case Command.CANCEL:
                return self._take_cancel(queue, inbound, asked)
            case Command.STATUS:
                return self._take_status(queue, inbound, asked.client)
            case Command.IMAGE:
                return self._take_image(queue, inbound, asked.client)
            case _:
                raise EdgeAgentError(
                    Code.UNSUPPORTED, "the topic names no command this agent knows: job, cancel, status, image"
                )

    def _asked(self, inbound: Inbound) -> Asked | None:
        """Return what a message asks of us; None when nobody could be answered."""
        asked = self._topics.parse(inbound.topic)
        return asked if asked is not None and answerable(asked.client) else None

    def _take_job(self, queue: Queue, inbound: Inbound, asked: Asked) -> _Afterwards:
        request, client = decode_request(inbound.payload), asked.client
        earlier = queue.repeated(request, client)
        if earlier is not None:
            return partial(self._outbox.answer, queue, earlier)
        if asked.pool is not None and self._pool_full():
            raise EdgeAgentError(Code.QUEUE_FULL, "this agent of the pool has enough to do; send the job again")
        model = self.admit(queue, request, client)
        ttl_s = request.ttl_s if inbound.expiry_s is None else min(request.ttl_s, inbound.expiry_s)
        envelope = Envelope(client, ttl_s, asked.pool, correlation=inbound.correlation, traceparent=inbound.traceparent)
        attached, proven = self._attach(queue, request, client), self._proven(model, request, client)
        queue.accept(request, envelope, model=model, attached=attached, proven=proven)
        return _nothing

    def _attach(self, queue: Queue, request: Request, client: str) -> Attached:
        if not request.images:
            return Attached(request, {})

        def put_away() -> Attached:
            holder = Holder(client, queue.images.held(client), "messages")
            return attach(request, holder=holder, spool=self._spool, folders=self._images.folders)

        return self._with_room(queue, put_away)

    def _with_room(self, queue: Queue, keep: Callable[[], T]) -> T:
        """Keep images; when there is no room, once more without what ended jobs have left there."""
        try:
            return keep()
        except EdgeAgentError as error:
            self._spool.sweep(*queue.images.needed())  # also of an image before the one at fault
            if error.code is not Code.STORAGE_FULL:
                raise
        return keep()

    def _take_image(self, queue: Queue, inbound: Inbound, client: str) -> _Afterwards:
        piece = decode_image(inbound)
        asked_for = queue.images.asked_for(client, piece.sha256)
        if asked_for is None:
            raise EdgeAgentError(
                Code.UNKNOWN_JOB, "sha256: no waiting job of yours needs this image; send the job that does first"
            )
        if not asked_for:
            return _nothing
        try:
            self._check_disk(queue)
            # Most often there is, and nobody need ask what of it counts.
            spare = self._spool.spare(client, len(piece.content) + PART_BYTES)
            holder = Holder(client, set() if spare else queue.images.held(client), "messages")
            add = partial(self._spool.add_part, piece.sha256, part=piece.part, parts=piece.parts, holder=holder)
            if self._with_room(queue, partial(add, content=piece.content)):
                queue.images.came(client, piece.sha256)
        except EdgeAgentError as error:
            if error.code is Code.BAD_IMAGE:  # the right bytes may still come
                raise
            # There is no room for it: those of this requester's jobs that wait for it would wait for ever.
            for job in queue.images.awaiting(client, piece.sha256):
                queue.give_up(job, Failure.of(error, pooled=job.pool is not None))
        return _nothing

    def _take_cancel(self, queue: Queue, inbound: Inbound, asked: Asked) -> _Afterwards:
        job = queue.cancel(asked.client, decode_ref(inbound.payload).job_id)
        if job is None:
            # In a pool most agents never had it; one that was asked for itself tells what will happen.
            return _nothing if asked.pool is not None else partial(self._reject, inbound, _UNKNOWN_YET)
        if job.state is JobState.RUNNING:
            # Afterwards also because its claim may stand in this very transaction: the dispatcher hears of that first.
            return partial(self.on_cancel, job)
        if job.state in TERMINAL:
            return partial(self._outbox.answer, queue, job)
        return _nothing  # one that waited has ended, and that is told

    def _take_status(self, queue: Queue, inbound: Inbound, client: str) -> _Afterwards:
        job = queue.recall(client, decode_ref(inbound.payload).job_id)
        if job is None:
            raise EdgeAgentError(Code.UNKNOWN_JOB, "job_id: this agent knows no such job of yours; send it again")
        return partial(self._outbox.answer, queue, job)

    def admit(self, queue: Queue, request: Request, client: str | None = None) -> str:
        """Return the model that shall run a request. Raises EdgeAgentError when none can or there is no room.

        `client` is the requester whose share counts; None for a watch: those count apart, so that neither watches nor
        requesters take the others' room.
        """
        model = self._engines.resolve(request.model, images=len(request.images))
        if request.ttl_s > self._settings.ttl_max_s:
            raise EdgeAgentError(Code.BAD_REQUEST, f"ttl_s: must be at most {self._settings.ttl_max_s}")
        self._find_room(queue, model, client)
        self._check_disk(queue)
        return model

    def _check_disk(self, queue: Queue) -> None:
        """Raise EdgeAgentError when too little is left of the disk, though what can be shed is."""

        def short() -> bool:
            return self._free_bytes() + queue.reusable_bytes < self._settings.min_free_bytes

        if short():
            queue.kept.shed()
        if short():
            raise EdgeAgentError(Code.STORAGE_FULL, "the device's disk is full; free space there", retry_after_s=60.0)

    def _find_room(self, queue: Queue, model: str, client: str | None) -> None:
        """Raise EdgeAgentError when this requester, or all of its kind, have as much unfinished as they may."""
        all_, theirs = (queue.asked, queue.backlog_of(client)) if client else (queue.watched, Backlog())
        jobs_max, bytes_max = self._requesters.max_jobs, self._requesters.max_bytes
        if (jobs_max is not None and theirs.jobs >= jobs_max) or (
            bytes_max is not None and theirs.request_bytes >= bytes_max
        ):
            code, sentence = (
                Code.QUOTA_EXCEEDED,
                "you have as much unfinished here as you may; send it again later",
            )
        elif all_.jobs >= self._settings.high_water_jobs or all_.request_bytes >= self._settings.high_water_bytes:
            code, sentence = Code.QUEUE_FULL, "the queue is full; send the job again later"
        elif client and queue.kept.full(client):
            code, sentence = Code.QUOTA_EXCEEDED, "the broker has not taken your results yet; send it again later"
        else:
            return
        retry_after_s = self._pace.room_s(model, queue.overview.running_work(model))
        if retry_after_s is None:
            retry_after_s = RETRY_AFTER_DEFAULT_S
        retry_after_s = max(RETRY_AFTER_LEAST_S, retry_after_s)
        raise EdgeAgentError(code, sentence, retry_after_s=retry_after_s)

    def _confirm(
        self, inbound: Inbound, acknowledge: Callable[[], None], outcome: _Afterwards | EdgeAgentError
    ) -> None:
        """Acknowledge what was stored or refused; a refusal is told first."""
        if isinstance(outcome, EdgeAgentError):
            self._reject(inbound, outcome)
        else:
            outcome()
        acknowledge()

    def _refuse(self, inbound: Inbound, acknowledge: Callable[[], None], error: StorageError) -> None:
        """Answer when the disk takes nothing."""
        sentence = f"the device cannot store the job: {error.trouble} ({error}); {error.mend} there"
        self._confirm(inbound, acknowledge, EdgeAgentError(Code.STORAGE_FULL, sentence, retry_after_s=60.0))

    def _reject(self, inbound: Inbound, error: EdgeAgentError) -> None:
        asked = self._asked(inbound)
        if asked is None:
            return
        job_id = UNREADABLE if asked.command == Command.IMAGE else readable_job_id(inbound.payload)
        pooled = asked.pool is not None
        if CLIENT.match(asked.client):
            self._note(asked, job_id, error)
        else:
            self._strangers.note(inbound.topic, error.message)
        self.on_rejected(error.code)
        self._outbox.say(self._speech.rejection(asked.client, job_id, error, inbound, pooled=pooled))

    def _note(self, asked: Asked, job_id: str, error: EdgeAgentError) -> None:
        self._strangers.rejected(
            "message.rejected",
            asked.client,
            command=printable(asked.command, 16),
            job_id=job_id,
            code=error.code,
            reason=loggable(error.message),
        )
