"""OpenAI's chat completions (pure): what is asked, what comes back in pieces, what a refusal means.

As documented: platform.openai.com/docs/api-reference/chat (create, streaming), docs.vllm.ai (extra parameters,
structured outputs), llama.cpp's tools/server/README.md (grammar, repeat_penalty, error types).
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from edge_agent.base.errors import Code, EdgeAgentError
from edge_agent.engine.messages import FinishReason, Generation, Guide, GuideKind, Image, TokenCounts, Turn

LINE_BYTES_MAX = 256 * 1024
"""A piece of an answer is a few hundred bytes; a longer line is no answer."""
ANSWER_BYTES_MAX = 16 * 2**20
"""Of a whole answer as it is sent: some hundred bytes a token."""
STOPS_MOST = 4
"""What the API takes; more of them are looked for here alone."""
ANY_OBJECT = {"type": "object"}

_COUNT_MAX = 10**9
_REASONS = {"stop": FinishReason.STOP, "length": FinishReason.LENGTH}
_TOO_LONG = re.compile(r"context_length_exceeded|exceed_context_size|context[_ ](length|size|window)", re.IGNORECASE)
_NAME = re.compile(r"[A-Za-z0-9_.\[\]-]{1,64}")
_MEANT = {
    401: (Code.MODEL_ERROR, "the upstream wants another key; mend key_file"),
    403: (Code.MODEL_ERROR, "the upstream does not let our key at this; mend key_file or model"),
    404: (Code.MODEL_MISSING, "the upstream has no such model, or no chat completions there; mend model or url"),
    429: (Code.QUEUE_FULL, "the upstream is busy"),
}
_FIELDS = frozenset({"messages", "max_tokens", "temperature", "top_p", "seed", "stop", "response_format"})


@dataclass(frozen=True, slots=True)
class Dialect:
    """How a server spells what OpenAI's API lacks; empty where it has no word for it.

    `apart` is told a secret for each owner, whose prompts then do without what was computed for others.
    """

    top_k: str = ""
    repetition_penalty: str = ""
    guides: Mapping[GuideKind, Callable[[str], dict[str, Any]]] | None = None
    apart: Callable[[str], dict[str, Any]] | None = None


DIALECTS: Mapping[str, Dialect] = {
    "openai": Dialect(),
    "llama-server": Dialect(
        "top_k",
        "repeat_penalty",
        {GuideKind.GRAMMAR: lambda text: {"grammar": text}},
        lambda _secret: {"cache_prompt": False},
    ),
    "vllm": Dialect(
        "top_k",
        "repetition_penalty",
        {
            GuideKind.GRAMMAR: lambda text: {"structured_outputs": {"grammar": text}},
            GuideKind.REGEX: lambda text: {"structured_outputs": {"regex": text}},
        },
        lambda secret: {"cache_salt": secret},
    ),
}


def request(
    generation: Generation, *, model: str, server: str, data_url: Callable[[Image], str], secret: str = ""
) -> dict[str, Any]:
    """Return the body of a request; `secret` is its owner's, empty where owners share.

    Raises EdgeAgentError UNSUPPORTED for what the server has no word for.
    """
    body: dict[str, Any] = {
        "model": model,
        "messages": [_message(turn, data_url) for turn in generation.turns],
        "max_tokens": generation.max_tokens,
        "temperature": generation.temperature,
        "top_p": generation.top_p,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if generation.seed is not None:
        body["seed"] = generation.seed
    if generation.stop:
        body["stop"] = list(generation.stop[:STOPS_MOST])
    dialect = DIALECTS[server]
    for field, neutral in (("top_k", 0), ("repetition_penalty", 1.0)):
        value, name = getattr(generation, field), getattr(dialect, field)
        if value == neutral:
            continue
        if not name:
            raise EdgeAgentError(Code.UNSUPPORTED, f"{field}: the upstream's API has no such thing; leave it out")
        body[name] = value
    if secret and dialect.apart is not None:
        body |= dialect.apart(secret)
    return body | ({} if generation.guide is None else _shape(generation.guide, dialect))


def _message(turn: Turn, data_url: Callable[[Image], str]) -> dict[str, Any]:
    if not turn.images:
        return {"role": turn.role, "content": turn.text}
    images = [{"type": "image_url", "image_url": {"url": data_url(image)}} for image in turn.images]
    return {"role": turn.role, "content": [*images, {"type": "text", "text": turn.text}]}


def _shape(guide: Guide, dialect: Dialect) -> dict[str, Any]:
    if guide.kind is GuideKind.JSON_SCHEMA:
        schema = json.loads(guide.text)
        if schema == ANY_OBJECT:
            return {"response_format": {"type": "json_object"}}
        named = {"name": "answer", "strict": True, "schema": schema}
        return {"response_format": {"type": "json_schema", "json_schema": named}}
    told = (dialect.guides or {}).get(guide.kind)
    if told is None:
        raise EdgeAgentError(
            Code.UNSUPPORTED, f"response_format: the upstream takes no {guide.kind}; ask for a json_schema"
        )
    return told(guide.text)


class Lines:
    """Cuts an answer into lines. Raises EdgeAgentError MODEL_ERROR for a line or an answer without end."""

    def __init__(self) -> None:
        self._rest = b""
        self._total_bytes = 0

    def feed(self, piece: bytes) -> Iterator[bytes]:
        """Yield the lines that a piece completes."""
        self._total_bytes += len(piece)
        if self._total_bytes > ANSWER_BYTES_MAX:
            raise EdgeAgentError(Code.MODEL_ERROR, f"the upstream sent over {ANSWER_BYTES_MAX // 2**20} MiB of answer")
        *lines, self._rest = (self._rest + piece).split(b"\n")
        if any(len(line) > LINE_BYTES_MAX for line in (*lines, self._rest)):
            raise EdgeAgentError(Code.MODEL_ERROR, f"the upstream sent a line of over {LINE_BYTES_MAX // 1024} KiB")
        yield from lines


@dataclass(frozen=True, slots=True)
class AnswerPiece:
    """A piece of an answer: `alive` when it is the model's, with text or without; `done` when nothing follows."""

    text: str = ""
    alive: bool = False
    reason: FinishReason | None = None
    usage: TokenCounts | None = None
    done: bool = False


