"""A JSON Schema as a grammar (pure), for a library whose own translation lets white space run on for ever.

Between the parts of an answer stands nothing, a space, or a new line and as many spaces as fit below. Parts come in the
order of the schema, and none that it does not name, unless it says `additionalProperties`: as the library does it.
What is not translated is left to the library: rarer formats and patterns, bounds of numbers that are no whole ones,
names of properties by rules, schemas beside a `$ref`, and those that take more than RULES_MAX rules.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from edge_agent.engine.guides.number_grammar import NUMBER_MAX, integers, numbers
from edge_agent.engine.guides.pattern_grammar import PLAIN, matching
from edge_agent.jobs.json_schema import pointed

RULES_MAX = 256
"""Translating a grammar looks through all rules once for each; the library's own way takes large schemas better."""
SPACES_MAX = 24
"""After a new line."""
_IGNORED = frozenset(
    {"title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly"}
    | {"$schema", "$id", "$comment", "$anchor", "$defs", "definitions"}
)
_RULES: Mapping[str, str] = {
    "space": f'" "? | "\\n" [ \\t]{{0,{SPACES_MAX}}}',
    "hex": "[0-9a-fA-F]",
    "character": rf'{PLAIN} | "\\" (["\\/bfnrt] | "u" hex hex hex hex)',
    "string": r'"\"" character* "\""',
    "natural": '"0" | [1-9] [0-9]*',
    "integer": '"-"? natural',
    "number": 'integer ("." [0-9]+)? ([eE] [+\\-]? [0-9]+)?',
    "boolean": '"true" | "false"',
    "null": '"null"',
    "member": 'string space ":" space any space',
    "object": '"{" space (member ("," space member)*)? "}"',
    "array": '"[" space (any space ("," space any space)*)? "]"',
    "any": "object | array | string | number | boolean | null",
}
_DATE = '[0-9]{4} "-" ("0" [1-9] | "1" [0-2]) "-" ("0" [1-9] | "1" [0-9] | "2" [0-8])'
"""No day that some month lacks."""
_HOUR = '([01] [0-9] | "2" [0-3])'
_TIME = f'{_HOUR} ":" [0-5] [0-9] ":" [0-5] [0-9] ("." [0-9]{{1,9}})? ("Z" | [+\\-] {_HOUR} ":" [0-5] [0-9])'
_FORMATS: Mapping[str, str] = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f'{_DATE} "T" {_TIME}',
    "uuid": 'hex{8} "-" hex{4} "-" hex{4} "-" hex{4} "-" hex{12}',
}
_TYPES: Mapping[str, frozenset[str]] = {
    "string": frozenset({"minLength", "maxLength", "format", "pattern"}),
    "integer": frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}),
    "number": frozenset({"minimum", "maximum"}),
    "boolean": frozenset(),
    "null": frozenset(),
    "array": frozenset({"items", "prefixItems", "minItems", "maxItems"}),
    "object": frozenset({"properties", "required", "additionalProperties"}),
}
"""The types, and what is translated of each."""
_PYTHON: Mapping[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "null": (type(None),),
    "array": (list,),
    "object": (dict,),
}


def translated(schema: str) -> str | None:
    """Return the grammar of a schema that `guide.check` has passed; None where it is left to the library."""
    root = json.loads(schema)
    writer = _Writer(root)
    try:
        writer.rule("root", writer.value(root))
        text = writer.text()
        text.encode()
    except (_LeftError, UnicodeEncodeError, RecursionError):  # references may follow one another for long
        return None
    return text if len(writer.rules) <= RULES_MAX else None


class _LeftError(Exception):
    """Something that is left to the library."""


