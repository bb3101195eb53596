"""`[[watch]]`: rules from topics to prompts, as they stand in the settings."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Scalar = str | bool | int | float
FEW_MAX = 64
CONDITION_SENTENCE = (
    f"must be a text, a number, true or false, a list of 1 to {FEW_MAX} of them, "
    "or a table of above and below (numbers) and other_than"
)


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a value must keep to; a text that is a number counts as one."""

    above: float | None = None
    below: float | None = None
    other_than: Scalar | tuple[Scalar, ...] | None = None


Wanted = Scalar | tuple[Scalar, ...] | Bounds
"""What a condition asks of a variable: one value, one of several, or bounds."""


def _wanted(value: Any) -> Wanted:
    """Return what a condition asks for. Raises ValueError."""
    if not isinstance(value, dict):
        return _values(value)
    bounds = Bounds(**value) if value and value.keys() <= {"above", "below", "other_than"} else None
    if bounds is None or any(isinstance(each, bool | str | list | dict) for each in (bounds.above, bounds.below)):
        raise ValueError(CONDITION_SENTENCE)
    if bounds.other_than is None:
        return bounds
    return Bounds(bounds.above, bounds.below, _values(bounds.other_than))


def _values(value: Any) -> Scalar | tuple[Scalar, ...]:
    several = value if isinstance(value, list) else [value]
    if not 1 <= len(several) <= FEW_MAX or not all(isinstance(each, str | bool | int | float) for each in several):
        raise ValueError(CONDITION_SENTENCE)
    return tuple(several) if isinstance(value, list) else several[0]


class WatchSection(BaseModel):
    """One rule: what is published on these topics becomes jobs, and their answers are published."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$", description="what logs, telemetry and topics call it")
    topic: str | Annotated[tuple[str, ...], Field(min_length=1, max_length=32)] = Field(
        description="topic filter, or a list of them"
    )
    prompt: str = Field(description="what is asked of the model; a template")
    system: str | None = Field(None, min_length=1, max_length=16_384, description="the system message")
    image: str = Field(
        "auto",
        description="where the image is: auto, the payload when it is one; payload, which must be one; "
        "json.FIELD, in base64; none",
    )
    when: dict[str, Annotated[Any, AfterValidator(_wanted)]] = Field(
        default_factory=dict,
        max_length=32,
        description="only messages whose variables have these values (one, or a list), or keep to "
        "`{above = …, below = …, other_than = …}`",
    )
    changed: str | None = Field(
        None, description="only messages in which this variable is another than in the last one on the topic"
    )
    model: str = Field("auto", min_length=1, max_length=63, description="as in a job")
    max_tokens: int = Field(256, ge=1, le=131_072, description="as in a job")
    response_format: dict[str, Any] | None = Field(None, description="as in a job")
    priority: int = Field(3, ge=0, le=9, description="as in a job; what somebody asks for goes first")
    ttl_s: float = Field(600, ge=1, le=86_400, description="as in a job")
    timeout_s: float = Field(300, ge=1, le=86_400, description="as in a job")
    every_s: float = Field(
        0, ge=0, le=604_800, description="at most one job in this time; what comes sooner makes none"
    )
    every: Literal["topic", "rule"] = Field("topic", description="whether every_s holds for each topic or for the rule")
    pending: int = Field(
        1, ge=1, le=100, description="jobs of one topic that may wait; a newer message takes the oldest one's place"
    )
    waiting_jobs: int = Field(
        100,
        ge=1,
        le=10_000,
        description="jobs of the rule that may wait, over all its topics; a newer message takes the oldest one's place",
    )
    waiting_bytes: int | None = Field(
        None,
        ge=1024,
        description="what their images may take of the disk; `images.requester_quota_bytes` when unset",
    )
    qos: Literal[0, 1] = Field(1, description="best quality of service at which messages come")
    retained: Literal["skip", "once"] = Field(
        "skip", description="what was published before we subscribed and the broker retains: skip it, or take it once"
    )
    answer_topic: str | None = Field(
        None, description="where answers are published, a template; `{root}/agents/{agent}/watch/{name}` when unset"
    )
    answer_format: Literal["text", "json"] = Field(
        "text", description="text: what the model said; json: that with topic, model, timings and more"
    )
    answer_qos: Literal[0, 1] = Field(1, description="their quality of service")
    answer_retain: bool = Field(False, description="whether the broker keeps the last one of each topic for newcomers")

    @property
    def topics(self) -> tuple[str, ...]:
        """The topic filters."""
        return (self.topic,) if isinstance(self.topic, str) else self.topic
