"""What crosses the socket between the agent and an engine child: length-prefixed JSON.

Each message is a frozen dataclass; its class name travels as `"type"`. A frame is a
4-byte big-endian length and that many bytes of UTF-8 JSON.
"""

import dataclasses
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NewType

from edge_agent.base.errors import Code

JobId = NewType("JobId", str)
"""One attempt at one job, as the engine knows it: `"{row}.{attempt}"`. Never used twice."""

FRAME_BYTES_MAX = 4 * 1024 * 1024
"""A frame longer than this is a broken peer: a request is at most 128 kB, JSON escapes at most sextuple it."""

_LENGTH = struct.Struct(">I")


class FinishReason(StrEnum):
    """Why a generation ended."""

    STOP = "stop"
    LENGTH = "length"
    CANCELED = "canceled"


@dataclass(frozen=True, slots=True)
class Image:
    """An image for a prompt, decoded: a file of `width` x `height` x 3 bytes and nothing else, RGB, rows from the top.

    `sha256` is the file's, in hex, or where owners are kept apart a name that only this owner's images have. `tiles`
    are what the model may spend on it, see jobs.tiles.
    """

    path: str
    sha256: str
    width: int
    height: int
    tiles: int


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of a conversation: `role` is `system`, `user` or `assistant`; its images stand before its text."""

    role: str
    text: str
    images: tuple[Image, ...] = ()


class GuideKind(StrEnum):
    """What a guide's text is written in."""

    JSON_SCHEMA = "json_schema"
    REGEX = "regex"
    GRAMMAR = "grammar"


@dataclass(frozen=True, slots=True)
class Guide:
    """What a text must look like: a JSON Schema as JSON, a regular expression, or a grammar in llama.cpp's EBNF.

    Whatever is kept of one is kept for its `owner`, see Generation.
    """

    kind: GuideKind
    text: str
    owner: str = ""


@dataclass(frozen=True, slots=True)
class Generation:
    """Everything an engine needs to answer one job.

    Without `template` the one turn's text is gone on with as it is. `temperature` 0 means greedy; `top_k` 0 means no
    limit; `seed` None means a fresh one; `stop` strings end the text before their first occurrence; with a `guide` only
    tokens are chosen that keep to it.
    What was computed for one `owner` serves no other: neither the time that an answer takes nor `cached_tokens` tells
    what others asked. All generations without one are of the same nobody.
    """

    job_id: JobId
    turns: tuple[Turn, ...]
    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    guide: Guide | None = None
    owner: str = ""
    template: bool = True


@dataclass(frozen=True, slots=True)
class ModelLimits:
    """What a loaded model can take; `context_tokens` counts prompt and answer, `parallel` sequences at once."""

    context_tokens: int
    parallel: int
    images_per_prompt: int = 0


