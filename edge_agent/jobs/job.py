"""What became of a request: the job's states as data, and its outcome."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

from pydantic import BaseModel, ConfigDict, JsonValue

from edge_agent.base.errors import POOL_RETRYABLE, RETRYABLE, Code, EdgeAgentError
from edge_agent.jobs.request import Request, StoredRequest


class JobState(StrEnum):
    """Where a stored job is. A refused request is never stored."""

    WAITING = "waiting"
    """For images that are uploaded apart."""
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"
    EXPIRED = "expired"


TERMINAL = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELED, JobState.EXPIRED})

TRANSITIONS: dict[JobState, frozenset[JobState]] = {
    JobState.WAITING: frozenset({JobState.QUEUED, JobState.FAILED, JobState.CANCELED, JobState.EXPIRED}),
    JobState.QUEUED: frozenset({JobState.RUNNING, JobState.FAILED, JobState.CANCELED, JobState.EXPIRED}),
    # Back to the queue only by a restart, a retry or a fallback.
    JobState.RUNNING: frozenset({JobState.QUEUED}) | TERMINAL,
} | dict.fromkeys(TERMINAL, frozenset())


def sources(target: JobState) -> tuple[JobState, ...]:
    """Return the states from which a job may come to this one."""
    return tuple(state for state, targets in TRANSITIONS.items() if target in targets)


class Frozen(BaseModel):
    """A value that is stored as JSON or published."""

    # The library else keeps up to 16,384 short strings it has read, answers among them.
    model_config = ConfigDict(frozen=True, extra="forbid", cache_strings="keys")


class Failure(Frozen):
    """Why a job was refused or ended badly."""

    code: Code
    message: str
    retryable: bool
    retry_after_s: float | None = None

    @classmethod
    def of(cls, error: EdgeAgentError, *, pooled: bool = False) -> "Failure":
        """Return what a requester is told of an error; of a job of a pool, another agent may do better."""
        return cls(
            code=error.code,
            message=error.message,
            retryable=error.code in (POOL_RETRYABLE if pooled else RETRYABLE),
            retry_after_s=error.retry_after_s,
        )

    @classmethod
    def because(cls, code: Code, message: str) -> "Failure":
        """Return a failure that no exception carried."""
        return cls(code=code, message=message, retryable=code in RETRYABLE)


class PromptTokensDetails(Frozen):
    """How the prompt's tokens came about: `cached_tokens` of them were not computed again."""

    cached_tokens: int


class Usage(Frozen):
    """Tokens, as OpenAI counts them."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class Timings(Frozen):
    """How long what took. Absent: not measured.

    `queue_ms` from acceptance to the last claim; `load_ms` of it waiting for the model; `first_token_ms` from
    acceptance to the first text; `prompt_ms`, `generate_ms` inside the engine; `total_ms` from acceptance to the end.
    """

    queue_ms: float | None = None
    load_ms: float | None = None
    prompt_ms: float | None = None
    first_token_ms: float | None = None
    generate_ms: float | None = None
    total_ms: float | None = None
    prompt_per_second: float | None = None
    generate_per_second: float | None = None


class ImageUse(Frozen):
    """An image of the prompt: its size in pixels as sent, upright, and as the model saw it; the prompt tokens it took.

    `scaled` says whether the two differ. `tiles` are what the image was given at most, see phi_tiling.py.
    """

    width: int
    height: int
    used_width: int
    used_height: int
    scaled: bool
    tiles: int
    tokens: int


class Prepared(Frozen):
    """A decoded image of a job: the file of its RGB bytes, the file's hash in hex, and what it costs."""

    path: str
    sha256: str
    use: ImageUse


class Fallback(Frozen):
    """What would have answered, had it not failed before, and how it did."""

    variant: str
    backend: str
    device: str
    reason: str


class Outcome(Frozen):
    """How a job ended, in everything but its state.

    `text` holds what was generated (`text_truncated`: not all of it), `error` why it ended badly; `host` is the server
    that computed it when it was not this device. `fallback_from` is the better
    choice that `device` stood in for.
    """

    text: str = ""
    text_truncated: bool | None = None
    finish_reason: str | None = None
    last_seq: int = -1
    error: Failure | None = None
    usage: Usage | None = None
    timings: Timings | None = None
    images: tuple[ImageUse, ...] | None = None
    variant: str | None = None
    revision: str | None = None
    backend: str | None = None
    device: str | None = None
    host: str | None = None
    fallback_from: Fallback | None = None


class Destination(Frozen):
    """Where a watch's answer goes: `text` is what the model said, `json` that with what belongs to it.

    `hops` counts the answers of agents that it came from, itself included.
    """

    topic: str
    qos: Literal[0, 1]
    retain: bool
    format: Literal["text", "json"]
    hops: int = 1


@dataclass(frozen=True, slots=True)
class Job:
    """An accepted request: one row of the queue.

    Times ending in `_s` are seconds on the queue's clock, which no change of the wall clock moves.
    `request` is None once erased, `outcome` until the job has ended. `strikes` counts claims that were not given back.
    `pool` is the pool it came through; until `not_before_s` nobody claims it. A job with images or a guide is
    `unprepared` until they are decoded and it is tried; `images` are there then. A watch's job has the topic it came
    from as `source`, and in `answer` where its answer goes.
    """

    row: int
    client: str
    job_id: str
    model: str
    state: JobState
    state_seq: int
    max_attempts: int
    max_tokens: int
    stream: bool
    priority: int
    rank: float
    accepted_s: float
    expires_s: float
    timeout_s: float
    pool: str | None = None
    attempt: int = 0
    strikes: int = 0
    alone: bool = False
    cancel_requested: bool = False
    not_before_s: float | None = None
    claimed_s: float | None = None
    finished_s: float | None = None
    request: StoredRequest | None = None
    request_bytes: int = 0
    outcome: Outcome | None = None
    correlation: bytes | None = None
    traceparent: str | None = None
    metadata: Mapping[str, JsonValue] = field(default_factory=dict)
    unprepared: bool = False
    images: tuple[Prepared, ...] | None = None
    source: str | None = None
    answer: Destination | None = None

    @property
    def asked(self) -> Request:
        """What was asked. Raises EdgeAgentError BAD_REQUEST, see StoredRequest, also when it is erased."""
        return (self.request or StoredRequest("")).read()

    @property
    def error(self) -> Failure | None:
        """Why it ended badly."""
        return self.outcome.error if self.outcome else None

    @property
    def watched(self) -> bool:
        """Whether a watch made it: its answer goes where the rule says, and no requester hears of it."""
        return self.answer is not None
