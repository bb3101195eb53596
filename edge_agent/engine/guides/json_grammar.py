"""A JSON Schema as a grammar (pure), for a library whose own translation leaves parts out.

Between the parts of an answer stands nothing, a space, or a new line. Parts come in the order of the schema, and none
that it does not name, unless it says `additionalProperties`: as the libraries do it.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from fractions import Fraction
from typing import Any

from edge_agent.engine.guides.number_grammar import NUMBER_MAX, decimals, integers, numbers
from edge_agent.engine.guides.pattern_grammar import PLAIN, matching
from edge_agent.engine.guides.schema import BOUNDS, Schema, SchemaError
from edge_agent.jobs.json_schema import pointed

_RULES: Mapping[str, str] = {
    "space": '" "? | "\\n"',
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
_LABEL = "[a-z] [a-z0-9]{0,11}"
_HOST = f'{_LABEL} ("." {_LABEL}){{1,2}}'
_BYTE = '("0" | [1-9] [0-9]? | "1" [0-9] [0-9] | "2" [0-4] [0-9] | "25" [0-5])'
_PATH = '("/" [A-Za-z0-9_\\-]{1,8}){0,2}'
_FORMATS: Mapping[str, str] = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f'{_DATE} "T" {_TIME}',
    "duration": '"P" (("T" [1-9] [0-9]? [HMS]) | ([1-9] [0-9]? [DMWY]))',
    "email": f'[a-z] [a-z0-9]{{0,11}} "@" {_HOST}',
    "hostname": _HOST,
    "ipv4": f'{_BYTE} ("." {_BYTE}){{3}}',
    "ipv6": 'hex{1,4} (":" hex{1,4}){7}',
    "uuid": 'hex{8} "-" hex{4} "-" hex{4} "-" hex{4} "-" hex{12}',
    "uri": f'"http" "s"? "://" {_HOST} {_PATH}',
    "uri-reference": f'"http" "s"? "://" {_HOST} {_PATH}',
}
"""The usual texts of each; the standards allow rarer ones."""


def translated(schema: Schema) -> str:
    """Return the grammar of a schema that `schema.normal` returned. Raises SchemaError for what is not translated."""
    writer = _Writer(schema)
    try:
        writer.rule("root", writer.value(schema))
        text = writer.text()
        text.encode()
    except UnicodeEncodeError:
        raise SchemaError("a text in the schema is no Unicode; mend it") from None
    except RecursionError:
        raise SchemaError("$ref follows one another too often; flatten them") from None
    return text


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
        """Return what a value of a schema looks like, as one part of a rule. Raises SchemaError."""
        match schema:
            case True:
                return "any"
            case {"$ref": str(reference)}:
                return self._reference(reference)
            case {"enum": list(values)}:
                return _either(_literal(each) for each in values)
            case {"anyOf": list(schemas)}:
                return self._any_of(schemas)
            case {"type": given, **asked}:
                kinds = given if isinstance(given, list) else [given]
                return _either(
                    self._typed(kind, {name: asked[name] for name in asked if name in BOUNDS[kind]}) for kind in kinds
                )
        return "any"

    def _any_of(self, schemas: Iterable[Any]) -> str:
        """Return alternatives, of which those that are not translated are left out as long as one is."""
        found, refused = [], None
        for each in schemas:
            try:
                found.append(self.value(each))
            except SchemaError as error:
                refused = error
        if refused is not None and not found:
            raise refused
        return _either(found)

    def _reference(self, reference: str) -> str:
        """Return the rule of a reference's target, which may hold the reference itself."""
        name = self._referred.get(reference)
        if name is None:
            target = pointed(self._root, reference)
            name = self._referred[reference] = self._name()
            self.rule(name, self.value(target))
        return name

    def _typed(self, kind: str, asked: Mapping[str, Any]) -> str:
        if not asked:
            return kind
        match kind:
            case "integer":
                return _numbers(asked, whole=True)
            case "number":
                return _numbers(asked, whole=False)
            case "array":
                return self._array(asked)
            case "object":
                return self._object(asked)
        return _string(asked)

    def _array(self, asked: Mapping[str, Any]) -> str:
        """Return an array: all of `prefixItems`, then, where there may be more, `items`."""
        first = [self.value(each) for each in asked.get("prefixItems", ())][: asked.get("maxItems")]
        least = int(asked.get("minItems", 0)) - len(first)
        most = int(asked["maxItems"]) - len(first) if "maxItems" in asked else None
        open_ended = asked.get("items", not first) is not False
        if least > 0 and not open_ended:
            raise SchemaError("minItems asks for more than there may be")
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
        if keyword := next(iter(asked.keys() & {"patternProperties", "minProperties", "maxProperties"}), None):
            raise SchemaError(f"{keyword} is not supported in a schema here; leave it out")
        properties, required = asked.get("properties", {}), asked.get("required", [])
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
        return rf'("\"" {_FORMATS[asked["format"]]} "\"")'
    if "pattern" in asked:
        if (found := matching(asked["pattern"])) is None:
            raise SchemaError("pattern has what is not followed here, such as an escape; write it otherwise")
        return rf'("\"" {found} "\"")'
    return rf'("\"" character{_times(asked.get("minLength", 0), asked.get("maxLength"))} "\"")'


def _numbers(asked: Mapping[str, Any], *, whole: bool) -> str:
    """Return the numbers between bounds, of which either may be excluded, or absent."""
    low, above = max(_given(asked, "minimum", "exclusiveMinimum", 1), default=(None, False))
    high, below = max(_given(asked, "maximum", "exclusiveMaximum", -1), default=(None, False))
    high = None if high is None else -high
    if any(each is not None and abs(each) > NUMBER_MAX for each in (low, high)):
        raise SchemaError("a bound of a number is too large; leave it out")
    plain = not above and not below and all(each is None or each.denominator == 1 for each in (low, high))
    ends = [None if each is None else int(each) for each in (low, high)]
    nothing = low is not None and high is not None and low > high
    if whole:
        least = None if low is None else math.floor(low) + 1 if above else math.ceil(low)
        most = None if high is None else math.ceil(high) - 1 if below else math.floor(high)
        if least is not None and most is not None and least > most:
            raise SchemaError("no whole number lies between minimum and maximum")
        return integers(least, most)
    if nothing:
        raise SchemaError("no number lies between minimum and maximum")
    if plain:
        return numbers(*ends)
    try:
        return decimals(low, high, above=above, below=below)
    except ValueError as error:
        raise SchemaError("no number lies between minimum and maximum, as far as is looked") from error


def _given(asked: Mapping[str, Any], bound: str, exclusive: str, sign: int) -> Iterator[tuple[Fraction, bool]]:
    """Yield the bounds there are on one side, and whether each is excluded itself; the greatest counts."""
    for name in (bound, exclusive):
        if name in asked:
            yield sign * Fraction(str(asked[name])), name == exclusive
