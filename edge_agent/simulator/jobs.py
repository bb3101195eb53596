"""The jobs of an agent without an engine: accepted, run in their order, answered with made-up words."""

from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from edge_agent.base.errors import Code, EdgeAgentError
from edge_agent.jobs.job import TERMINAL, Failure, Job, JobState, Outcome, PromptTokensDetails, Timings, Usage
from edge_agent.jobs.request import Request
from edge_agent.protocol.encode import Speech
from edge_agent.protocol.messages import Inbound, Publication, decode_ref, decode_request
from edge_agent.protocol.topics import Asked, Command
from edge_agent.simulator.machine import SERVE, SimulatedMachine

WORDS = tuple("This answer is made up : no model runs behind this agent , it only speaks the protocol . ".split())  # noqa: SIM905 - reads as the sentence it is
OPEN_MAX, REMEMBERED_MAX = 100, 200
"""Jobs that may be open, and that are remembered, ended ones included."""
CHUNK_S = 0.25
"""Text is said so often at most."""


@dataclass(slots=True)
class _Work:
    """A job, what tells its request from another, and what is said of it so far."""

    job: Job
    digest: bytes
    tokens: int = 0
    seq: int = 0
    claimed_s: float = 0.0
    failure: Failure | None = None

    @property
    def text(self) -> str:
        return _text(self.tokens)