def read(line: bytes) -> AnswerPiece | None:
    """Return what a line of the stream says; None for what is for the connection only.

    Raises EdgeAgentError for an error in the middle of a stream, MODEL_ERROR for what is no such stream.
    """
    line = line.rstrip(b"\r")
    field, _, value = line.partition(b":")
    if field in {b"", b"event", b"id", b"retry"}:  # blank lines, comments, and what the API makes no use of
        return None
    if field != b"data":
        raise EdgeAgentError(Code.MODEL_ERROR, "the upstream answers with something else than a stream of events")
    if value.strip() == b"[DONE]":
        return AnswerPiece(done=True)
    try:
        return _piece(json.loads(value), value)
    except (ValueError, TypeError, AttributeError, KeyError, IndexError, RecursionError) as error:
        raise EdgeAgentError(Code.MODEL_ERROR, "the upstream sent a piece that cannot be read") from error


def _piece(chunk: Any, sent: bytes) -> AnswerPiece:
    if "error" in chunk:
        raise refusal(200, sent)
    usage, choices = _usage(chunk.get("usage")), chunk.get("choices") or []
    if not choices:
        return AnswerPiece(usage=usage)
    text = (choices[0].get("delta") or {}).get("content") or ""
    if not isinstance(text, str):
        raise TypeError("content is no text")
    return AnswerPiece(text, alive=True, reason=_reason(choices[0].get("finish_reason")), usage=usage)


def _reason(told: object) -> FinishReason | None:
    if told is None:
        return None
    if told == "content_filter":
        raise EdgeAgentError(Code.MODEL_ERROR, "the upstream's own filter held the answer back; ask otherwise")
    return _REASONS.get(str(told), FinishReason.STOP)


def _usage(told: Any) -> TokenCounts | None:
    if told is None:
        return None
    counts = told["prompt_tokens"], told["completion_tokens"], (told.get("prompt_tokens_details") or {})
    cached = counts[2].get("cached_tokens") or 0
    if not all(isinstance(each, int) and 0 <= each <= _COUNT_MAX for each in (*counts[:2], cached)):
        raise TypeError("usage")
    return TokenCounts(counts[0], counts[1], min(cached, counts[0]))


def refusal(status: int, body: bytes) -> EdgeAgentError:
    """Return what a refusal means for the job. Nothing the server says is repeated but the names of its codes.

    QUEUE_FULL and ENGINE_DIED may be gone at the next try.
    """
    fault = _fault(body)
    code, kind, said = (str(fault.get(name) or "") for name in ("code", "type", "message"))
    field = str(fault.get("param") or "").split(".")[0].split("[")[0]
    if _TOO_LONG.search(f"{code} {kind} {said}"):
        meant = Code.PROMPT_TOO_LONG, "messages: prompt and answer are longer than the upstream's context; shorten them"
    elif code == "insufficient_quota":
        meant = Code.MODEL_ERROR, "the upstream's quota is used up; see to the account"
    elif status in {400, 422} and field in _FIELDS:
        meant = Code.BAD_REQUEST, f"{field}: the upstream refuses it"
    elif status in {200, 408, 425} or status >= 500:
        meant = Code.ENGINE_DIED, "the upstream failed"
    elif 300 <= status < 400:
        meant = Code.MODEL_ERROR, "the upstream sends us elsewhere, where nothing of ours goes; mend url"
    else:
        meant = _MEANT.get(status, (Code.MODEL_ERROR, "the upstream refuses the request"))
    named = next((f", {each}" for each in (code, kind) if _NAME.fullmatch(each) and not each.isdigit()), "")
    return EdgeAgentError(meant[0], f"{meant[1]} ({status}{named})")


def _fault(body: bytes) -> Mapping[str, Any]:
    """Return the error in an answer; empty when there is none that can be read."""
    try:
        error = json.loads(body)
        error = error.get("error", error)
        return error if isinstance(error, dict) else {"message": error}
    except (ValueError, AttributeError, RecursionError):
        return {}
