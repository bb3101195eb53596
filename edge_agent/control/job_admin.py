"""What an operator may do with the jobs of a queue: the same whether an agent holds it or nobody does."""

from collections.abc import Callable
from functools import partial
from typing import Any

from pydantic_core import from_json

from edge_agent.base.errors import Code, EdgeAgentError
from edge_agent.base.signal import Signal
from edge_agent.control.messages import (
    Ask,
    AskState,
    CancelJob,
    JobLine,
    ListJobs,
    PruneJobs,
    Reply,
    RetryJob,
    ShowJob,
)
from edge_agent.jobs.job import TERMINAL, Job, JobState
from edge_agent.jobs.queue import ROWS_AT_ONCE, Envelope, Queue
from edge_agent.jobs.request import Request
from edge_agent.protocol.encode import Speech
from edge_agent.protocol.order_payloads import ModelOrder

TEXTS = frozenset({"prompt", "messages", "stop", "metadata", "response_format"})
"""What of a request people wrote."""

Afterwards = Callable[[], None]
"""What to do once the change is durable."""


def _nothing() -> None:
    pass


class JobAdmin:
    """Answers questions inside a transaction of the queue.

    `on_cancel`: a running job is to end. `resolve` returns the model that shall run what asks for this one, and raises
    EdgeAgentError when none can; `new_id` makes the id of a job that runs again.
    """

    def __init__(
        self,
        *,
        speech: Speech,
        resolve: Callable[[str], str],
        new_id: Callable[[], str],
    ) -> None:
        self._speech = speech
        self.on_cancel: Signal[Job] = Signal()
        self._resolve = resolve
        self._new_id = new_id

    def answer(self, queue: Queue, ask: Ask) -> tuple[Reply, Afterwards]:
        """Do what is asked; return the reply and what to do when it is durable.

        Raises EdgeAgentError before anything has changed.
        """
        match ask:
            case ListJobs():
                return self._list(queue, ask), _nothing
            case ShowJob():
                return self._show(queue, ask), _nothing
            case CancelJob():
                return self._cancel(queue, ask)
            case RetryJob():
                return self._retry(queue, ask), _nothing
            case PruneJobs(older_s=older_s):
                pruned = queue.forget_ended(older_s)
                return Reply(pruned=pruned, more=pruned == ROWS_AT_ONCE), _nothing
            case AskState() | ModelOrder():
                raise EdgeAgentError(Code.UNSUPPORTED, "op: no agent runs on this queue")

    def _list(self, queue: Queue, ask: ListJobs) -> Reply:
        found = queue.overview.newest(states=ask.states, client=ask.client, limit=ask.limit + 1)
        lines = tuple(self._line(queue, job) for job in found[: ask.limit])
        return Reply(jobs=lines, more=len(found) > ask.limit)

    def _show(self, queue: Queue, ask: ShowJob) -> Reply:
        job = self._one(queue, ask.job_id, ask.client)
        request: dict[str, Any] | None = from_json(job.request.text, cache_strings="keys") if job.request else None
        result = self._speech.result_of(job) if job.state in TERMINAL else None
        if not ask.text:
            request = request and {name: value for name, value in request.items() if name not in TEXTS}
            result = result and result.model_copy(update={"text": "", "metadata": {}})
        return Reply(jobs=(self._line(queue, job),), request=request, result=result)

    def _cancel(self, queue: Queue, ask: CancelJob) -> tuple[Reply, Afterwards]:
        job = self._one(queue, ask.job_id, ask.client)
        if job.state in TERMINAL:
            return Reply(jobs=(self._line(queue, job),), said=f"{job.job_id} had ended already: {job.state}"), _nothing
        queue.cancel(job.client, job.job_id)
        now = self._one(queue, job.job_id, job.client)
        if job.state is not JobState.RUNNING:
            return Reply(jobs=(self._line(queue, now),), said=f"{job.job_id} is canceled"), _nothing
        said = f"{job.job_id} runs and is told to stop; what it wrote is kept"
        return Reply(jobs=(self._line(queue, now),), said=said), partial(self.on_cancel, job)

    def _retry(self, queue: Queue, ask: RetryJob) -> Reply:
        job = self._one(queue, ask.job_id, ask.client)
        if job.state not in TERMINAL:
            raise EdgeAgentError(Code.BAD_REQUEST, f"job_id: has not ended, it is {job.state}; cancel it first")
        if job.request is None:
            raise EdgeAgentError(Code.UNSUPPORTED, "job_id: its prompt was erased (privacy.keep_text)")
        request = job.asked
        if request.images:
            raise EdgeAgentError(
                Code.UNSUPPORTED, "job_id: had images, which are not kept; let its client send it again"
            )
        request = _named_anew(request, self._new_id())
        envelope = Envelope(job.client, request.ttl_s, correlation=job.correlation, traceparent=job.traceparent)
        again = queue.accept(request, envelope, model=self._resolve(job.model))
        said = f"{job.job_id} runs again as {again.job_id}, for {job.client}"
        return Reply(jobs=(self._line(queue, again),), said=said)

    def _one(self, queue: Queue, job_id: str, client: str | None) -> Job:
        found = queue.overview.named(job_id, client=client)
        if not found:
            raise EdgeAgentError(Code.UNKNOWN_JOB, "job_id: no such job is here; see: edge-agent jobs list")
        if len(found) > 1:
            clients = ", ".join(job.client for job in found[:5])
            raise EdgeAgentError(Code.BAD_REQUEST, f"client: several have a job of this id ({clients}); name one")
        return found[0]

    def _line(self, queue: Queue, job: Job) -> JobLine:
        now_s = queue.clock.now_s()
        ended = job.finished_s is not None
        return JobLine(
            **self._speech.event_of(job).model_dump(),
            model=job.model,
            priority=job.priority,
            age_s=round(now_s - job.accepted_s, 1),
            ended_s=None if job.finished_s is None else round(now_s - job.finished_s, 1),
            left_s=None if ended else round(job.expires_s - now_s, 1),
        )


def _named_anew(request: Request, job_id: str) -> Request:
    """Return the request under another id; its metadata tells of the first, where there is room."""
    changes = {"job_id": job_id, "metadata": request.metadata | {"retry_of": request.job_id}}
    try:
        return Request.model_validate_json(request.model_copy(update=changes).to_json())
    except ValueError:
        return request.model_copy(update={"job_id": job_id})