class SimulatedJobs:
    """What one agent was asked and what became of it. An answer takes `token_s` for each token.

    `say` publishes, `do` has something done after some seconds, on the thread of all the rest.
    """

    def __init__(
        self,
        speech: Speech,
        *,
        pretence: SimulatedMachine,
        token_s: float,
        say: Callable[[Publication], None],
        do: Callable[[float, Callable[[], None]], None],
        now_s: Callable[[], float],
    ) -> None:
        self._speech = speech
        self._pretence = pretence
        self._token_s = token_s
        self._say = say
        self._do = do
        self._now_s = now_s
        self._work: OrderedDict[tuple[str, str], _Work] = OrderedDict()
        self.counts: Counter[str] = Counter()
        """What happened: `accepted`, ended jobs by state, `completion_tokens`."""

    def take(self, asked: Asked, inbound: Inbound) -> None:
        """Do what a message asks. Raises EdgeAgentError when it is refused."""
        if inbound.retained:
            raise EdgeAgentError(Code.RETAINED, "the message is retained; publish commands without the retain flag")
        match asked.command:
            case Command.JOB:
                self._take_job(asked.client, inbound)
            case Command.CANCEL:
                work = self._known(asked.client, inbound)
                if work.job.state in TERMINAL:
                    self._answer(work)
                else:
                    self._end(work, JobState.CANCELED)
            case Command.STATUS:
                self._answer(self._known(asked.client, inbound))
            case _:
                raise EdgeAgentError(Code.UNSUPPORTED, "this agent is simulated: it knows job, cancel and status")

    def close(self) -> None:
        """End every open job: nobody will come back to it."""
        failure = Failure.because(Code.SHUTTING_DOWN, "the simulation is over")
        for work in self._in(JobState.QUEUED, JobState.RUNNING):
            work.failure = failure
            self._finish(work, JobState.FAILED)

    def _known(self, client: str, inbound: Inbound) -> _Work:
        work = self._work.get((client, decode_ref(inbound.payload).job_id))
        if work is None:
            raise EdgeAgentError(Code.UNKNOWN_JOB, "job_id: this agent knows no such job of yours; send it again")
        return work

    def _take_job(self, client: str, inbound: Inbound) -> None:
        request = decode_request(inbound.payload)
        earlier = self._work.get((client, request.job_id))
        if earlier is not None:
            if earlier.digest != request.digest():
                raise EdgeAgentError(Code.DUPLICATE_ID, "job_id: you have another job of this id; take a new one")
            self._answer(earlier)
            return
        self._admit(request)
        work = _Work(_job(request, client, inbound, self._now_s()), request.digest())
        self._work[client, request.job_id] = work
        self._forget()
        self.counts["accepted"] += 1
        self._tell(work, position=len(self._in(JobState.QUEUED)))
        self._next()

    def _admit(self, request: Request) -> None:
        if self._pretence.candidate is None:
            raise EdgeAgentError(Code.NO_FIT, self._pretence.engine.reason)
        if request.model not in ("auto", SERVE.name):
            raise EdgeAgentError(Code.UNKNOWN_MODEL, f"model: this agent serves {SERVE.name}")
        if request.images:
            raise EdgeAgentError(Code.UNSUPPORTED, "messages: the model sees no images")
        if len(self._in(JobState.QUEUED, JobState.RUNNING)) >= OPEN_MAX:
            raise EdgeAgentError(Code.QUEUE_FULL, "the queue is full", retry_after_s=5.0)

    def _forget(self) -> None:
        ended = [key for key, work in self._work.items() if work.job.state in TERMINAL]
        for key in ended[: max(0, len(self._work) - REMEMBERED_MAX)]:
            del self._work[key]

    # How it works

    def _in(self, *states: JobState) -> list[_Work]:
        return [work for work in self._work.values() if work.job.state in states]

    def _next(self) -> None:
        """Begin what there is a lane for, highest priority first; what is too old by then has expired."""
        best = self._pretence.candidate
        lanes = best.parallel if best else 0
        while len(self._in(JobState.RUNNING)) < lanes and (waiting := self._in(JobState.QUEUED)):
            work = min(waiting, key=lambda each: each.job.rank)
            if self._now_s() >= work.job.expires_s:
                self._finish(work, JobState.EXPIRED)
                continue
            work.claimed_s = self._now_s()
            self._become(work, JobState.RUNNING)
            self._step(work)
        self._pretence.asked = len(self._in(JobState.RUNNING))

    def _step(self, work: _Work) -> None:
        """Say the text that has come about since the last step, and the end when it is reached."""
        if work.job.state is not JobState.RUNNING:
            return
        most = min(work.job.max_tokens, len(WORDS))
        made = most
        if self._token_s:
            made = min(most, int((self._now_s() - work.claimed_s) / self._token_s))
        if made > work.tokens and work.job.stream:
            said = _text(made)[len(work.text) :]
            self._say(self._speech.chunk(work.job, seq=work.seq, text=said, tokens=made - work.tokens))
            work.seq += 1
        work.tokens = max(work.tokens, made)
        if made < most:
            self._do(max(CHUNK_S, self._token_s), partial(self._step, work))
        else:
            self._end(work, JobState.SUCCEEDED)

    def _end(self, work: _Work, state: JobState) -> None:
        self._finish(work, state)
        self._next()

    def _finish(self, work: _Work, state: JobState) -> None:
        self._become(work, state)
        self._say(self._speech.result(work.job, packet_bytes_max=None))

    def _become(self, work: _Work, state: JobState) -> None:
        job = replace(work.job, state=state, state_seq=work.job.state_seq + 1)
        if state is JobState.RUNNING:
            job = replace(job, attempt=job.attempt + 1, claimed_s=work.claimed_s)
        if state in TERMINAL:
            job = replace(job, outcome=self._outcome(work, state))
            self.counts[state] += 1
            self.counts["completion_tokens"] += work.tokens
        work.job = job
        self._tell(work)

    def _tell(self, work: _Work, position: int | None = None) -> None:
        self._say(self._speech.status(work.job, position=position))
        self._say(self._speech.event(work.job))

    def _answer(self, work: _Work) -> None:
        self._say(self._speech.status(work.job))
        if work.job.state in TERMINAL:
            self._say(self._speech.result(work.job, packet_bytes_max=None))

    def _outcome(self, work: _Work, state: JobState) -> Outcome:
        now_s, best = self._now_s(), self._pretence.candidate
        spent_s = now_s - work.claimed_s if work.claimed_s else None
        details = PromptTokensDetails(cached_tokens=0)
        return Outcome(
            text=work.text,
            finish_reason="stop" if state is JobState.SUCCEEDED else None,
            last_seq=work.seq - 1,
            error=work.failure,
            usage=Usage(
                prompt_tokens=0,
                completion_tokens=work.tokens,
                total_tokens=work.tokens,
                prompt_tokens_details=details,
            ),
            timings=Timings(
                total_ms=round(1000 * (now_s - work.job.accepted_s), 1),
                generate_per_second=round(work.tokens / spent_s, 1) if spent_s else None,
            ),
            variant=best.variant.name if best else None,
            backend=best.variant.backend if best else None,
            device=best.device if best else None,
        )


def _text(tokens: int) -> str:
    return " ".join(WORDS[:tokens])


def _job(request: Request, client: str, inbound: Inbound, now_s: float) -> Job:
    ttl_s = request.ttl_s if inbound.expiry_s is None else min(request.ttl_s, inbound.expiry_s)
    return Job(
        row=0,
        client=client,
        job_id=request.job_id,
        model=SERVE.name,
        state=JobState.QUEUED,
        state_seq=1,
        max_attempts=request.max_attempts,
        max_tokens=request.max_tokens,
        stream=request.stream,
        priority=request.priority,
        rank=now_s - 60.0 * request.priority,
        accepted_s=now_s,
        expires_s=now_s + ttl_s,
        timeout_s=request.timeout_s,
        correlation=inbound.correlation,
        traceparent=inbound.traceparent,
        metadata=request.metadata,
    )
