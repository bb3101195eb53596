"""Bytes to types and types to bytes, here and nowhere else."""

import hashlib
import re
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json

from edge_agent import __version__
from edge_agent.errors import Code, EdgeAgentError
from edge_agent.jobs.attachments import is_image
from edge_agent.jobs.job import Destination, Failure, Job, Outcome
from edge_agent.jobs.request import BRANCH_LIST, BRANCH_OBJECT, BRANCH_TEXT, Request
from edge_agent.jobs.spool import PARTS_MAX
from edge_agent.jobs.template import Seen
from edge_agent.mqtt.order_payloads import ModelOrder
from edge_agent.mqtt.payloads import Answer, Chunk, JobEvent, JobRef, Payload, Result, Status
from edge_agent.mqtt.topics import Topics, watch_of

PAYLOAD_BYTES_MAX = 128 * 1024
"""Hosted brokers allow this much; images travel apart."""
CORRELATION_BYTES_MAX = 64
TRACEPARENT_BYTES_MAX = 128
UNREADABLE = "unreadable"
"""The job id under which a request is answered whose own cannot be read."""
HEADER_BYTES = 512
"""Room for everything but topic and payload in a packet: fixed header, lengths, our properties."""

TEXT_BYTES_MAX = 4 * 2**20
"""Of a watched message that is no image, such as JSON with one in base64: it is in memory more than once."""

HOPS = "edge-agent-hops"
"""The user property of a watch's answer that counts the answers it came from."""

STATUS_EXPIRY_S = 3600
CHUNK_EXPIRY_S = 30
RESULT_EXPIRY_S = 86_400
TELEMETRY_PERIODS = 3

_BRANCHES = {BRANCH_TEXT: "a string", BRANCH_LIST: "a list", BRANCH_OBJECT: "an object"}

_SHA256 = re.compile(r"[0-9a-f]{64}")
_COUNT = re.compile(r"[1-9][0-9]{0,5}")

M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Inbound:
    """A message as the broker delivered it; `expiry_s` is what remained of its life, `user` its user properties.

    `payload` may be the bytearray that it was received in: large ones are not copied. Nobody changes it.
    """

    topic: str
    payload: bytes
    qos: int = 1
    retained: bool = False
    expiry_s: float | None = None
    response_topic: str | None = None
    correlation: bytes | None = None
    traceparent: str | None = None
    user: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ImagePiece:
    """Part `part` (1 …) of `parts` of an image whose hash is `sha256`."""

    sha256: str
    part: int
    parts: int
    content: bytes


@dataclass(frozen=True, slots=True)
class Publication:
    """A message to publish; `expiry_s` None means it never expires, `user` are further user properties."""

    topic: str
    payload: bytes
    qos: int
    retain: bool = False
    expiry_s: int | None = None
    correlation: bytes | None = None
    traceparent: str | None = None
    response_topic: str | None = None
    user: Mapping[str, str] = field(default_factory=dict)


def decode_request(payload: bytes) -> Request:
    """Return a job request. Raises EdgeAgentError BAD_REQUEST or PAYLOAD_TOO_LARGE."""
    return _decode(Request, payload)


def decode_ref(payload: bytes) -> JobRef:
    """Return the job a command speaks of. Raises EdgeAgentError BAD_REQUEST or PAYLOAD_TOO_LARGE."""
    return _decode(JobRef, payload)


def decode_image(inbound: Inbound) -> ImagePiece:
    """Return what a message brings of an image. Raises EdgeAgentError BAD_REQUEST.

    Without the user property `sha256` the hash is taken of the payload, which then must be the whole image.
    """
    part, parts = _count(inbound, "part"), _count(inbound, "parts")
    sha256 = inbound.user.get("sha256")
    if parts > PARTS_MAX:
        raise EdgeAgentError(Code.BAD_REQUEST, f"parts: must be at most {PARTS_MAX}")
    if part > parts:
        raise EdgeAgentError(Code.BAD_REQUEST, "part: must be at most parts; the first is 1")
    if sha256 is None:
        if parts > 1:
            raise EdgeAgentError(Code.BAD_REQUEST, "sha256: is missing; an image in parts needs it as a user property")
        sha256 = hashlib.sha256(inbound.payload).hexdigest()
    if not _SHA256.fullmatch(sha256):
        raise EdgeAgentError(Code.BAD_REQUEST, "sha256: must be 64 hexadecimal digits, in lower case")
    return ImagePiece(sha256, part, parts, inbound.payload)


