"""JSON Schemas as grammars: what is translated and what is left. That answers keep to them stands in tests/contract."""

import itertools
import json
import re

import pytest

from edge_agent.engine.guides import guide as bounds
from edge_agent.engine.guides.grammar import endless
from edge_agent.engine.guides.json_grammar import RULES_MAX, translated
from edge_agent.engine.guides.number_grammar import integers, numbers
from edge_agent.engine.messages import Guide, GuideKind

EDGES = (None, -120, -100, -13, -10, -9, -1, 0, 1, 7, 9, 10, 11, 99, 100, 105, 234)


def expression(part):
    """Return a part of a grammar that has no rules in it as a regular expression."""
    return re.compile(re.sub(r'"([^"]*)"| ', lambda found: re.escape(found[1] or ""), part))


@pytest.mark.parametrize("low", EDGES)
def test_numbers_keep_to_their_bounds(low):
    """All that lie between, and no others; with what is between whole ones too, where that is asked."""
    for high in EDGES:
        if low is not None and high is not None and low > high:
            continue
        whole, any_number = expression(integers(low, high)), expression(numbers(low, high))
        for value in range(-300, 301):
            inside = (low is None or low <= value) and (high is None or value <= high)
            assert bool(whole.fullmatch(str(value))) is inside
            assert bool(any_number.fullmatch(str(value))) is inside
            for text in (f"{value}.0", f"{value}.5", f"{value}.999"):
                beyond = (low is not None and float(text) < low) or (high is not None and float(text) > high)
                if beyond:
                    assert not any_number.fullmatch(text)
                elif float(text) != value:
                    assert any_number.fullmatch(text)


def left(**schema):
    return pytest.param(schema, id=json.dumps(schema)[:40])


@pytest.mark.parametrize(
    "schema",
    [
        left(type="string", pattern="(?=a)a+"),
        left(type="string", pattern="a", maxLength=3),
        left(type="string", format="email"),
        left(type="string", format="date", maxLength=3),
        left(type="number", minimum=0.5),
        left(type="number", exclusiveMinimum=0),
        left(type="integer", minimum=3, maximum=2),
        left(type="integer", maximum=10**300),
        left(type="array", minItems=3, maxItems=2),
        left(type="array", prefixItems=[True], items=False, minItems=2),
        left(type="array", items=False, minItems=1),
        left(type="object", patternProperties={"a": True}),
        left(type="object", required=["a"]),
        left(type="object", minProperties=1),
        left(type="object", properties={f"p{i}": {} for i in range(RULES_MAX)}),
        left(enum=[]),
        left(enum=[1], type="string"),
        left(type="fruit"),
        left(const=1, type="integer"),
        {"$ref": "#/$defs/none"},
        {"$ref": "#/$defs/a", "$defs": {"a": {"type": "string"}}, "maxLength": 3},
        left(const="\ud800"),
        False,
    ],
)
def test_what_is_left_to_the_library(schema):
    """Also where it stands deep in another."""
    assert translated(json.dumps(schema)) is None
    assert translated(json.dumps({"items": {"properties": {"a": schema}}, "type": "array"})) is None


def test_every_rule_of_a_grammar_is_there_and_comes_to_an_end():
    """Schemas that hold themselves, too."""
    parts = [
        {"$ref": "#"},
        {"type": "array", "items": {"$ref": "#/$defs/a~1b"}, "minItems": 0},
        {"type": ["string", "null"], "maxLength": 9},
        {"enum": ["a", 'b"\\', "\u4e16\n", {"c": [1, None]}]},
        {"allOf": [{"type": "integer", "minimum": -3}]},
        {"type": "object", "additionalProperties": {"type": "number", "minimum": 0, "maximum": 1}},
        {"type": "array", "prefixItems": [{"type": "null"}], "maxItems": 4},
    ]
    for several in itertools.combinations(parts, 3):
        schema = {
            "properties": dict(zip("xyz", several, strict=True)),
            "required": ["y"],
            "$defs": {"a/b": {"anyOf": [{"type": "boolean"}, {"$ref": "#/$defs/a~1b"}]}},
        }
        written = translated(json.dumps(schema))
        assert written is not None
        assert not endless(written)
        bounds.check(Guide(GuideKind.GRAMMAR, written))
