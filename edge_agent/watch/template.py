"""Texts with variables: `A {{ json.after.label }} at {{ topic.2 }}` (pure).

A fixed language without code: a variable is looked up by its name, in what came on a topic, and nothing else can be
said. `{{ NAME | WORDS }}` gives the words where there is no such field; without them there is no text.
"""

import re
from dataclasses import dataclass
from typing import Any

from pydantic_core import to_json

CHARACTERS_MAX = 16_384
SLOTS_MAX = 64
DEPTH_MAX = 16
LEVEL_MAX = 64
KNOWN = "there are topic, topic.1 (its first level), payload, json.FIELD and json.FIELD.FIELD"

_SLOT = re.compile(r"\{\{(.*?)\}\}", re.DOTALL)
_NAME = re.compile(r"[^\s.{}|]+(\.[^\s.{}|]+)*\Z")

Path = tuple[str, ...]
"""A variable, cut at its dots."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What came on a topic.

    `payload` is there where it may be a text; `body` is it as JSON, None when it is none; `image` is the payload where
    it is an image. What is `too_large` is not read.
    """

    topic: str
    payload: bytes = b""
    body: Any = None
    image: bytes | None = None
    too_large: bool = False

    @property
    def speaks(self) -> bool:
        """Whether there is a text."""
        return self.body is not None or self.text is not None

    @property
    def text(self) -> str | None:
        """The payload as UTF-8, None when it is none; made anew each time, for it may be large."""
        try:
            return self.payload.decode() or None
        except UnicodeDecodeError:
            return None


class UnfilledError(Exception):
    """A template has no text for a message: `field`, a name the template's author chose, is missing or null."""

    def __init__(self, field: str) -> None:
        super().__init__(field)
        self.field = field


class LengthError(Exception):
    """The text would be longer than allowed."""


def path(name: str) -> Path:
    """Return a variable by its name. Raises ValueError with a sentence when there is none."""
    parts = tuple(name.split("."))
    if not _NAME.match(name) or parts[0] not in {"topic", "payload", "json"}:
        raise ValueError(f"no variable is called {name!r}; {KNOWN}")
    if len(parts) > DEPTH_MAX:
        raise ValueError(f"{name!r} has more than {DEPTH_MAX} parts")
    match parts:
        case ["topic"] | ["payload"] | ["json", _, *_]:
            return parts
        case ["topic", level] if re.fullmatch(r"[1-9][0-9]?", level) and int(level) <= LEVEL_MAX:
            return parts
    raise ValueError(f"no variable is called {name!r}; {KNOWN}")


def lookup(variable: Path, seen: Seen) -> Any:
    """Return a variable's value in a message, None when there is none; null counts as none."""
    match variable:
        case ["topic"]:
            return seen.topic
        case ["topic", level]:
            levels = seen.topic.split("/")
            return levels[int(level) - 1] if int(level) <= len(levels) else None
        case ["payload"]:
            return seen.text
    value = seen.body
    for part in variable[1:]:
        if isinstance(value, dict):
            value = value.get(part)
        elif isinstance(value, list) and re.fullmatch(r"[0-9]{1,6}", part) and int(part) < len(value):
            value = value[int(part)]
        else:
            return None
    return value


def spell(value: Any) -> str:
    """Return a value as it stands in a text: words as they are, everything else as JSON."""
    return value if isinstance(value, str) else to_json(value).decode()


@dataclass(frozen=True, slots=True)
class Slot:
    """A place for a variable; `default` stands there when the message has none."""

    variable: Path
    default: str | None = None

    @property
    def name(self) -> str:
        """The variable as it is written."""
        return ".".join(self.variable)

    def fill(self, seen: Seen) -> str:
        """Return what stands here for a message. Raises UnfilledError."""
        value = lookup(self.variable, seen)
        if value is not None:
            return spell(value)
        if self.default is None:
            raise UnfilledError(self.name)
        return self.default


@dataclass(frozen=True, slots=True)
class Template:
    """A text with slots."""

    parts: tuple[str | Slot, ...]

    @classmethod
    def parse(cls, text: str) -> "Template":
        """Return the template of a text. Raises ValueError with a sentence that says what is wrong."""
        if not text or len(text) > CHARACTERS_MAX:
            raise ValueError(f"must have 1 to {CHARACTERS_MAX} characters")
        pieces = _SLOT.split(text)
        if any("{{" in literal for literal in pieces[::2]):
            raise ValueError("has {{ without }}")
        if len(pieces) // 2 > SLOTS_MAX:
            raise ValueError(f"has more than {SLOTS_MAX} variables")
        parts = [_slot(piece) if number % 2 else piece for number, piece in enumerate(pieces)]
        return cls(tuple(part for part in parts if part != ""))

    @property
    def slots(self) -> tuple[Slot, ...]:
        """The places for variables, in order."""
        return tuple(part for part in self.parts if isinstance(part, Slot))

    def render(self, seen: Seen, *, bytes_max: int) -> str:
        """Return the text for a message. Raises UnfilledError or LengthError."""
        pieces = []
        room = bytes_max
        for part in self.parts:
            piece = part.fill(seen) if isinstance(part, Slot) else part
            room -= len(piece.encode(errors="replace"))
            if room < 0:
                raise LengthError
            pieces.append(piece)
        return "".join(pieces)


def _slot(inner: str) -> Slot:
    name, bar, default = inner.partition("|")
    return Slot(path(name.strip()), default.strip() if bar else None)
