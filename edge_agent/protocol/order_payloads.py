"""The bodies of an administrator's orders and of what is told of them."""

from typing import Annotated, Literal

from pydantic import StringConstraints, model_validator

from edge_agent.jobs.job import Failure
from edge_agent.jobs.request import JobName
from edge_agent.jobs.strict import Strict
from edge_agent.protocol.payloads import Payload


class ModelOrder(Strict):
    """What an administrator wants done with a model; `pinned` false makes an unpin of a pin.

    `model` is one that is served, for a pull also a build of the catalogue. `op_id` is the idempotency key, per client.
    """

    op_id: JobName
    op: Literal["load", "unload", "pull", "pin", "unpin"]
    model: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,126}$")]
    pinned: bool | None = None

    @model_validator(mode="after")
    def _pinned_is_of_pins(self) -> "ModelOrder":
        if self.pinned is not None and self.op != "pin":
            raise ValueError("pinned: belongs to pin alone")
        return self

    @property
    def verb(self) -> str:
        """What is to be done."""
        return "unpin" if self.op == "pin" and self.pinned is False else self.op


class OrderStatus(Payload):
    """How far an administrator's order is, and what it waits for; of a pull the bytes that have come."""

    agent: str
    op_id: str
    op: str
    model: str
    state: Literal["running"] = "running"
    reason: str | None = None
    done_bytes: int | None = None
    total_bytes: int | None = None


class OrderResult(Payload):
    """What became of an administrator's order, or why it was refused; `phase` is how the model is then."""

    agent: str
    op_id: str
    op: str | None = None
    model: str | None = None
    state: Literal["succeeded", "failed", "rejected"]
    phase: str | None = None
    pinned: bool | None = None
    took_s: float | None = None
    error: Failure | None = None
