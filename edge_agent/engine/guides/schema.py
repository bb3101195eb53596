"""A JSON Schema in one spelling (pure), so that every library is asked the same and none leaves a part out.

What a schema asks for in the words of draft 4, draft 7, 2020-12 or OpenAPI 3.0 becomes keywords that stand by
themselves: a type, and beside it what bounds that type. Where keywords stand together that no library reads together,
they are merged, into a schema that allows no more; at times it allows less, so that an answer keeps to it all the same.
What cannot be written so is refused by its name.
"""

import json
import re
from collections.abc import Iterable, Mapping
from fractions import Fraction
from typing import Any, NoReturn

from edge_agent.jobs import json_schema
from edge_agent.jobs.json_schema import TYPES, pointed

Schema = dict[str, Any]

PARTS_MOST = 4096
"""Schemas looked at, the same ones again where they are merged with others."""
MERGED_MOST = 64
"""Alternatives that come of alternatives beside each other."""
_WITHOUT_MEANING = frozenset(
    {"title", "description", "default", "examples", "example", "deprecated", "readOnly", "writeOnly"}
    | {"$schema", "$comment", "discriminator", "xml", "externalDocs", "contentEncoding", "contentMediaType"}
    | {"$defs", "definitions", "$id", "id", "$anchor"}
)
"""They bound no answer. Definitions count where they are referred to, and by nothing but their place."""
FORMATS = frozenset(
    {"date", "time", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri", "uri-reference"}
)
"""The others are remarks, as the standard has it, such as `binary` and `password`."""
_NUMBER = frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"})
BOUNDS: Mapping[str, frozenset[str]] = {
    "string": frozenset({"minLength", "maxLength", "pattern", "format"}),
    "number": _NUMBER,
    "integer": _NUMBER,
    "array": frozenset({"items", "prefixItems", "minItems", "maxItems"}),
    "object": frozenset({"properties", "required", "additionalProperties"})
    | {"patternProperties", "minProperties", "maxProperties"},
    "boolean": frozenset(),
    "null": frozenset(),
}
"""What bounds each type."""
_BOUNDING = frozenset().union(*BOUNDS.values())
_LEAST = frozenset({"minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties"})
_MOST = frozenset({"maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties"})
_CHOICES = ("anyOf", "oneOf")
_ONE_CLASS = re.compile(r"\^?(\[(?:\\.|[^\\\]])+\]|\\[dw]|[A-Za-z0-9])([*+]|\{\d+(?:,\d*)?\})\$?")


class SchemaError(ValueError):
    """A schema asks for what cannot be kept; the message names the keyword and where it stands."""


def normal(root: Any) -> Schema:
    """Return a schema that jobs.json_schema.check has passed in one spelling.

    References lead to `#/$defs/…` alone. Raises SchemaError.
    """
    writer = _Normaliser(root)
    found = writer.schema(root, "")
    return {**found, "$defs": writer.definitions} if writer.definitions else found


def type_of(value: Any) -> str:
    """Return the type of a value in JSON."""
    match value:
        case bool():
            return "boolean"
        case int():
            return "integer"
        case float():
            return "integer" if value.is_integer() else "number"
        case str():
            return "string"
        case None:
            return "null"
    return "array" if isinstance(value, list) else "object"


def _judge(schema: Any) -> Any:
    """Return what tells whether a value is of a schema. It looks at no expressions: some take Python for ever.

    Raises SchemaError where it had to.
    """
    # The agent only reads the bounds that stand here, and does without.
    from jsonschema import Draft202012Validator  # noqa: PLC0415
    from jsonschema.validators import extend  # noqa: PLC0415

    def refuse(*_of_the_library: Any) -> NoReturn:
        raise SchemaError("a pattern beside an enum or const is not supported; leave it out")

    untyped: Any = extend
    return untyped(Draft202012Validator, dict.fromkeys(("pattern", "patternProperties"), refuse))(schema)


class _Normaliser:
    def __init__(self, root: Any) -> None:
        self._root = root
        self._judge = _judge(root)
        self._names: dict[str, str] = {}
        self._inlining: list[str] = []
        self._looked_at = 0
        self._narrowed = self._implied = False  # some part allows less than was asked; for want of a type
        self.definitions: dict[str, Schema] = {}

    def schema(self, given: Any, at: str) -> Schema:
        """Return a schema by keywords of its own, or as one of `$ref`, `enum` and `anyOf`."""
        self._count()
        if given is True or given == {}:
            return {}
        if given is False:
            raise _refused(at, "false", "allows no value")
        asked = self._respelled(given, at)
        if "$ref" in asked:
            if len(asked) == 1:
                return {"$ref": self._reference(asked["$ref"], at)}
            target = self._inlined(asked.pop("$ref"), at)
            return self._merged([target, self.schema(asked, at)], at)
        parts = [self.schema(each, f"{at}/allOf/{number}") for number, each in enumerate(asked.pop("allOf", ()))]
        if parts:
            own = [self.schema(asked, at)] if asked else []
            return self._merged([*parts, *own], at)
        for keyword in _CHOICES:
            if keyword in asked:
                return self._chosen(keyword, asked, at)
        return self._plain(asked, at)

    def _count(self) -> None:
        """Count what is looked at: what refers to something twice, and that twice to another, never ends."""
        self._looked_at += 1
        if self._looked_at > PARTS_MOST:
            raise SchemaError(
                f"$ref and allOf come to more than {PARTS_MOST} parts when they are merged; write it flat"
            )

    def _respelled(self, given: Mapping[str, Any], at: str) -> Schema:
        """Return the keywords that mean something, those of older drafts in the words of the newest."""
        if at and any(isinstance(given.get(keyword), str) for keyword in ("$id", "id")):
            raise _refused(at, "$id", "below the root moves references; leave it out")
        asked = {name: value for name, value in given.items() if name not in _WITHOUT_MEANING}
        if "const" in asked:
            value = asked.pop("const")
            among = asked.get("enum", [value])
            asked["enum"] = [value] if _key(value) in map(_key, among) else []
        if asked.get("format") not in FORMATS:
            asked.pop("format", None)
        if asked.get("uniqueItems") is False:
            del asked["uniqueItems"]
        _from_older_drafts(asked)
        if unknown := sorted(asked.keys() - _BOUNDING - {"type", "enum", "$ref", "allOf", "uniqueItems", *_CHOICES}):
            raise _refused(at, unknown[0], "is not supported in a schema; leave it out")
        return asked

    def _reference(self, reference: str, at: str) -> str:
        """Return where the target stands, in one spelling, among the definitions."""
        if reference not in self._names:
            target = self._target(reference, at)
            name = self._names[reference] = str(len(self._names))
            self.definitions[name] = {}
            self.definitions[name] = self.schema(target, reference.removeprefix("#"))
        return f"#/$defs/{self._names[reference]}"

    def _target(self, reference: str, at: str) -> Any:
        if (target := pointed(self._root, reference)) is None:
            raise _refused(at, "$ref", "must lead to a place in the schema, as in #/$defs/name")
        return target

    def _inlined(self, reference: str, at: str) -> Schema:
        """Return what a reference leads to, to be merged with what stands beside it."""
        if reference in self._inlining:
            raise _refused(at, "$ref", "leads back to itself beside other keywords; leave those out")
        self._inlining.append(reference)
        try:
            found = self.schema(self._target(reference, at), reference.removeprefix("#"))
        finally:
            self._inlining.pop()
        return self._open(found, at)

    def _open(self, schema: Schema, at: str) -> Schema:
        """Return a schema that is no mere reference."""
        if "$ref" not in schema:
            return schema
        reference = next(each for each, name in self._names.items() if schema["$ref"] == f"#/$defs/{name}")
        return self._inlined(reference, at)

    def _chosen(self, keyword: str, asked: Schema, at: str) -> Schema:
        """Return alternatives, each with what stands beside them. Of those that cannot be kept one is enough."""
        branches = asked.pop(keyword)
        beside = self.schema(asked, at) if asked else {}
        found: list[Schema] = []
        refused: SchemaError | None = None
        for number, each in enumerate(branches):
            place = f"{at}/{keyword}/{number}"
            try:
                branch = self.schema(each, place)
                found.append(self._merged([branch, beside], place) if beside else branch)
            except SchemaError as error:
                if keyword == "oneOf":  # what it would have taken out of the others is not known
                    raise
                refused = error
                self._narrowed = True
        if not found:
            raise refused or _refused(at, keyword, "allows no value")
        if keyword == "oneOf":
            self._tell_apart(found, at)
        flat = [one for each in found for one in (each["anyOf"] if each.keys() == {"anyOf"} else [each])]
        return flat[0] if len(flat) == 1 else {"anyOf": flat}

    def _tell_apart(self, branches: list[Schema], at: str) -> None:
        """Make sure that no value is of two branches: a tag that each has may have to be required for that."""
        opened = [self._open(each, at) for each in branches]
        objects = not self._implied and all(each.get("type") == "object" for each in opened)
        tags = [
            name
            for name, each in opened[0].get("properties", {}).items()
            if objects
            and "enum" in each
            and all("enum" in other.get("properties", {}).get(name, {}) for other in opened)
        ]
        for tag in tags:
            values = [_key(value) for each in opened for value in each["properties"][tag]["enum"]]
            if len(values) == len(set(values)):
                for place, each in enumerate(opened):
                    branches[place] = {**each, "required": sorted({*each.get("required", ()), tag})}
                return
        for place, one in enumerate(opened):
            if self._narrowed or any(not _apart(one, other) for other in opened[place + 1 :]):
                raise _refused(at, "oneOf", "has alternatives that a value may be of two of; use anyOf")

    def _plain(self, asked: Schema, at: str) -> Schema:
        """Return a schema of types and what bounds them."""
        if "enum" in asked:
            return self._of_values(asked, at)
        self._implied = self._implied or "type" not in asked
        self._narrowed = self._narrowed or "type" not in asked
        kinds = _listed(asked.pop("type")) if "type" in asked else _spoken_of(asked)
        if asked.pop("uniqueItems", False) and "array" in kinds:
            kinds = self._unique(asked, kinds, at)
        for keyword in ("properties", "patternProperties"):
            if keyword in asked:
                asked[keyword] = {
                    name: self.schema(each, f"{at}/{keyword}/{name}") for name, each in asked[keyword].items()
                }
        for keyword in ("items", "additionalProperties"):
            if keyword in asked and asked[keyword] is not False:
                asked[keyword] = self.schema(asked[keyword], f"{at}/{keyword}") or True
        if "prefixItems" in asked:
            asked["prefixItems"] = [
                self.schema(each, f"{at}/prefixItems/{number}") for number, each in enumerate(asked["prefixItems"])
            ]
        _require(asked, at)
        return _settled(kinds, asked, at)

    def _of_values(self, asked: Schema, at: str) -> Schema:
        """Return those of some values that keep to what stands beside them."""
        beside = {name: value for name, value in asked.items() if name != "enum"}
        taken = self._judge.evolve(schema=beside) if beside else None
        values = [each for each in asked["enum"] if taken is None or taken.is_valid(each)]
        if not values:
            raise _refused(at, "enum", "allows no value beside what else stands there")
        return {"enum": values}

    def _unique(self, asked: Schema, kinds: list[str], at: str) -> list[str]:
        """Write a list without repetitions as what can be followed: a choice of few values, each once, in order."""
        if asked.get("maxItems", 2) <= 1:
            return kinds
        values = self.schema(asked.get("items", True), f"{at}/items").get("enum")
        if values is None or "prefixItems" in asked or asked.get("minItems", 0) > 1:
            raise _refused(at, "uniqueItems", "is not supported but for lists of an enum; leave it out")
        self._narrowed = True
        asked["items"], asked["maxItems"] = {"enum": values}, 1
        return kinds

    def _merged(self, schemas: Iterable[Schema], at: str) -> Schema:
        """Return a schema whose values are of all of several."""
        merged: Schema = {}
        for each in schemas:
            merged = self._both(self._open(merged, at), self._open(each, at), at)
        return merged

    def _both(self, one: Schema, other: Schema, at: str) -> Schema:
        self._count()
        if not one or not other:
            return one or other
        choices = [each.get("anyOf", [each]) for each in (one, other)]
        if len(choices[0]) * len(choices[1]) > MERGED_MOST:
            raise _refused(at, "anyOf", f"comes to more than {MERGED_MOST} alternatives with what stands beside it")
        if any("anyOf" in each for each in (one, other)):
            found, refused = [], None
            for first in choices[0]:
                for second in choices[1]:
                    try:
                        found.append(self._both(self._open(first, at), self._open(second, at), at))
                    except SchemaError as error:
                        refused = error
            if not found:
                raise refused or _refused(at, "anyOf", "allows no value")
            return {"anyOf": found} if len(found) > 1 else found[0]
        if "enum" in one or "enum" in other:
            values, rest = (one["enum"], other) if "enum" in one else (other["enum"], one)
            taken = _judge({**rest, "$defs": self.definitions})
            kept = [each for each in values if taken.is_valid(each)]
            if not kept:
                raise _refused(at, "enum", "allows no value beside what else stands there")
            return {"enum": kept}
        return self._bounded_by_both(one, other, at)

    def _bounded_by_both(self, one: Schema, other: Schema, at: str) -> Schema:
        kinds = _common(_listed(one["type"]), _listed(other["type"]))
        asked: Schema = {}
        for name in {**one, **other}:
            if name in {"type", "properties", "required", "additionalProperties", "items", "prefixItems"}:
                continue
            first, second = one.get(name), other.get(name)
            if first is None or second is None or first == second:
                asked[name] = second if first is None else first
            elif name in _LEAST | _MOST:
                asked[name] = max(first, second) if name in _LEAST else min(first, second)
            else:
                raise _refused(at, name, "stands twice for one value, and both cannot be kept; merge them")
        if "object" in kinds:
            self._members(one, other, asked, at)
        if "array" in kinds:
            self._items(one, other, asked, at)
        return _settled(kinds, asked, at)

    def _members(self, one: Schema, other: Schema, asked: Schema, at: str) -> None:
        required = {*one.get("required", ()), *other.get("required", ())}
        found: dict[str, Schema] = {}
        for name in {**one.get("properties", {}), **other.get("properties", {})}:
            sides = [
                each.get("properties", {}).get(name, each.get("additionalProperties", True)) for each in (one, other)
            ]
            if any(side is False for side in sides):
                if name in required:
                    raise _refused(at, "required", "names a property that may not be there")
                continue
            found[name] = self._merged([{} if side is True else side for side in sides], f"{at}/properties/{name}")
        others = [each.get("additionalProperties", True) for each in (one, other)]
        if any(each is False for each in others):
            asked["additionalProperties"] = False
        elif any(each is not True for each in others):
            asked["additionalProperties"] = self._merged([each for each in others if each is not True], at)
        if found or any("properties" in each for each in (one, other)):
            asked["properties"] = found
        if required:
            asked["required"] = sorted(required)
            _require(asked, at)

    def _items(self, one: Schema, other: Schema, asked: Schema, at: str) -> None:
        firsts = [each.get("prefixItems", []) for each in (one, other)]
        rests = [each.get("items", True) for each in (one, other)]
        length = max(map(len, firsts))
        if length and any(rest is False and len(first) < length for first, rest in zip(firsts, rests, strict=True)):
            raise _refused(at, "prefixItems", "stands twice, and both cannot be kept; merge them")

        def of(side: int, place: int) -> Schema:
            found = firsts[side][place] if place < len(firsts[side]) else rests[side]
            return {} if found is True else found

        if length:
            asked["prefixItems"] = [self._merged([of(0, place), of(1, place)], at) for place in range(length)]
        if any(rest is False for rest in rests):
            asked["items"] = False
        elif any(rest is not True for rest in rests):
            asked["items"] = self._merged([rest for rest in rests if rest is not True], at)


def _refused(at: str, keyword: str, why: str) -> SchemaError:
    name = keyword if re.fullmatch(r"\$?[A-Za-z]{1,32}", keyword) else "one of its keywords"
    depth = at.count("/")
    where = f", {depth} levels down in the schema" if depth > 1 else ""
    return SchemaError(f"{name}{where} {why}")


def _from_older_drafts(asked: Schema) -> None:
    """Put the words of draft 4, draft 7 and OpenAPI 3.0 into those of 2020-12."""
    for bound, exclusive in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
        if isinstance(flag := asked.get(exclusive), bool):
            del asked[exclusive]
            if flag and bound in asked:
                asked[exclusive] = asked.pop(bound)
    if asked.pop("nullable", False) is True and "type" in asked:
        asked["type"] = [*_listed(asked["type"]), "null"]
        if "enum" in asked:
            asked["enum"] = [*asked["enum"], None]
    if isinstance(asked.get("items"), list):
        asked["prefixItems"] = asked.pop("items")
        asked["items"] = asked.get("additionalItems", True)
    asked.pop("additionalItems", None)


def _key(value: Any) -> str:
    """Return a text that is the same for values that are equal in JSON: 1 and 1.0, and never 1 and true."""
    match value:
        case bool() | None | str():
            return json.dumps(value)
        case int() | float():
            return str(Fraction(value))
        case list():
            return f"[{','.join(map(_key, value))}]"
    return f"{{{','.join(f'{json.dumps(name)}:{_key(value[name])}' for name in sorted(value))}}}"


def respelled(schema: Any) -> Any:
    """Return a schema in the words of 2020-12, and otherwise as it was sent: what an answer is judged by."""
    if not isinstance(schema, dict):
        return schema
    found = dict(schema)
    _from_older_drafts(found)
    for keyword, value in found.items():
        if keyword in json_schema.NAMED and isinstance(value, dict):
            found[keyword] = {name: respelled(each) for name, each in value.items()}
        elif keyword in json_schema.SCHEMAS and isinstance(value, list):
            found[keyword] = [respelled(each) for each in value]
        elif keyword in json_schema.SCHEMA:
            found[keyword] = respelled(value)
    return found


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list) else [value]