def _count(inbound: Inbound, name: str) -> int:
    text = inbound.user.get(name, "1")
    if not _COUNT.fullmatch(text):
        raise EdgeAgentError(Code.BAD_REQUEST, f"{name}: must be a whole number from 1")
    return int(text)


def hops(inbound: Inbound) -> int:
    """Return of how many answers of agents a message came, one after the other."""
    count = inbound.user.get(HOPS, "0")
    return int(count) if _COUNT.fullmatch(count) else 0


def decode_seen(inbound: Inbound) -> Seen:
    """Return what came on a watched topic: an image, a text, a text that is JSON, or nothing that can be read."""
    payload = inbound.payload
    # A BMP has reserved bytes that are 0, a text that begins with BM has none.
    if is_image(payload[:16]) and (payload[:2] != b"BM" or b"\0" in payload[:16]):
        return Seen(inbound.topic, image=payload)
    if len(payload) > TEXT_BYTES_MAX:
        return Seen(inbound.topic, too_large=True)
    try:
        body = from_json(payload, allow_inf_nan=False, cache_strings="keys")
    except ValueError:
        body = None
    return Seen(inbound.topic, payload=payload, body=body)


def decode_order(payload: bytes) -> ModelOrder:
    """Return what an administrator wants done. Raises EdgeAgentError BAD_REQUEST or PAYLOAD_TOO_LARGE."""
    return _decode(ModelOrder, payload)


def readable_op_id(payload: bytes) -> str:
    """Return the id of an order that may be wrong otherwise, or UNREADABLE."""
    return _readable(payload, "op_id")


def readable_job_id(payload: bytes) -> str:
    """Return the job id of a body that may be wrong otherwise, or UNREADABLE."""
    return _readable(payload, "job_id")


def _readable(payload: bytes, name: str) -> str:
    if len(payload) > PAYLOAD_BYTES_MAX:
        return UNREADABLE
    try:
        return JobRef.model_validate({"job_id": from_json(payload, cache_strings="keys")[name]}).job_id
    except (ValueError, TypeError, KeyError):
        return UNREADABLE


def _decode(model: type[M], payload: bytes) -> M:
    if len(payload) > PAYLOAD_BYTES_MAX:
        raise EdgeAgentError(Code.PAYLOAD_TOO_LARGE, f"the payload is over {PAYLOAD_BYTES_MAX} bytes")
    try:
        return model.model_validate_json(payload)
    except ValidationError as error:
        raise EdgeAgentError(Code.BAD_REQUEST, faults(error)) from None


def faults(error: ValidationError) -> str:
    """Return a sentence for the first faults of an input: each names its field, none repeats its value."""
    found = error.errors(include_url=False, include_input=False)
    shown = "; ".join(_fault(fault) for fault in found[:3])
    return f"{shown}; and {len(found) - 3} more" if len(found) > 3 else shown


def _fault(fault: Any) -> str:
    kind, context = fault["type"], fault.get("ctx", {})
    field = ".".join(_printable(str(part)) for part in fault["loc"] if part not in _BRANCHES)
    if kind == "json_invalid":
        return "the payload is not valid JSON"  # the library's sentence quotes none of it, but ours is enough
    if kind == "extra_forbidden":
        return f"{field}: is no field of this message"
    if kind.startswith("union_tag"):
        tags = str(context.get("expected_tags", "'type'"))
        branches = [words for branch, words in _BRANCHES.items() if branch in tags]
        return f"{field}: must be {' or '.join(branches)}" if branches else f"{field}.type: must be one of {tags}"
    sentence = re.sub(r"^(Value error, |\w+ should (?=\w))", _opening, fault["msg"])
    return f"{field}: {sentence}" if field else sentence


