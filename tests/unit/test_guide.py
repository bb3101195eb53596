"""What guides may ask for."""

import json

import pytest

from edge_agent.base.errors import Code, EdgeAgentError
from edge_agent.engine.guides import grammar as grammars
from edge_agent.engine.guides import guide as bounds
from edge_agent.engine.messages import Guide, GuideKind

READING = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "a reading",
    "type": "object",
    "properties": {
        "device": {"enum": ["pump", "fan"]},
        "value": {"type": "number", "minimum": 0, "maximum": 1e6},
        "at": {"type": "string", "format": "date-time"},
        "note": {"type": ["string", "null"], "maxLength": 100},
        "id": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{1,6}$"},
        "parts": {"type": "array", "items": {"$ref": "#/$defs/part"}, "maxItems": 20},
    },
    "required": ["device", "value"],
    "additionalProperties": False,
    "$defs": {"part": {"anyOf": [{"type": "string"}, {"$ref": "#"}]}},
}


def schema(value):
    return Guide(GuideKind.JSON_SCHEMA, value if isinstance(value, str) else json.dumps(value))


def regex(text):
    return Guide(GuideKind.REGEX, text)


def grammar(text):
    return Guide(GuideKind.GRAMMAR, text)


def nested(depth):
    return '{"type":"array","items":' * (depth - 1) + '{"type":"integer"}' + "}" * (depth - 1)


@pytest.mark.parametrize(
    "guide",
    [
        schema(READING),
        schema("true"),
        schema(nested(32)),
        schema({"properties": {f"k{i}": {"type": "string", "maxLength": 100} for i in range(60)}}),
        schema({"enum": [f"value {i}" for i in range(1000)]}),
        regex("(yes|no)"),
        regex(r"[0-9]{4}-[0-9]{2}-[0-9]{2}( [0-9]{2}:[0-9]{2})?"),
        regex("([a-z]{1,8} ){1,32}"),
        regex(r"\{[^}]{1,128}\}\(\?"),
        regex("|".join(f"word{i}" for i in range(1000))),
        grammar('root ::= "{9999}" [a-z{}]{1,8} item*\nitem ::= "??????????????????????????????" "\\""'),
    ],
    ids=lambda guide: guide.text[:30],
)
def test_ordinary_guides_pass(guide):
    """Nothing is said of them."""
    bounds.check(guide)


@pytest.mark.parametrize(
    "guide",
    [
        regex("a" * 16_385),
        regex("a\0b"),
        regex("[a-z]{1,129}"),
        regex("[a-z]{129}"),
        regex("[a-z]{129,}"),
        regex("a{1,99999999999999999999}"),
        regex("([a-z]{1,30}){1,30}"),
        regex(" ".join(["[a-z]{1,100}"] * 6)),
        regex(".?" * 25),
        regex("(" * 32 + "a" + ")" * 32),
        grammar('root ::= "a"{1,100000}'),
        grammar("\n".join(f"r{i} ::= [a]" for i in range(257))),
        schema("{not json"),
        schema("[" * 16_000),
        schema("3"),
        schema({"properties": 3}),
        schema({"properties": {"a": 3}}),
        schema({"anyOf": []}),
        schema({"type": "string", "maxLength": 129}),
        schema({"type": "string", "minLength": -1}),
        schema({"type": "array", "maxItems": "7"}),
        schema({"type": "array", "maxItems": 1025}),
        schema({"pattern": "a{1,200}"}),
        schema({"patternProperties": {"a{1,200}": True}}),
        schema({"pattern": 3}),
        schema(nested(33)),
        schema({"enum": [0] * 2049}),
        schema({"properties": {f"k{i}": {"maxLength": 100 + i} for i in range(6)}}),
        schema({"properties": {f"k{i}": {"pattern": f"[a-z]{{1,{100 + i}}}"} for i in range(6)}}),
    ],
    ids=lambda guide: guide.text[:30],
)
def test_what_would_take_long_or_means_nothing_is_refused(guide):
    """As the sender's mistake, with what to do, and without repeating the guide."""
    with pytest.raises(EdgeAgentError, match=r"^response_format: ") as raised:
        bounds.check(guide)
    assert raised.value.code is Code.BAD_REQUEST
    assert len(raised.value.message) < 200


@pytest.mark.parametrize(
    "keyword",
    [
        {"not": {"type": "string"}},
        {"if": {}, "then": {}},
        {"multipleOf": 3},
        {"uniqueItems": True},
        {"contains": {"type": "string"}},
        {"my keyword, secret": 1},
    ],
    ids=repr,
)
def test_what_a_library_would_leave_unheeded_is_refused(keyword):
    """A text that breaks the schema would be worse than none; the refusal goes down to any depth."""
    with pytest.raises(EdgeAgentError, match="not supported") as raised:
        bounds.check(schema({"properties": {"a": {"items": keyword}}}))
    assert raised.value.code is Code.UNSUPPORTED
    assert "secret" not in raised.value.message


@pytest.mark.parametrize(
    ("text", "ends"),
    [
        ('root ::= "a"', True),
        ('root ::= ""', True),
        ("root ::= [a-z]+ b*\nb ::= root", True),
        ('root ::= "(" root ")" | "x"', True),
        ('root ::= root "x" | "x"', True),
        ("root ::= (root)? ", True),
        ("root ::= root{0,3}", True),
        ('root ::= a b # "\na ::= "]"\nb ::= [^"|]', True),
        ("root ::= root", False),
        ("root ::= root{1,3}", False),
        ("root ::= (root)+", False),
        ('root ::= "x" (a | b)\na ::= b\nb ::= "y" a', False),
        ('root ::= "x" root', False),
        ('root ::= "x" | (("y" root) | "z") missing', True),
        ('root ::= "x" missing', False),
        ('a ::= "x"', False),
    ],
)
def test_a_grammar_that_cannot_end_is_found(text, ends):
    """One alternative is enough; what is optional need not end."""
    assert grammars.endless(text) is not ends


@pytest.mark.parametrize(
    ("target", "circular"),
    [
        ({"type": "array", "items": {"$ref": "#/$defs/a"}}, False),
        ({"anyOf": [{"$ref": "#/$defs/a"}, {"type": "null"}]}, False),
        ({"$ref": "#/$defs/b"}, False),
        ({"$ref": "#/$defs/a"}, True),
        ({"$ref": "#/$defs/c"}, True),
        ({"$ref": "#"}, True),
        ({"oneOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/c"}]}, True),
        ({"allOf": [{"$ref": "#/$defs/a"}]}, True),
    ],
    ids=str,
)
def test_a_reference_that_leads_to_itself_is_found(target, circular):
    """Not one that asks for something on its way."""
    defined = {"a": target, "b": {"type": "string"}, "c": {"$ref": "#/$defs/a"}}
    root = schema({"$ref": "#/$defs/a", "$defs": defined})
    if circular:
        with pytest.raises(EdgeAgentError, match="leads to nothing but itself"):
            bounds.check(root)
    else:
        bounds.check(root)
