"""What was asked: the body of a job, validated, with the spellings people already use."""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    AliasChoices,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    JsonValue,
    StringConstraints,
    Tag,
    ValidationError,
    model_validator,
)
from pydantic_core import to_json

from edge_agent.base.errors import Code, EdgeAgentError
from edge_agent.jobs.response_format import ResponseFormat
from edge_agent.jobs.strict import Strict

METADATA_BYTES_MAX = 4096
METADATA_DEPTH_MAX = 8

JobName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
"""The requester's name for a job: its idempotency key, unique per client."""

TTL_DEFAULT_S = 600
TIMEOUT_DEFAULT_S = 300


BRANCH_TEXT, BRANCH_LIST, BRANCH_OBJECT = "<text>", "<list>", "<object>"
"""Tags of a field that may be a bare string or something richer; they show in error locations only."""

_BRANCHES: dict[type, str] = {str: BRANCH_TEXT, list: BRANCH_LIST, tuple: BRANCH_LIST}
Spelling = Discriminator(lambda value: _BRANCHES.get(type(value), BRANCH_OBJECT))
"""Picks the branch by the value's own type, so that an error speaks of the branch that was meant."""

Words = Annotated[str, StringConstraints(min_length=1)]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class TextPart(Strict):
    """A piece of text in a message."""

    type: Literal["text"]
    text: Words


Detail = Literal["auto", "low", "high"]
"""How finely an image is looked at: in its own resolution, at a glance, as finely as the model can."""


def _url(url: str) -> str:
    if not url.startswith(("data:", "file:")):
        raise ValueError("must be a data: or file: URL; nothing is fetched from the network")
    return url


Url = Annotated[str, AfterValidator(_url)]


class ImageUrl(Strict):
    """Where an image is: in a data URL, or in a file of the device."""

    url: Url
    detail: Detail = "auto"


class ImagePart(Strict):
    """An image in a message, by URL."""

    type: Literal["image_url"]
    image_url: Annotated[Annotated[ImageUrl, Tag(BRANCH_OBJECT)] | Annotated[Url, Tag(BRANCH_TEXT)], Spelling]

    @property
    def url(self) -> str:
        """The URL, whichever way it was given."""
        return self.image_url if isinstance(self.image_url, str) else self.image_url.url

    @property
    def detail(self) -> Detail:
        """The detail, whichever way the URL was given."""
        return "auto" if isinstance(self.image_url, str) else self.image_url.detail


class ImageHashPart(Strict):
    """An image in a message, by the hash of bytes that are uploaded apart."""

    type: Literal["image_sha256"]
    sha256: Sha256
    detail: Detail = "auto"


Part = Annotated[TextPart | ImagePart | ImageHashPart, Field(discriminator="type")]
Parts = Annotated[tuple[Part, ...], Field(min_length=1, max_length=64)]


class Message(Strict):
    """One message of the conversation."""

    role: Literal["system", "user", "assistant"]
    content: Annotated[Annotated[Words, Tag(BRANCH_TEXT)] | Annotated[Parts, Tag(BRANCH_LIST)], Spelling]

    @property
    def text(self) -> str:
        """The message's text, its parts joined by line ends."""
        if isinstance(self.content, str):
            return self.content
        return "\n".join(part.text for part in self.content if isinstance(part, TextPart))

    @property
    def images(self) -> tuple[ImagePart | ImageHashPart, ...]:
        """The images of the message, in order."""
        if isinstance(self.content, str):
            return ()
        return tuple(part for part in self.content if not isinstance(part, TextPart))