def _spoken_of(asked: Schema) -> list[str]:
    """Return the types that keywords without one speak of: any other value keeps to them as well."""
    kinds = [kind for kind, words in BOUNDS.items() if words & asked.keys() and kind != "integer"]
    return kinds or sorted(TYPES - {"integer"})


def _common(ones: list[str], others: list[str]) -> list[str]:
    """Return the types of both; of numbers and whole numbers the latter."""
    found = [kind for kind in ones if kind in others or (kind == "integer" and "number" in others)]
    return found + [kind for kind in others if kind == "integer" and "number" in ones and kind not in found]


def _require(asked: Schema, at: str) -> None:
    """Give every required property its schema."""
    properties = asked.get("properties", {})
    for name in asked.get("required", ()):
        if name not in properties:
            others = asked.get("additionalProperties", True)
            if others is False:
                raise _refused(at, "required", "names a property that may not be there")
            asked["properties"] = properties = {**properties, name: {} if others is True else others}


def _settled(kinds: list[str], asked: Schema, at: str) -> Schema:
    """Return types with what bounds each, and nothing that bounds none of them."""
    if not kinds:
        raise _refused(at, "type", "allows no value beside what else stands there")
    spoken = frozenset().union(*(BOUNDS[kind] for kind in kinds))
    kept = {name: value for name, value in asked.items() if name in spoken}
    if "string" in kinds:
        if re.search(r"\(\?(?!:)", kept.get("pattern", "")):
            raise _refused(at, "pattern", "looks ahead or behind, which is not followed; write it otherwise")
        _shorten(kept, at)
    for least, most in (("minLength", "maxLength"), ("minItems", "maxItems")):
        if kept.get(least, 0) > kept.get(most, kept.get(least, 0)):
            raise _refused(at, most, f"is below {least}")
    return {"type": kinds[0] if len(kinds) == 1 else kinds, **kept}


