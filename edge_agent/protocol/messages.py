"""Bytes to types, here and nowhere else; what is said in return is in encode.py."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json, to_json

from edge_agent.base.errors import Code, EdgeAgentError
from edge_agent.jobs.request import BRANCH_LIST, BRANCH_OBJECT, BRANCH_TEXT, Request
from edge_agent.protocol.order_payloads import ModelOrder
from edge_agent.protocol.payloads import JobRef

PAYLOAD_BYTES_MAX = 128 * 1024
"""Hosted brokers allow this much; images travel apart."""
CORRELATION_BYTES_MAX = 64
TRACEPARENT_BYTES_MAX = 128
PARTS_MAX = 4096
"""A photo of 16 MiB in parts of 4 KiB."""
UNREADABLE = "unreadable"
"""The job id under which a request is answered whose own cannot be read."""
HEADER_BYTES = 512
"""Room for everything but topic and payload in a packet: fixed header, lengths, our properties."""


HOPS = "edge-agent-hops"
"""The user property of a watch's answer that counts the answers it came from."""

STATUS_EXPIRY_S = 3600
CHUNK_EXPIRY_S = 30
RESULT_EXPIRY_S = 86_400
TELEMETRY_PERIODS = 3

_BRANCHES = {BRANCH_TEXT: "a string", BRANCH_LIST: "a list", BRANCH_OBJECT: "an object"}

_FIELDS = frozenset(
    {*Request.model_fields, *ModelOrder.model_fields, "ResponseTopic", "CorrelationData", "traceparent"}
    | {"sha256", "part", "parts", "image"}
)

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


_BOUNDS = ("max_tokens", "max_completion_tokens")


def decode_request(payload: bytes) -> Request:
    """Return a job request. Raises EdgeAgentError BAD_REQUEST or PAYLOAD_TOO_LARGE."""
    return _decode(Request, _with_one_bound(payload))


def _with_one_bound(payload: bytes) -> bytes:
    """Return a body without the name of the token bound that is null beside the other: some clients send both."""
    if len(payload) > PAYLOAD_BYTES_MAX or not all(f'"{name}"'.encode() in payload for name in _BOUNDS):
        return payload
    try:
        body = from_json(payload, cache_strings="keys")
    except ValueError:
        return payload  # to be refused
    spare = [name for name in _BOUNDS if isinstance(body, dict) and body.get(name, 0) is None]
    return to_json({name: value for name, value in body.items() if name != spare[0]}) if spare else payload


def decode_ref(payload: bytes) -> JobRef:
    """Return the job a command speaks of. Raises EdgeAgentError BAD_REQUEST or PAYLOAD_TOO_LARGE."""
    return _decode(JobRef, payload)


def decode_image(inbound: Inbound) -> ImagePiece:
    """Return what a message brings of an image. Raises EdgeAgentError BAD_REQUEST.

    Without the user property `sha256` the hash is taken of the payload, which then must be the whole image.
    """
    if not inbound.payload:
        raise EdgeAgentError(Code.BAD_REQUEST, "the payload is empty; an image, or a part of one, has bytes")
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


def loggable(sentence: str) -> str:
    """Return such a sentence for a log: with the names of our fields alone, for all others are the sender's words."""
    parts = [part.partition(": ") for part in sentence.split("; ")]
    return "; ".join(f"{_ours(name)}{colon}{rest}" if colon else name for name, colon, rest in parts)


def _ours(path: str) -> str:
    name = path.split(".", maxsplit=1)[0]
    return name if name in _FIELDS else "a field"


def _fault(fault: Any) -> str:
    kind, context = fault["type"], fault.get("ctx", {})
    field = ".".join(_printable(str(part)) for part in fault["loc"] if part not in _BRANCHES)
    if kind == "json_invalid":
        return "the payload is not valid JSON"  # the library's sentence quotes none of it, but ours is enough
    if kind == "extra_forbidden" and field == "max_completion_tokens":
        return f"{field}: is another name of max_tokens; give one of them"
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