def _plain(value: Any, depth: int = METADATA_DEPTH_MAX) -> Any:
    """Return a JSON value with sorted keys. Raises ValueError when it is too deep or no JSON."""
    if depth == 0:
        raise ValueError(f"nests deeper than {METADATA_DEPTH_MAX} levels")
    if isinstance(value, dict):
        return {key: _plain(value[key], depth - 1) for key in sorted(value)}
    if isinstance(value, list):
        return [_plain(item, depth - 1) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("holds a number that is not finite")
    return value


StopWord = Annotated[str, StringConstraints(min_length=1, max_length=256)]
StopWords = Annotated[tuple[StopWord, ...], Field(max_length=16)]


LEAST = 1e-30
"""Of a number above 0: engines compute in single precision, where less is soon 0, and what is divided by it endless."""


def _computable(number: float) -> float:
    if 0 < number < LEAST:
        raise ValueError(f"is too small to compute with; the least above 0 is {LEAST}")
    return number


def _unless_null(default: Any) -> BeforeValidator:
    """Take `null` for what is absent, as clients of OpenAI's send it, and 8.0 for 8 where JSON knows no difference."""
    whole = isinstance(default, int) and not isinstance(default, bool)

    def read(value: Any) -> Any:
        if value is None:
            return default
        return int(value) if whole and isinstance(value, float) and value.is_integer() else value

    return BeforeValidator(read)


def _other_spellings(schema: dict[str, Any]) -> None:
    """Let the JSON Schema know the names that are accepted too; the library tells only of the first."""
    properties = schema["properties"]
    properties["max_completion_tokens"] = properties["max_tokens"] | {"title": "Max Completion Tokens"}


class Request(Strict):
    """A job as asked for. Two requests are the same when they are equal once parsed."""

    model_config = ConfigDict(json_schema_extra=_other_spellings)

    job_id: JobName
    model: Annotated[str, StringConstraints(min_length=1, max_length=63), _unless_null("auto")] = "auto"
    prompt: Words | None = None
    messages: Annotated[tuple[Message, ...], Field(max_length=256)] = ()
    template: Annotated[bool, _unless_null(True)] = True
    max_tokens: Annotated[int, Field(ge=1, le=131_072), _unless_null(256)] = Field(
        256, validation_alias=AliasChoices("max_tokens", "max_completion_tokens")
    )
    temperature: Annotated[float, Field(ge=0, le=2), AfterValidator(_computable), _unless_null(0.0)] = 0.0
    top_p: Annotated[float, Field(gt=0, le=1), AfterValidator(_computable), _unless_null(1.0)] = 1.0
    top_k: Annotated[int, Field(ge=0, le=100_000), _unless_null(0)] = 0
    seed: Annotated[int, Field(ge=0, le=2**31 - 1), _unless_null(0)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10), AfterValidator(_computable), _unless_null(1.0)] = 1.0
    stop: Annotated[Annotated[StopWord, Tag(BRANCH_TEXT)] | Annotated[StopWords, Tag(BRANCH_LIST)], Spelling] | None = (
        None
    )
    response_format: ResponseFormat | None = None
    stream: Annotated[bool, _unless_null(True)] = True
    priority: Annotated[int, Field(ge=0, le=9), _unless_null(5)] = 5
    ttl_s: Annotated[float, Field(ge=1, le=7 * 86_400), _unless_null(float(TTL_DEFAULT_S))] = TTL_DEFAULT_S
    timeout_s: Annotated[float, Field(ge=1, le=86_400), _unless_null(float(TIMEOUT_DEFAULT_S))] = TIMEOUT_DEFAULT_S
    max_attempts: Annotated[int, Field(ge=1, le=10), _unless_null(3)] = 3
    metadata: Annotated[dict[str, JsonValue], AfterValidator(_plain), _unless_null({})] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _coherent(self) -> Self:
        if (self.prompt is None) == (not self.messages):
            raise ValueError("messages: give either messages or prompt, and one of them")
        if self.messages and self.messages[-1].role != "user":
            raise ValueError("messages: the last one must be from the user")
        if not self.template and self.prompt is None:
            raise ValueError("template: without one there are no messages; give the text to go on with as prompt")
        if len(to_json(self.metadata)) > METADATA_BYTES_MAX:
            raise ValueError(f"metadata: must be at most {METADATA_BYTES_MAX} bytes of JSON")
        return self

    @property
    def conversation(self) -> tuple[Message, ...]:
        """The messages, whichever way they were given."""
        return self.messages or (Message(role="user", content=self.prompt or ""),)

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings, whichever way they were given."""
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else self.stop

    @property
    def guided(self) -> bool:
        """Whether the answer must keep to something."""
        return self.response_format is not None and self.response_format.guide is not None

    @property
    def images(self) -> tuple[ImagePart | ImageHashPart, ...]:
        """The images of the request, in order."""
        return tuple(image for message in self.messages for image in message.images)

    def to_json(self) -> str:
        """Return the canonical JSON: what was given, in the order of the fields."""
        return self.model_dump_json(exclude_unset=True, by_alias=True)

    def digest(self) -> bytes:
        """Return 32 bytes that are equal for equal requests."""
        later = {"template"} if self.template else None  # than digests that are stored, which know nothing of it
        return hashlib.sha256(self.model_dump_json(exclude=later).encode()).digest()


@dataclass(frozen=True, slots=True)
class StoredRequest:
    """A request that was accepted before, as JSON until somebody needs it: it may be long, or of an earlier version."""

    text: str

    def read(self) -> Request:
        """Return it. Raises EdgeAgentError BAD_REQUEST when a version of the agent accepted it that took more."""
        try:
            return Request.model_validate_json(self.text)
        except ValidationError as error:
            field = next((str(each["loc"][0]) for each in error.errors() if each["loc"]), "the job")
            raise EdgeAgentError(
                Code.BAD_REQUEST, f"{field}: is taken no more by this version of the agent; send the job anew"
            ) from error


@dataclass(frozen=True, slots=True)
class Attached:
    """A request whose images are named by hash, and for each hash whether its bytes are here."""

    request: Request
    here: Mapping[str, bool]