def _shorten(asked: Schema, at: str) -> None:
    """Settle lengths beside a pattern or a format, which libraries do not follow together."""
    least, most = asked.get("minLength", 0), asked.get("maxLength")
    if "format" in asked and "pattern" in asked:
        raise _refused(at, "pattern", "beside a format cannot be kept; leave one of them out")
    if "format" in asked and least <= 1 and (most is None or most >= FORMAT_MOST):
        asked.pop("minLength", None)
        asked.pop("maxLength", None)
    if "format" in asked and {"minLength", "maxLength"} & asked.keys():
        raise _refused(at, "maxLength" if most is not None else "minLength", "beside a format cannot be kept")
    if "pattern" not in asked or not {"minLength", "maxLength"} & asked.keys():
        return
    found = _ONE_CLASS.fullmatch(asked["pattern"])
    if found is None or not asked["pattern"].startswith("^") or not asked["pattern"].endswith("$"):
        keyword = "maxLength" if most is not None else "minLength"
        raise _refused(at, keyword, "beside a pattern cannot be kept; count in the pattern")
    low, high = _repetition(found[2])
    low, high = max(low, least), min((each for each in (high, most) if each is not None), default=None)
    if high is not None and high < low:
        raise _refused(at, "pattern", "allows no text of that length")
    asked["pattern"] = f"^{found[1]}{{{low},{'' if high is None else high}}}$"
    asked.pop("minLength", None)
    asked.pop("maxLength", None)


