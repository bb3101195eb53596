"""What an agent says of jobs: types to bytes."""

from bisect import bisect_right
from dataclasses import replace

from edge_agent import __version__
from edge_agent.base.errors import EdgeAgentError
from edge_agent.jobs.ids import watch_of
from edge_agent.jobs.job import Destination, Failure, Job, Outcome
from edge_agent.protocol.messages import (
    CHUNK_EXPIRY_S,
    HEADER_BYTES,
    HOPS,
    RESULT_EXPIRY_S,
    STATUS_EXPIRY_S,
    Inbound,
    Publication,
    echoed,
)
from edge_agent.protocol.payloads import Answer, Chunk, JobEvent, Payload, Result, Status
from edge_agent.protocol.topics import Topics


class Speech:
    """What this agent says of jobs, as publications."""

    def __init__(self, topics: Topics) -> None:
        self._topics = topics
        self._agent = topics.agent
        self.lane = topics.lane

    def status_topic(self, job: Job) -> str:
        """Return where the requester is told of a job's states."""
        return self._topics.inbox(job.client, job.job_id, "status")

    def status(
        self,
        job: Job,
        *,
        position: int | None = None,
        eta_s: float | None = None,
        tokens: int | None = None,
        missing: tuple[str, ...] | None = None,
    ) -> Publication:
        """Tell the requester of a job's state."""
        status = Status(
            agent=self._agent,
            job_id=job.job_id,
            state=job.state,
            state_seq=job.state_seq,
            attempt=job.attempt,
            queue_position=position,
            eta_s=eta_s,
            tokens=tokens,
            missing=missing,
            error=job.error,
        )
        return self._answer(job.client, job.job_id, "status", status, job.correlation, job.traceparent, STATUS_EXPIRY_S)

    def rejection(
        self, client: str, job_id: str, error: EdgeAgentError, inbound: Inbound, *, pooled: bool = False
    ) -> Publication:
        """Tell a requester why a message of theirs is refused; what came with it is echoed unless it is too long."""
        failure, echo = Failure.of(error, pooled=pooled), echoed(inbound)
        return self._rejected(client, job_id, failure, echo.correlation, echo.traceparent)

    def handed_back(self, job: Job, error: EdgeAgentError) -> Publication:
        """Tell a requester that a job of a pool which we had accepted shall be done by another agent."""
        failure = Failure.of(error, pooled=True)
        return self._rejected(job.client, job.job_id, failure, job.correlation, job.traceparent)

    def _rejected(
        self, client: str, job_id: str, failure: Failure, correlation: bytes | None, traceparent: str | None
    ) -> Publication:
        status = Status(agent=self._agent, job_id=job_id, state="rejected", state_seq=0, error=failure)
        return self._answer(client, job_id, "status", status, correlation, traceparent, STATUS_EXPIRY_S)

    def chunk(self, job: Job, *, seq: int, text: str, tokens: int) -> Publication:
        """Stream new text."""
        chunk = Chunk(agent=self._agent, job_id=job.job_id, attempt=job.attempt, seq=seq, text=text, tokens=tokens)
        return self._answer(
            job.client, job.job_id, "chunk", chunk, job.correlation, job.traceparent, CHUNK_EXPIRY_S, qos=0
        )

    def result(self, job: Job, *, packet_bytes_max: int | None) -> Publication:
        """Give the whole answer, cut to what the broker takes; a watch's goes where its rule says."""
        publication, result = self._watched(job, job.answer) if job.answer else self._asked(job)
        if packet_bytes_max is None:
            return publication
        room = packet_bytes_max - len(publication.topic.encode()) - HEADER_BYTES
        if isinstance(result, str):
            return replace(publication, payload=result.encode()[: max(0, room)].decode(errors="ignore").encode())
        return replace(publication, payload=_cut(result, room).encode())

    def result_of(self, job: Job) -> Result:
        """Return what came of a job that has ended, as its requester is told it."""
        return Result(
            **(job.outcome or Outcome()).model_dump(),
            agent=self._agent,
            job_id=job.job_id,
            state=job.state,
            attempt=job.attempt,
            model=job.model,
            agent_version=__version__,
            metadata=job.metadata,
        )

    def _asked(self, job: Job) -> tuple[Publication, Result]:
        result = self.result_of(job)
        publication = self._answer(
            job.client, job.job_id, "result", result, job.correlation, job.traceparent, RESULT_EXPIRY_S
        )
        return publication, result

    def _watched(self, job: Job, destination: Destination) -> tuple[Publication, Answer | str]:
        outcome = job.outcome or Outcome()
        result: Answer | str = outcome.text.strip()
        if destination.format == "json":
            result = Answer(
                **outcome.model_dump(exclude={"text"}),
                text=result,
                agent=self._agent,
                watch=watch_of(job.client),
                topic=job.source or "",
                job_id=job.job_id,
                model=job.model,
                agent_version=__version__,
            )
        publication = Publication(
            topic=destination.topic,
            payload=result.encode(),
            qos=destination.qos,
            retain=destination.retain,
            expiry_s=None if destination.retain else RESULT_EXPIRY_S,
            traceparent=job.traceparent,
            user={HOPS: str(destination.hops)},
        )
        return publication, result

    def event(self, job: Job) -> Publication:
        """Tell monitors of a job's state."""
        payload = self.event_of(job).encode()
        return Publication(self._topics.job_event(job.job_id), payload, qos=0, expiry_s=STATUS_EXPIRY_S)

    def event_of(self, job: Job) -> JobEvent:
        """Return what monitors are told of a job's state, without any text."""
        return JobEvent(
            agent=self._agent,
            client=job.client,
            job_id=job.job_id,
            state=job.state,
            state_seq=job.state_seq,
            attempt=job.attempt,
            code=job.error.code if job.error else None,
        )

    def _answer(
        self,
        client: str,
        job_id: str,
        leaf: str,
        payload: Payload,
        correlation: bytes | None,
        traceparent: str | None,
        expiry_s: int,
        qos: int = 1,
    ) -> Publication:
        return Publication(
            topic=self._topics.inbox(client, job_id, leaf),
            payload=payload.encode(),
            qos=qos,
            expiry_s=expiry_s,
            correlation=correlation,
            traceparent=traceparent,
        )


def _cut(result: Result | Answer, room: int) -> Result | Answer:
    """Return a result whose JSON has at most `room` bytes: with less text, at last with neither text nor metadata."""

    def shortened(kept: int) -> Result | Answer:
        return result.model_copy(update={"text": result.text[:kept], "text_truncated": True})

    if len(result.encode()) <= room:
        return result
    sizes = range(len(result.text))
    kept = bisect_right(sizes, room, key=lambda kept: len(shortened(kept).encode())) - 1
    if kept >= 0:
        return shortened(kept)
    return shortened(0).model_copy(update={"metadata": {}} if isinstance(result, Result) else {})
