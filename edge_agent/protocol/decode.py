"""What agents say of themselves and of jobs, as others hear it.

The broker's ACL vouches for the agent in the topic, and for nothing in the payload.
"""

from typing import TypeVar

from pydantic import BaseModel, JsonValue, ValidationError
from pydantic_core import from_json

T = TypeVar("T", bound=BaseModel)

TEXT_MOST = 500
"""Characters of one text that are shown of a foreign message."""
NUMBER_MOST = 1e18
"""No honest reading is larger: bytes, milliseconds, tokens."""


def hear(kind: type[T], payload: bytes, agent: str) -> T:
    """Return a payload as it is; fields of newer agents are passed over.

    Raises ValueError when it is none, or names another agent than the topic.
    """
    return _of(agent, kind.model_validate_json(payload, extra="ignore"))


def show(kind: type[T], payload: bytes, agent: str, *, bytes_max: int) -> T:
    """Return a payload that is safe to show: printable texts of at most TEXT_MOST characters, numbers of sane size.

    It holds no control codes of a terminal. Raises ValueError as `hear` does, and when it is over `bytes_max`.
    """
    if len(payload) > bytes_max:
        raise ValueError("the payload is too large to be shown")
    body = _tame(from_json(payload, allow_inf_nan=False, cache_strings="keys"))
    try:
        return _of(agent, kind.model_validate(body, extra="ignore"))
    except ValidationError as error:
        raise ValueError(f"not a {kind.__name__}") from error


def printable(text: str, most: int = TEXT_MOST) -> str:
    """Return a text without what moves a terminal's cursor, changes colours or turns the direction of writing."""
    shown = "".join(letter if letter.isprintable() else " " if letter.isspace() else "?" for letter in text[:most])
    return shown if len(text) <= most else f"{shown[: most - 1]}…"


def _tame(value: JsonValue) -> JsonValue:
    match value:
        case str():
            return printable(value)
        case bool() | None:
            return value
        case int() | float():
            if abs(value) > NUMBER_MOST:
                raise ValueError("a number is too large to be true")
            return value
        case list():
            return [_tame(each) for each in value]
        case dict():
            return {printable(name): _tame(each) for name, each in value.items()}


def _of(agent: str, body: T) -> T:
    if getattr(body, "agent", None) != agent:
        raise ValueError("the payload names another agent than the topic")
    return body