FORMAT_MOST = 64
"""No text of a format is written longer here."""


def _repetition(text: str) -> tuple[int, int | None]:
    if text in "*+":
        return int(text == "+"), None
    low, comma, high = text[1:-1].partition(",")
    return int(low), (int(high) if high else None) if comma else int(low)


def _apart(one: Schema, other: Schema) -> bool:
    """Return whether no value is of both, as far as is seen."""
    if "enum" in one and "enum" in other:
        return {_key(each) for each in one["enum"]}.isdisjoint(_key(each) for each in other["enum"])
    kinds = []
    for each in (one, other):
        if "enum" in each:
            kinds.append({type_of(value) for value in each["enum"]})
        elif "type" in each:
            kinds.append(set(_listed(each["type"])))
        else:
            return False
    if kinds[0].isdisjoint(kinds[1]) and not all({"integer", "number"} & each for each in kinds):
        return True
    if kinds != [{"object"}, {"object"}] or "enum" in one or "enum" in other:
        return False
    both = {*one.get("required", ())} & {*other.get("required", ())}
    return (
        any(
            _apart(one["properties"][name], other["properties"][name])
            for name in both
            if one["properties"][name] and other["properties"][name]
        )
        or _excludes(one, other)
        or _excludes(other, one)
    )


def _excludes(one: Schema, other: Schema) -> bool:
    """Return whether one requires a property that the other does not allow."""
    closed = other.get("additionalProperties", True) is False
    return closed and bool({*one.get("required", ())} - other.get("properties", {}).keys())