@dataclass(frozen=True, slots=True)
class TokenCounts:
    """Tokens counted by the engine; `completion_tokens` includes the end-of-turn token when the model produced one."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Canary:
    """What a loaded model is asked before anybody else may ask it, see canary.py.

    One of `expected` stands in a sound answer, `after_long` prompts too; without any nobody knows one. `reference` is
    what the same build began with on the processor; empty where it never ran there.
    """

    prompt: str = "Hello"
    expected: tuple[str, ...] = ()
    after_long: bool = False
    reference: str = ""


# From the agent to the engine


@dataclass(frozen=True, slots=True)
class Load:
    """The first message to an engine: what to load, as in ModelSpec, and what to ask it then; None: no trial."""

    path: str
    backend: str
    context_tokens: int
    parallel: int
    threads: int
    device: str = "cpu"
    options: Mapping[str, str] = field(default_factory=dict)
    canary: Canary | None = None
    apart: bool = False


@dataclass(frozen=True, slots=True)
class Start:
    """Begin this generation."""

    generation: Generation


@dataclass(frozen=True, slots=True)
class Cancel:
    """Stop this job; answered by `Finished` with reason `canceled` unless it has ended already."""

    job_id: JobId


@dataclass(frozen=True, slots=True)
class Rest:
    """From now on rest this share of the time between steps, 0 … below 1, so that the machine cools down."""

    share: float


@dataclass(frozen=True, slots=True)
class Close:
    """Unload and exit."""


# From the engine to the agent


@dataclass(frozen=True, slots=True)
class Trying:
    """A sign of life: the model is loaded and tried now; so many tokens of the prompt are still to be computed."""

    unprocessed_tokens: int


@dataclass(frozen=True, slots=True)
class Ready:
    """The model is loaded, warm, and has passed its trial. `library` is `name version`; `load_ms` covers all of that.

    `heard` is what its answer to the canary's prompt began with, for comparison with other devices.
    """

    limits: ModelLimits
    load_ms: float
    library: str
    device: str
    heard: str = ""


@dataclass(frozen=True, slots=True)
class LoadFailed:
    """The model cannot be loaded; the child exits. The message says what to do next."""

    code: Code
    message: str


@dataclass(frozen=True, slots=True)
class Progress:
    """A piece of prefill was computed, or is about to be: `unprocessed_tokens` are still to come.

    `prefill_tokens` were computed in `prefill_ms` since the last such message (0 when none were). Also comes while
    text is generated, when the model must compute the whole sequence anew.
    """

    job_id: JobId
    unprocessed_tokens: int
    prefill_tokens: int = 0
    prefill_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class Text:
    """New text and the number of tokens computed for it; never part of a stop string or of a character.

    The text is empty when its tokens complete no character or may begin a stop string: then it still is a sign of
    life. The tokens of all Text messages of a job sum up to its `completion_tokens`.
    """

    job_id: JobId
    text: str
    tokens: int


@dataclass(frozen=True, slots=True)
class Finished:
    """The generation ended in order. All its text was sent before.

    `prompt_ms` runs from the first piece of prefill to the last, `generate_ms` from there to the end, by the clock:
    both include the share of neighbours.
    """

    job_id: JobId
    reason: FinishReason
    usage: TokenCounts
    prompt_ms: float
    generate_ms: float


@dataclass(frozen=True, slots=True)
class Failed:
    """This job failed; the engine and its other jobs go on."""

    job_id: JobId
    code: Code
    message: str


type_names: dict[str, type] = {
    t.__name__: t
    for t in (Load, Start, Cancel, Rest, Close, Trying, Ready, LoadFailed, Progress, Text, Finished, Failed)
}

Command = Load | Start | Cancel | Rest | Close
Event = Progress | Text | Finished | Failed
Message = Command | Event | Trying | Ready | LoadFailed


def encode(message: Message) -> bytes:
    """Return the frame of a message."""
    fields = dataclasses.asdict(message)
    fields["type"] = type(message).__name__
    body = json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode()
    return _LENGTH.pack(len(body)) + body


def decode(body: bytes) -> Message:
    """Return the message in a frame's body. Raises ValueError, KeyError or TypeError when the peer is not ours."""
    fields: dict[str, Any] = json.loads(body)
    kind = type_names[fields.pop("type")]
    if kind is Start:
        generation = fields["generation"]
        turns = tuple(
            Turn(**turn | {"images": tuple(Image(**image) for image in turn["images"])})
            for turn in generation.pop("turns")
        )
        stop = tuple(generation.pop("stop"))
        guide = generation.pop("guide")
        if guide is not None:
            guide = Guide(GuideKind(guide["kind"]), guide["text"], guide["owner"])
        return Start(Generation(turns=turns, stop=stop, guide=guide, **generation))
    if kind is Load and (canary := fields["canary"]):
        fields["canary"] = Canary(**canary | {"expected": tuple(canary["expected"])})
    if kind is Ready:
        return Ready(**fields | {"limits": ModelLimits(**fields["limits"])})
    if kind is Finished:
        return Finished(**fields | {"reason": FinishReason(fields["reason"]), "usage": TokenCounts(**fields["usage"])})
    if kind in (Failed, LoadFailed):
        fields["code"] = Code(fields["code"])
    message: Message = kind(**fields)
    return message


class FrameReader:
    """Cuts a byte stream into frame bodies."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, chunk: bytes) -> list[bytes]:
        """Return the bodies completed by these bytes. Raises ValueError for a frame over FRAME_BYTES_MAX."""
        self._buffer += chunk
        bodies = []
        while len(self._buffer) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._buffer)
            if length > FRAME_BYTES_MAX:
                raise ValueError(f"a frame of {length} bytes is over the limit of {FRAME_BYTES_MAX}")
            end = _LENGTH.size + length
            if len(self._buffer) < end:
                break
            bodies.append(bytes(self._buffer[_LENGTH.size : end]))
            del self._buffer[:end]
        return bodies
