"""JSON Schemas to try: of ordinary models as pydantic and zod write them, and of every keyword beside others."""


def closed(**properties):
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


TEXT, WHOLE, NUMBER = {"type": "string"}, {"type": "integer"}, {"type": "number"}
CAT = closed(kind={"const": "cat", "title": "Kind", "type": "string"}, lives=WHOLE)
DOG = closed(kind={"const": "dog", "title": "Kind", "type": "string"}, name={"type": "string", "maxLength": 8})
OPTIONAL_TAG = {**CAT, "required": ["lives"]}, {**DOG, "required": ["name"]}

KEPT = {
    # numbers
    "number from 0 to 1": {"type": "number", "minimum": 0, "maximum": 1},
    "number from 0.1 to 0.9": {"type": "number", "minimum": 0.1, "maximum": 0.9},
    "number above 0 below 1": {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
    "number on both sides of 0": {"type": "number", "minimum": -0.5, "maximum": 0.25},
    "number above -2.75": {"type": "number", "exclusiveMinimum": -2.75},
    "number below 1e-3": {"type": "number", "exclusiveMaximum": 0.001, "minimum": 0},
    "number in a small place": {"type": "number", "minimum": 0.00012, "maximum": 0.00013},
    "number from 9.5 to 1203.25": {"type": "number", "minimum": 9.5, "maximum": 1203.25},
    "number below 0": {"type": "number", "maximum": -0.001},
    "whole numbers between fractions": {"type": "integer", "minimum": 0.5, "maximum": 7.5},
    "whole above and below": {"type": "integer", "exclusiveMinimum": 3, "exclusiveMaximum": 40},
    "one number": {"type": "number", "minimum": 2.5, "maximum": 2.5},
    # texts
    "pattern and length": {"type": "string", "pattern": "^[a-z]+$", "maxLength": 2},
    "pattern counted and length": {"type": "string", "pattern": "^[0-9]{2,8}$", "minLength": 3, "maxLength": 5},
    "length": {"type": "string", "minLength": 2, "maxLength": 5},
    "pattern": {"type": "string", "pattern": "^(on|off)$"},
    "an unknown format is a remark": {"type": "string", "format": "binary"},
    **{f"format {name}": {"type": "string", "format": name} for name in ("date", "time", "date-time", "uuid", "email")},
    **{
        f"format {name}": {"type": "string", "format": name} for name in ("ipv4", "ipv6", "hostname", "uri", "duration")
    },
    # values
    "enum beside maxLength": {"enum": ["on", "off", "broken"], "type": "string", "maxLength": 3},
    "enum of several types": {"enum": [1, "a", None, True, [1], {"a": 2}]},
    "enum of a type": {"type": "integer", "enum": [1, 2.0, "3", None]},
    "const beside a bound": {"const": 5, "minimum": 1},
    # alternatives
    "bounds beside anyOf": {"anyOf": [WHOLE, TEXT], "minimum": 5, "maximum": 6, "maxLength": 1},
    "one of apart types": {"oneOf": [WHOLE, TEXT, {"type": "null"}]},
    "one of apart values": {"oneOf": [{"enum": [1, 2]}, {"const": 3}]},
    "anyOf with one that cannot be kept": {"anyOf": [NUMBER, {"type": "string", "pattern": "^(?!x).*$"}]},
    "anyOf in anyOf": {"anyOf": [{"anyOf": [WHOLE, {"type": "null"}]}, {"type": "boolean"}]},
    "allOf merges": {
        "allOf": [
            {"type": "object", "properties": {"a": {"type": "integer", "minimum": 2}}, "required": ["a"]},
            {"type": "object", "properties": {"a": {"maximum": 4}, "b": TEXT}, "required": ["b"]},
        ]
    },
    "allOf beside keywords": {"allOf": [{"minimum": 1}, {"maximum": 9}], "type": "integer", "minimum": 4},
    "required in anyOf": {
        "type": "object",
        "properties": {"a": WHOLE, "b": {"type": "boolean"}},
        "anyOf": [{"required": ["a"]}, {"required": ["b"]}],
        "additionalProperties": False,
    },
    # objects and lists
    "a required property that properties do not name": {
        "type": "object",
        "properties": {"a": {"type": "boolean"}},
        "required": ["a", "b"],
    },
    "required by a schema of the others": {"type": "object", "required": ["x"], "additionalProperties": WHOLE},
    "properties without a type": {"properties": {"a": WHOLE}, "required": ["a"]},
    "others of a kind": {"type": "object", "additionalProperties": {"type": "array", "items": WHOLE, "maxItems": 2}},
    "tuple": {"type": "array", "prefixItems": [WHOLE, TEXT], "items": False, "minItems": 2},
    "tuple cut short": {
        "type": "array",
        "prefixItems": [{"type": "boolean"}, {"const": 3}],
        "minItems": 1,
        "maxItems": 1,
    },
    "list": {"type": "array", "items": NUMBER, "minItems": 1, "maxItems": 3},
    "a set of few": {"type": "array", "items": {"enum": ["a", "b", "c"]}, "uniqueItems": True},
    "a list that may repeat": {"type": "array", "items": WHOLE, "uniqueItems": False, "maxItems": 4},
    # references
    "reference beside a length": closed(a={"$ref": "#/$defs/C", "maxLength": 2}) | {"$defs": {"C": TEXT}},
    "reference to a reference": {"$ref": "#/$defs/A", "$defs": {"A": {"$ref": "#/$defs/B"}, "B": WHOLE}},
    "tree": {
        "$ref": "#/definitions/node",
        "definitions": {
            "node": closed(value=WHOLE)
            | {"properties": {"value": WHOLE, "next": {"anyOf": [{"$ref": "#/definitions/node"}, {"type": "null"}]}}}
        },
    },
    "itself": {"type": "object", "properties": {"sub": {"$ref": "#"}}, "additionalProperties": False},
    # as pydantic writes models
    "pydantic: optional": closed(a={"anyOf": [WHOLE, {"type": "null"}], "default": None, "title": "A"}),
    "pydantic: HttpUrl": {"format": "uri", "maxLength": 2083, "minLength": 1, "title": "Url", "type": "string"},
    "pydantic: Decimal": {
        "anyOf": [NUMBER, {"pattern": "^(?!^[-+.]*$)[+-]?0*\\d*\\.?\\d*$", "type": "string"}],
        "title": "Price",
    },
    "pydantic: tagged union": {
        "discriminator": {"mapping": {"cat": "#/$defs/Cat", "dog": "#/$defs/Dog"}, "propertyName": "kind"},
        "oneOf": [{"$ref": "#/$defs/Cat"}, {"$ref": "#/$defs/Dog"}],
        "$defs": {"Cat": CAT, "Dog": DOG},
    },
    "pydantic: tags with a default": {"oneOf": [*OPTIONAL_TAG]},
    "pydantic: dict": {"additionalProperties": WHOLE, "title": "Counts", "type": "object"},
    "pydantic: tuple": {
        "maxItems": 2,
        "minItems": 2,
        "prefixItems": [NUMBER, NUMBER],
        "title": "Place",
        "type": "array",
    },
    "pydantic: bytes": {"format": "binary", "title": "Data", "type": "string"},
    "pydantic: literal": {"const": "on", "title": "State", "type": "string"},
    "pydantic: enum": {"$defs": {"C": {"enum": ["r", "g"], "title": "C", "type": "string"}}, "$ref": "#/$defs/C"},
    "pydantic: nested": closed(at={"format": "date-time", "type": "string"}, owner={"$ref": "#/$defs/P"})
    | {"$defs": {"P": closed(name=TEXT, id={"format": "uuid", "type": "string"})}},
    # as zod writes them
    "zod": {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **closed(
            level={"type": "integer", "minimum": -9007199254740991 + 2**53 - 10, "exclusiveMaximum": 100},
            tags={"type": "array", "items": {"type": "string", "enum": ["a", "b"]}},
            mail={"type": "string", "format": "email"},
            either={"anyOf": [{"type": "boolean"}, {"type": "null"}]},
        ),
    },
}
DRAFT_4 = {
    "above": {"type": "integer", "minimum": 0, "exclusiveMinimum": True, "maximum": 1},
    "below": {"type": "number", "minimum": 0, "maximum": 2, "exclusiveMaximum": True},
    "not above": {"type": "integer", "minimum": 0, "exclusiveMinimum": False, "maximum": 3},
    "tuple of draft 7": {"type": "array", "items": [WHOLE, TEXT], "additionalItems": False, "minItems": 2},
    "definitions": {"definitions": {"a": {"type": "boolean"}}, "$ref": "#/definitions/a"},
}
OPENAPI = {
    "nullable": ({"type": "string", "nullable": True, "maxLength": 3}, {"type": ["string", "null"], "maxLength": 3}),
    "not nullable": ({"type": "integer", "nullable": False, "maximum": 3, "minimum": 0}, {"type": "integer"}),
    "nullable enum": ({"type": "string", "enum": ["a"], "nullable": True}, {"enum": ["a", None]}),
}
REFUSED = {
    "not": ({"not": TEXT}, "not"),
    "if": ({"if": TEXT, "then": {"maxLength": 2}}, "if"),
    "contains": ({"type": "array", "contains": WHOLE}, "contains"),
    "multipleOf": ({"type": "integer", "multipleOf": 5}, "multipleOf"),
    "unique texts": ({"type": "array", "items": TEXT, "uniqueItems": True}, "uniqueItems"),
    "one of that overlap": ({"oneOf": [{"type": "number", "minimum": 1}, {"type": "number", "maximum": 5}]}, "oneOf"),
    "whole and any number": ({"oneOf": [WHOLE, NUMBER]}, "oneOf"),
    "elsewhere": ({"$ref": "https://example.com/a.json"}, "ref"),
    "an anchor": ({"$ref": "#a", "$defs": {"x": {"$anchor": "a", "type": "string"}}}, "ref"),
    "nowhere": ({"$ref": "#/$defs/none"}, "ref"),
    "pattern that looks ahead": ({"type": "string", "pattern": "^(?!a).*$"}, "pattern"),
    "length beside a long pattern": ({"type": "string", "pattern": "^a+b+$", "maxLength": 3}, "maxLength"),
    "length beside a format": ({"type": "string", "format": "date", "maxLength": 3}, "maxLength"),
    "no value of enum": ({"enum": ["a"], "type": "integer"}, "enum"),
    "no type of both": ({"allOf": [WHOLE, TEXT]}, "type"),
    "a property that may not be there": (closed(a=WHOLE) | {"required": ["a", "b"]}, "required"),
    "nothing": ({"type": "object", "properties": {"a": False}, "required": ["a"]}, "false"),
    "no whole number": ({"type": "integer", "minimum": 1.2, "maximum": 1.8}, "minimum"),
    "names by rules": ({"type": "object", "patternProperties": {"^a": WHOLE}}, "patternProperties"),
    "two patterns": ({"allOf": [{"pattern": "^a$"}, {"pattern": "^b$"}], "type": "string"}, "pattern"),
}


def random_schema(chance, depth=0):
    """Return a schema of keywords of every kind, by chance."""
    kinds = ["string", "integer", "number", "boolean", "null", "array", "object"]
    if depth > 3:
        return {"type": chance.choice(kinds[:5])}

    def below():
        return random_schema(chance, depth + 1)

    def number():
        return chance.choice((0, 1, 3, -2, 0.5, -0.25, 7.125, 100))

    word = chance.randrange(12)
    if word == 0:
        return {"anyOf": [below() for _ in range(2)], **chance.choice(({}, {"minimum": number()}, {"maxLength": 3}))}
    if word == 1:
        return {"oneOf": [below() for _ in range(2)]}
    if word == 2:
        return {"allOf": [below() for _ in range(2)]}
    if word == 3:
        values = [chance.choice((1, "a", None, True, 2.5, "long text", [1])) for _ in range(3)]
        return {"enum": values, **chance.choice(({}, {"maxLength": 2}, {"type": "string"}, {"minimum": 1}))}
    found = {"type": chance.choice(kinds)} if word < 10 else {"type": chance.sample(kinds, 2)}
    for keyword, make in (
        ("minimum", number),
        ("maximum", number),
        ("exclusiveMinimum", number),
        ("exclusiveMaximum", number),
        ("minLength", lambda: chance.randrange(3)),
        ("maxLength", lambda: chance.randrange(5)),
        ("pattern", lambda: chance.choice(("^[a-z]+$", "^a|b$", "^x{2}$"))),
        ("format", lambda: chance.choice(("date", "uuid", "password"))),
        ("minItems", lambda: chance.randrange(3)),
        ("maxItems", lambda: chance.randrange(4)),
        ("items", below),
        ("prefixItems", lambda: [below()]),
        ("properties", lambda: {"a": below(), "b": below()}),
        ("required", lambda: chance.choice((["a"], ["b", "c"], []))),
        ("additionalProperties", lambda: chance.choice((False, True, {"type": "integer"}))),
    ):
        if chance.random() < 0.22:
            found[keyword] = make()
    return found