def _opening(match: re.Match[str]) -> str:
    """Return how our sentence begins where the library says `Input should`, `String should` and the like."""
    return "must " if match[0].endswith("should ") else ""


def _printable(name: str) -> str:
    """Return a field's name as it may be shown: names of unknown fields are the sender's."""
    return "".join(letter if letter.isprintable() else "?" for letter in name[:64])


def check_properties(inbound: Inbound, *, inbox: str) -> None:
    """Raise EdgeAgentError when a command is retained, or what comes with it cannot be echoed."""
    if inbound.retained:
        raise EdgeAgentError(Code.RETAINED, "the message is retained; publish commands without the retain flag")
    if inbound.response_topic not in (None, inbox):
        raise EdgeAgentError(Code.BAD_RESPONSE_TOPIC, f"ResponseTopic: must be {inbox}, or absent")
    if len(inbound.correlation or b"") > CORRELATION_BYTES_MAX:
        raise EdgeAgentError(Code.BAD_REQUEST, f"CorrelationData: must be at most {CORRELATION_BYTES_MAX} bytes")
    if len((inbound.traceparent or "").encode()) > TRACEPARENT_BYTES_MAX:
        raise EdgeAgentError(Code.BAD_REQUEST, f"traceparent: must be at most {TRACEPARENT_BYTES_MAX} bytes")


def echoed(inbound: Inbound) -> Inbound:
    """Return a message without what is too long to be echoed."""
    fits = len(inbound.correlation or b"") <= CORRELATION_BYTES_MAX
    traceable = len((inbound.traceparent or "").encode()) <= TRACEPARENT_BYTES_MAX
    return replace(
        inbound,
        correlation=inbound.correlation if fits else None,
        traceparent=inbound.traceparent if traceable else None,
    )


class Speech:
    """What this agent says of jobs, as publications."""

    def __init__(self, topics: Topics) -> None:
        self._topics = topics
        self._agent = topics.agent

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
            error=_outcome(job).error,
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
        publication, result = self._watched(job) if job.answer else self._asked(job)
        if packet_bytes_max is None:
            return publication
        room = packet_bytes_max - len(publication.topic.encode()) - HEADER_BYTES
        if isinstance(result, str):
            return replace(publication, payload=result.encode()[: max(0, room)].decode(errors="ignore").encode())
        return replace(publication, payload=_cut(result, room).encode())

    def _asked(self, job: Job) -> tuple[Publication, Result]:
        result = Result(
            **_outcome(job).model_dump(),
            agent=self._agent,
            job_id=job.job_id,
            state=job.state,
            attempt=job.attempt,
            model=job.model,
            agent_version=__version__,
            metadata=from_json(job.metadata, cache_strings="keys"),
        )
        publication = self._answer(
            job.client, job.job_id, "result", result, job.correlation, job.traceparent, RESULT_EXPIRY_S
        )
        return publication, result

    def _watched(self, job: Job) -> tuple[Publication, Answer | str]:
        destination = Destination.model_validate_json(job.answer or "")
        outcome = _outcome(job)
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
        """Tell monitors of a job's state, without any text."""
        error = _outcome(job).error
        event = JobEvent(
            agent=self._agent,
            client=job.client,
            job_id=job.job_id,
            state=job.state,
            state_seq=job.state_seq,
            attempt=job.attempt,
            code=error.code if error else None,
        )
        return Publication(self._topics.job_event(job.job_id), event.encode(), qos=0, expiry_s=STATUS_EXPIRY_S)

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


def _outcome(job: Job) -> Outcome:
    return Outcome.model_validate_json(job.outcome) if job.outcome else Outcome()
