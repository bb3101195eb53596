"""What crosses the control socket: one question, one reply, each a line of JSON; of jobs as it is over MQTT."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, JsonValue, StringConstraints, TypeAdapter, ValidationError

from edge_agent.base.errors import Code, EdgeAgentError
from edge_agent.jobs.job import Failure, JobState
from edge_agent.jobs.request import JobName
from edge_agent.jobs.strict import Strict
from edge_agent.protocol.messages import faults
from edge_agent.protocol.order_payloads import ModelOrder, OrderResult, OrderStatus
from edge_agent.protocol.payloads import JobEvent, Payload, Result, Telemetry

LISTED_MAX = 1000
ASK_BYTES_MAX = 4096
"""A question has a few short fields."""

ClientName = Annotated[str, StringConstraints(min_length=1, max_length=128)]


class ListJobs(Strict):
    """Tell of the newest jobs, those of some states, or of one client."""

    op: Literal["list"] = "list"
    states: tuple[JobState, ...] = ()
    client: ClientName | None = None
    limit: Annotated[int, Field(ge=1, le=LISTED_MAX)] = 50


class _OneJob(Strict):
    job_id: JobName
    client: ClientName | None = None


class ShowJob(_OneJob):
    """Tell everything of a job; prompt and answer only when `text` is asked for."""

    op: Literal["show"] = "show"
    text: bool = False


class CancelJob(_OneJob):
    """End a job that has not ended."""

    op: Literal["cancel"] = "cancel"


class RetryJob(_OneJob):
    """Run an ended job again, as a new job of the same client."""

    op: Literal["retry"] = "retry"


class PruneJobs(Strict):
    """Forget jobs that ended longer ago than this."""

    op: Literal["prune"] = "prune"
    older_s: Annotated[float, Field(ge=0)]


class AskState(Strict):
    """Tell how the agent is."""

    op: Literal["state"] = "state"


Ask = ListJobs | ShowJob | CancelJob | RetryJob | PruneJobs | AskState | ModelOrder
_ASK: TypeAdapter[Ask] = TypeAdapter(Annotated[Ask, Field(discriminator="op")])


class JobLine(JobEvent):
    """A job in short: what monitors are told, what it is for, and its times in seconds until now.

    `age_s` since it was accepted, `ended_s` since it ended, `left_s` to live.
    """

    model: str
    priority: int
    age_s: float
    ended_s: float | None = None
    left_s: float | None = None


class Standing(Payload):
    """How the agent is, as its presence says, why there is no connection when there is none, and readings of now."""

    agent: str
    version: str
    pid: int
    boot_id: str
    health: str
    reasons: tuple[str, ...] = ()
    connected: bool
    trouble: str | None = None
    telemetry: Telemetry | None = None


class Reply(Payload):
    """What was asked for, or why not. `said` is a sentence for people; `more`: there are jobs beyond the limit."""

    error: Failure | None = None
    said: str | None = None
    jobs: tuple[JobLine, ...] | None = None
    more: bool | None = None
    request: Mapping[str, JsonValue] | None = None
    result: Result | None = None
    pruned: int | None = None
    state: Standing | None = None
    order: Annotated[OrderStatus | OrderResult, Field(discriminator="state")] | None = None


def decode_ask(line: bytes) -> Ask:
    """Return a question. Raises EdgeAgentError BAD_REQUEST or PAYLOAD_TOO_LARGE."""
    if len(line) > ASK_BYTES_MAX:
        raise EdgeAgentError(Code.PAYLOAD_TOO_LARGE, f"the question is over {ASK_BYTES_MAX} bytes")
    try:
        return _ASK.validate_json(line)
    except ValidationError as error:
        raise EdgeAgentError(Code.BAD_REQUEST, faults(error)) from None


def decode_reply(line: bytes) -> Reply:
    """Return a reply. Raises EdgeAgentError INTERNAL when it is none."""
    try:
        return Reply.model_validate_json(line)
    except ValidationError as error:
        raise EdgeAgentError(
            Code.INTERNAL, f"the agent's reply is not understood ({faults(error)}); is it of another version?"
        ) from None
