"""One attempt at a job while it occupies a lane: what the engine is asked, and what came of it."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from edge_agent.engine.hosting.prover import guide_of
from edge_agent.engine.hosting.status import EngineStatus
from edge_agent.engine.messages import Finished, FinishReason, Generation, Image, JobId, Turn
from edge_agent.jobs.job import Failure, Job, JobState, Outcome, Prepared, PromptTokensDetails, Timings, Usage
from edge_agent.jobs.request import Request
from edge_agent.serving.chunks import ChunkStream

ALONE_FIRST_S = 5.0
"""A job that must run alone does so for twice as long in its second attempt, and twice as long again in each after."""


def job_id(job: Job) -> JobId:
    """Return the engine's name for the present attempt at a job."""
    return JobId(f"{job.row}.{job.attempt}")


@dataclass(slots=True)
class Attempt:
    """Kept by the dispatcher; times in `_s` are monotonic seconds.

    `over`: the outcome is decided, but the engine has not let go of the job yet. `begun_lane_s`: the lane seconds its
    engine had worked when it began. `owner`: whose jobs alone may find again what is computed for it, see Generation.
    `reserved`: no other may begin beside it.
    """

    job: Job
    stream: ChunkStream
    begun_s: float
    deadline_s: float
    progress_s: float
    load_ms: float
    begun_lane_s: float = 0.0
    owner: str = ""
    texts: list[str] = field(default_factory=list)
    tokens: int = 0
    prompt_tokens: int = 0
    first_token_ms: float | None = None
    over: bool = False
    reserved: bool = False

    @property
    def id(self) -> JobId:
        """The engine's name for this attempt."""
        return job_id(self.job)

    @property
    def images(self) -> tuple[Prepared, ...]:
        """The images of the job, decoded."""
        return self.job.images or ()

    @property
    def generation(self) -> Generation:
        """What the engine is asked. Raises EdgeAgentError BAD_REQUEST when this version would not accept the job."""
        request = self.job.asked
        return Generation(
            job_id=self.id,
            turns=_turns(request, self.images, self.owner),
            max_tokens=request.max_tokens,
            temperature=request.temperature,
            top_p=request.top_p,
            top_k=request.top_k,
            seed=request.seed,
            repetition_penalty=request.repetition_penalty,
            stop=request.stops,
            guide=guide_of(request, self.owner),
            owner=self.owner,
            template=request.template,
        )

    def age_ms(self, now_s: float) -> float:
        """Return how long ago the job was accepted, on the queue's clock."""
        return (now_s - self.job.accepted_s) * 1000

    def heard(self, now_s: float) -> bool:
        """Take in that its engine works at it; return whether others may begin beside it from now on.

        What ends engines or slows them down mostly does so soon, and others wait: a job that has run alone for long
        goes on in company. One that ends its engine in spite of that has its next attempt to itself for longer.
        """
        opens = self.reserved and now_s - self.begun_s >= ALONE_FIRST_S * 2 ** (self.job.attempt - 1)
        self.reserved = self.reserved and not opens
        return opens

    def add(self, text: str, tokens: int, *, age_ms: float) -> None:
        """Take in what the engine generated, the job being so old."""
        if self.first_token_ms is None:
            self.first_token_ms = age_ms
        self.texts.append(text)
        self.tokens += tokens

    def outcome(
        self,
        state: JobState,
        *,
        engine: EngineStatus,
        last_seq: int,
        age_ms: float,
        failure: Failure | None = None,
        finished: Finished | None = None,
    ) -> Outcome:
        """Return what becomes of the job; `finished` is the engine's account when it was asked to the end."""
        reason = FinishReason.CANCELED if state is JobState.CANCELED else finished and finished.reason
        return Outcome(
            text="".join(self.texts),
            finish_reason=reason or None,
            last_seq=last_seq,
            error=failure,
            usage=self._usage(finished),
            timings=self._timings(finished, age_ms),
            images=tuple(image.use for image in self.images) or None,
            variant=engine.variant,
            revision=engine.revision,
            backend=engine.backend or None,
            device=engine.device or None,
            host=engine.host,
            fallback_from=engine.fallback,
        )

    def _usage(self, finished: Finished | None) -> Usage:
        """Return what the engine counted, or what was seen when it did not come to the end."""
        prompt_tokens = finished.usage.prompt_tokens if finished else self.prompt_tokens
        completion_tokens = finished.usage.completion_tokens if finished else self.tokens
        return Usage(
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            total_tokens=prompt_tokens + completion_tokens,
            prompt_tokens_details=PromptTokensDetails(cached_tokens=finished.usage.cached_tokens if finished else 0),
        )

    def _timings(self, finished: Finished | None, age_ms: float) -> Timings:
        queue_ms = ((self.job.claimed_s or 0.0) - self.job.accepted_s) * 1000
        timings = {
            "queue_ms": queue_ms,
            "load_ms": min(self.load_ms, queue_ms),
            "first_token_ms": self.first_token_ms,
            "total_ms": age_ms,
        }
        if finished is not None:
            computed = finished.usage.prompt_tokens - finished.usage.cached_tokens
            timings |= {
                "prompt_ms": finished.prompt_ms,
                "generate_ms": finished.generate_ms,
                "prompt_per_second": _per_second(computed, finished.prompt_ms),
                "generate_per_second": _per_second(finished.usage.completion_tokens, finished.generate_ms),
            }
        return Timings(**{name: value if value is None else round(value, 1) for name, value in timings.items()})


def _per_second(count: int, took_ms: float) -> float | None:
    return count / took_ms * 1000 if took_ms else None


def _turns(request: Request, images: Sequence[Prepared], owner: str) -> tuple[Turn, ...]:
    """Return the messages, each with its own of the images, which come in the order of the request."""
    left = iter(images)
    return tuple(
        Turn(message.role, message.text, tuple(_image(next(left), owner) for _ in message.images))
        for message in request.conversation
    )


def _image(image: Prepared, owner: str) -> Image:
    """Return an image as the engine knows it: by a name that only its owner's images have."""
    name = hashlib.sha256(f"{owner} {image.sha256}".encode()).hexdigest() if owner else image.sha256
    return Image(image.path, name, image.use.used_width, image.use.used_height, image.use.tiles)
