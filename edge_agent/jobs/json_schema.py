"""What the keywords of a JSON Schema may hold (pure), by the standard and for any library that reads it.

Libraries look at a schema with the eyes of their language, and fail in as many ways when a keyword holds something
else: so that is refused before. What a schema may ask for here is another question, see engine/guides/guide.py.
"""

import math
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

SCHEMA = frozenset({"items", "additionalProperties", "propertyNames"})
"""Keywords that hold a schema,"""
SCHEMAS = frozenset({"anyOf", "oneOf", "allOf", "prefixItems"})
"""several in a list,"""
NAMED = frozenset({"properties", "$defs", "definitions", "patternProperties"})
"""several by name."""
NUMBERS = frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"})
EXCLUSIVE = frozenset({"exclusiveMinimum", "exclusiveMaximum"})
COUNTS = frozenset({"minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"})
TEXTS = frozenset(
    {"title", "description", "$schema", "$id", "$comment", "$anchor", "$ref"}  # and those that ask for a text
    | {"format", "pattern"}
)
FLAGS = frozenset({"deprecated", "readOnly", "writeOnly", "uniqueItems"})
TYPES = frozenset({"string", "integer", "number", "boolean", "null", "array", "object"})

_Rule = tuple[str, Callable[[Any], bool]]


def _is_list(value: Any) -> bool:
    return isinstance(value, list)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_type(value: Any) -> bool:
    kinds = value if isinstance(value, list) and value else [value]
    return all(isinstance(kind, str) and kind in TYPES for kind in kinds)


def _is_schema(value: Any) -> bool:
    return isinstance(value, dict | bool)


_RULES: Mapping[str, _Rule] = {
    **dict.fromkeys(SCHEMA, ("a schema", _is_schema)),
    "items": (
        "a schema",
        lambda value: _is_schema(value) or (_is_list(value) and bool(value) and all(map(_is_schema, value))),
    ),
    **dict.fromkeys(
        SCHEMAS, ("a list of schemas", lambda value: _is_list(value) and bool(value) and all(map(_is_schema, value)))
    ),
    **dict.fromkeys(
        NAMED,
        ("an object of schemas", lambda value: isinstance(value, dict) and all(map(_is_schema, value.values()))),
    ),
    **dict.fromkeys(NUMBERS, ("a number", _is_number)),
    **dict.fromkeys(EXCLUSIVE, ("a number", lambda value: _is_number(value) or isinstance(value, bool))),  # draft 4
    **dict.fromkeys(
        COUNTS, ("a whole number from 0", lambda value: _is_number(value) and isinstance(value, int) and value >= 0)
    ),
    **dict.fromkeys(TEXTS, ("a string", lambda value: isinstance(value, str))),
    **dict.fromkeys(FLAGS, ("true or false", lambda value: isinstance(value, bool))),
    "type": (f"one of {', '.join(sorted(TYPES))}, or a list of them", _is_type),
    "enum": ("a list of values", lambda value: _is_list(value) and bool(value)),
    "required": ("a list of names", lambda value: _is_list(value) and all(isinstance(each, str) for each in value)),
    "examples": ("a list", _is_list),
}


def check(schema: Any, *, most: float = math.inf) -> None:
    """Raise ValueError with a sentence when some keyword of a schema, or of those in it, holds what it may not.

    So does a number anywhere that is none, or nearer to 0 than double precision tells apart, or beyond `most`; and a
    NUL, at which some library's text ends. Unknown keywords pass.
    """
    if not _is_schema(schema):
        raise ValueError("a schema must be an object")
    waiting: list[tuple[Any, bool]] = [(schema, True)]
    while waiting:
        value, is_schema = waiting.pop()
        if _is_number(value) and not _usual(value, most):
            raise ValueError("a number in the schema is too large, too small or none")
        if isinstance(value, str) and "\0" in value:
            raise ValueError("there is a NUL character in the schema")
        if isinstance(value, list):
            waiting += [(each, is_schema) for each in value]
        elif isinstance(value, dict):
            waiting += [(name, False) for name in value]
            waiting += _parts(value) if is_schema else [(each, False) for each in value.values()]


def _parts(schema: Mapping[str, Any]) -> list[tuple[Any, bool]]:
    """Check a schema's own keywords; return what they hold, and whether those are schemas."""
    parts: list[tuple[Any, bool]] = []
    for keyword, value in schema.items():
        what, holds = _RULES.get(keyword, ("", None))
        if holds is not None and not holds(value):
            raise ValueError(f"{keyword} must be {what}")
        if keyword in NAMED:
            parts += [(name, False) for name in value] + [(each, True) for each in value.values()]
        else:
            parts.append((value, keyword in SCHEMA | SCHEMAS))
    return parts


def _usual(number: float, most: float) -> bool:
    try:
        value = float(number)
    except OverflowError:
        return False
    return value == 0 or (sys.float_info.min <= abs(value) <= sys.float_info.max and -most < value <= most)


def circular(schema: Any, references: Iterable[str]) -> bool:
    """Return whether one of a JSON Schema's `$ref` leads to nothing but itself. What it does not find is left out."""
    targets = {each: pointed(schema, each) for each in references}
    ending: set[str] = set()
    found = -1
    while len(ending) > found:
        found = len(ending)
        ending |= {each for each, target in targets.items() if each not in ending and _says(target, ending)}
    return len(ending) < len(targets)


def _says(schema: Any, ending: Collection[str]) -> bool:
    """Return whether a schema asks for something, when the references `ending` do."""
    if not isinstance(schema, Mapping):
        return True
    if isinstance(reference := schema.get("$ref"), str):
        return reference in ending
    for some, keyword in ((any, "anyOf"), (any, "oneOf"), (all, "allOf")):
        if isinstance(inner := schema.get(keyword), list):
            return some(_says(each, ending) for each in inner)
    return True


def references(schema: Any) -> Iterator[str]:
    """Yield every `$ref` of a schema that `check` has passed, and of those in it."""
    waiting = [(schema, True)]
    while waiting:
        value, is_schema = waiting.pop()
        if isinstance(value, list):
            waiting += [(each, is_schema) for each in value]
        elif is_schema and isinstance(value, dict):
            if "$ref" in value:
                yield value["$ref"]
            waiting += _parts(value)


def leads_to_schema(schema: Any, reference: str) -> bool:
    """Return whether a reference leads to a schema in this one, and not to something else in it, or elsewhere."""
    base, *path = reference.split("/")
    steps = iter(path)
    for step in steps:
        if step not in SCHEMA and (step not in NAMED or next(steps, None) is None):
            return False
    return base == "#" and isinstance(pointed(schema, reference), dict | bool)


def pointed(schema: Any, reference: str) -> Any:
    """Return what a reference points to in a schema; None when that is not there, or elsewhere."""
    base, *path = reference.split("/")
    if base != "#":
        return None
    for step in path:
        schema = schema.get(step.replace("~1", "/").replace("~0", "~")) if isinstance(schema, Mapping) else None
    return schema
