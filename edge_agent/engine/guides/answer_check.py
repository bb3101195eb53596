"""Whether an answer in JSON is of the schema that it was guided by; a mistake there is ours, and is said.

Guides are followed token by token, by libraries and grammars that read the schema each in their way. The judge is a
third: what it turns down never counts as an answer.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from jsonschema import Draft202012Validator, ValidationError
from jsonschema.validators import extend

from edge_agent.base.errors import Code, EdgeAgentError
from edge_agent.engine.guides.guide import TOO_SLOW
from edge_agent.engine.guides.schema import respelled
from edge_agent.engine.messages import (
    Event,
    Failed,
    Finished,
    FinishReason,
    Generation,
    GuideKind,
    JobId,
    Text,
)

LOOKS_MOST = 20_000
"""About a third of a second of a core; an answer of thousands of values takes fewer."""
_NESTED = re.compile(r"[*+}]\)?[^()]*\)(?:[*+]|\{)|\|[^()]*\)(?:[*+]|\{)")
_WRONG = "response_format: the answer broke its schema, which is our mistake; tell the makers of edge-agent"


class AnswerCheck:
    """Holds the texts of answers that are under way, of those that a schema guides."""

    def __init__(self) -> None:
        self._schemas: dict[JobId, str] = {}
        self._texts: dict[JobId, list[str]] = {}

    def begun(self, generation: Generation) -> None:
        """Take in that an answer will come."""
        if generation.guide is not None and generation.guide.kind is GuideKind.JSON_SCHEMA and not generation.stop:
            self._schemas[generation.job_id] = generation.guide.text
            self._texts[generation.job_id] = []

    def judged(self, event: Event) -> Event:
        """Return an event of an engine as it may be told: a whole answer that breaks its schema has failed."""
        match event:
            case Text(job_id, text) if job_id in self._texts:
                self._texts[job_id].append(text)
            case Finished(job_id, reason) if job_id in self._texts:
                text, schema = "".join(self._texts.pop(job_id)), self._schemas.pop(job_id)
                if reason is FinishReason.STOP:
                    try:
                        check(text, schema)
                    except EdgeAgentError as error:
                        return Failed(job_id, error.code, error.message)
            case Failed(job_id):
                self._texts.pop(job_id, None)
                self._schemas.pop(job_id, None)
        return event


def check(text: str, schema: str) -> None:
    """Judge a whole answer by its schema.

    Raises EdgeAgentError INVALID_ANSWER when it is none, BAD_REQUEST when that takes too long to tell.
    """
    try:
        valid = _judge(LOOKS_MOST)(respelled(json.loads(schema))).is_valid(json.loads(text))
    except (ValueError, RecursionError):
        valid = False
    except TimeoutError:
        raise EdgeAgentError(Code.BAD_REQUEST, TOO_SLOW) from None
    if not valid:
        raise EdgeAgentError(Code.INVALID_ANSWER, _WRONG)


def _judge(looks: int) -> Any:
    """Return what judges a value, and raises TimeoutError after so many looks at references and alternatives.

    Alternatives within alternatives are looked at again for each above them: that can double with every level.
    """
    left = iter(range(looks))

    def counted(keyword: str) -> Callable[..., Any]:
        look = Draft202012Validator.VALIDATORS[keyword]

        def looked(*of_the_library: Any) -> Any:
            if next(left, None) is None:
                raise TimeoutError
            return look(*of_the_library)

        return looked

    untyped: Any = extend
    keywords = {keyword: counted(keyword) for keyword in ("$ref", "anyOf", "oneOf", "allOf")}
    return untyped(Draft202012Validator, {**keywords, "pattern": _pattern, "patternProperties": _unjudged})


def _unjudged(*_of_the_library: Any) -> Iterator[ValidationError]:
    """Leave names by rules to the guide, for the same reason."""
    return iter(())


def _pattern(_judge: Any, pattern: str, value: Any, _schema: Mapping[str, Any]) -> Iterator[ValidationError]:
    """Hold a text against an expression as guides read it: digits and letters are those of ASCII.

    One that repeats what repeats is left to them: Python may think about it for ever.
    """
    if not isinstance(value, str) or _NESTED.search(pattern):
        return
    try:
        found = re.search(pattern, value, re.ASCII)
    except re.error:
        return  # one that only the engine's library knows
    if not found:
        yield ValidationError("the pattern")