class _Writer:
    """Writes the rules of one schema."""

    def __init__(self, root: Any) -> None:
        self._root = root
        self._referred = {"#": "root"}
        self.rules: dict[str, str] = dict(_RULES)

    def text(self) -> str:
        """Return all rules."""
        return "\n".join(f"{name} ::= {body}" for name, body in self.rules.items())

    def rule(self, name: str, body: str) -> str:
        """Add a rule; return its name."""
        self.rules[name] = body
        return name

    def value(self, schema: Any) -> str:
        """Return what a value of a schema looks like, as one part of a rule. Raises _LeftError."""
        if schema is True:
            return "any"
        if not isinstance(schema, Mapping):
            raise _LeftError
        asked = {name: value for name, value in schema.items() if name not in _IGNORED}
        if "properties" in asked:
            asked.setdefault("type", "object")
        if not asked:
            return "any"
        if "type" not in asked or "enum" in asked:
            return self._chosen(asked)
        given = asked.pop("type")
        kinds = given if isinstance(given, list) else [given]
        if not _TYPES.keys() >= set(kinds) or asked.keys() - set[str]().union(*map(_TYPES.__getitem__, kinds)):
            raise _LeftError
        return _either(
            self._typed(kind, {name: value for name, value in asked.items() if name in _TYPES[kind]}) for kind in kinds
        )

    def _chosen(self, asked: Mapping[str, Any]) -> str:
        """Return a value that is said, or one of several."""
        match asked:
            case {"$ref": str(reference), **rest} if not rest:
                return self._reference(reference)
            case {"const": value, **rest} if not rest:
                return _literal(value)
            case {"enum": list(values), **rest} if rest.keys() <= {"type"}:
                return _either(_literal(each) for each in values if _is_of(each, rest.get("type")))
            case {"anyOf": schemas, **rest} | {"oneOf": schemas, **rest} | {"allOf": schemas, **rest} if not rest:
                return _either(self.value(each) for each in schemas)
        raise _LeftError

    def _reference(self, reference: str) -> str:
        """Return the rule of a reference's target, which may hold the reference itself."""
        name = self._referred.get(reference)
        if name is None:
            target = pointed(self._root, reference)
            if target is None:
                raise _LeftError
            name = self._referred[reference] = self._name()
            self.rule(name, self.value(target))
        return name

    def _typed(self, kind: str, asked: Mapping[str, Any]) -> str:
        if not asked:
            return kind
        match kind:
            case "integer":
                return integers(*_bounds(asked))
            case "number":
                return numbers(*_bounds(asked))
            case "array":
                return self._array(asked)
            case "object":
                return self._object(asked)
        return _string(asked)

    def _array(self, asked: Mapping[str, Any]) -> str:
        """Return an array: all of `prefixItems`, then, where there may be more, `items`."""
        first = [self.value(each) for each in asked.get("prefixItems", ())]
        least = int(asked.get("minItems", 0)) - len(first)
        most = int(asked["maxItems"]) - len(first) if "maxItems" in asked else None
        open_ended = asked.get("items", not first) is not False
        if (most is not None and most < max(least, 0)) or (least > 0 and not open_ended):
            raise _LeftError
        items = [f"{each} space" for each in first]
        parts = ['"[" space', ' "," space '.join(items)]
        if open_ended and most != 0:
            item = self._named(f"{self.value(asked.get('items', True))} space")
            another = self._named(f'"," space {item}')
            if first:
                parts.append(f"{another}{_times(max(least, 0), most)}")
            else:
                several = f"{item} {another}{_times(max(least - 1, 0), None if most is None else most - 1)}"
                parts.append(several if least > 0 else f"({several})?")
        return self._named(" ".join(part for part in (*parts, '"]"') if part))

    def _object(self, asked: Mapping[str, Any]) -> str:
        """Return an object: its properties in their order, the required ones always, then any others it may have."""
        properties, required = asked.get("properties", {}), asked.get("required", [])
        if not isinstance(required, list) or set(required) - properties.keys():
            raise _LeftError
        others = asked.get("additionalProperties", not properties)
        members = [
            (self._named(f'{_literal(name)} space ":" space {self.value(each)} space'), name in required)
            for name, each in properties.items()
        ]
        first_required = next((place for place, (_, needed) in enumerate(members) if needed), None)
        behind, beginnings = "", []
        if others is not False:
            extra = self._named(f'string space ":" space {self.value(others)} space')
            behind = f'("," space {extra})*'
            if first_required is None:
                beginnings.append(f"{extra} {behind}")
        for place, (member, needed) in reversed(list(enumerate(members))):
            if first_required is None or place <= first_required:
                beginnings.append(f"{member} {behind}")
            one = f'("," space {member})' if needed else f'("," space {member})?'
            behind = self._named(f"{one} {behind}")
        inside = _either(beginnings) if beginnings else ""
        return self._named(f'"{{" space {inside}{"?" if beginnings and first_required is None else ""} "}}"')

    def _named(self, body: str) -> str:
        """Return the name of a rule of its own for a part that stands in several places, or is repeated."""
        return self.rule(self._name(), body)

    def _name(self) -> str:
        name = f"r{len(self.rules)}"
        self.rules[name] = ""
        return name


def _either(parts: Iterable[str]) -> str:
    found = list(dict.fromkeys(parts))
    if not found:
        raise _LeftError
    return found[0] if len(found) == 1 and " " not in found[0] else f"({' | '.join(found)})"


def _literal(value: Any) -> str:
    """Return a value as it stands in JSON, quoted for a grammar."""
    return json.dumps(json.dumps(value, ensure_ascii=False, separators=(",", ":")), ensure_ascii=False)


def _times(least: int, most: int | None) -> str:
    if most is None:
        return {0: "*", 1: "+"}.get(least, f"{{{least},}}")
    return f"{{{least},{most}}}"


def _string(asked: Mapping[str, Any]) -> str:
    if "format" in asked:
        if asked["format"] not in _FORMATS or len(asked) > 1:
            raise _LeftError
        return rf'("\"" {_FORMATS[asked["format"]]} "\"")'
    if "pattern" in asked:
        found = matching(asked["pattern"]) if len(asked) == 1 else None
        if found is None:
            raise _LeftError
        return rf'("\"" {found} "\"")'
    least, most = asked.get("minLength", 0), asked.get("maxLength")
    if most is not None and most < least:
        raise _LeftError
    return rf'("\"" character{_times(least, most)} "\"")'


def _bounds(asked: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """Return the least and the greatest whole number there may be."""
    given = {name: asked[name] for name in _TYPES["integer"] if name in asked}
    if not all(
        isinstance(each, int | float) and each == int(each) and abs(each) <= NUMBER_MAX for each in given.values()
    ):
        raise _LeftError
    lows = [int(given[name]) + more for name, more in (("minimum", 0), ("exclusiveMinimum", 1)) if name in given]
    highs = [int(given[name]) - less for name, less in (("maximum", 0), ("exclusiveMaximum", 1)) if name in given]
    low, high = max(lows, default=None), min(highs, default=None)
    if low is not None and high is not None and low > high:
        raise _LeftError
    return low, high


def _is_of(value: Any, kind: Any) -> bool:
    """Return whether a value is of a type, or of one of several."""
    if kind is None:
        return True
    if isinstance(kind, list):
        return any(_is_of(value, each) for each in kind)
    if isinstance(value, bool):
        return bool(kind == "boolean")
    return isinstance(value, _PYTHON.get(kind, ()))
