"""JSON Schemas as grammars. That what they write is of the schema stands in test_schema.py."""

import itertools
import json
import re
from fractions import Fraction

import pytest

from edge_agent.engine.guides import guide as bounds
from edge_agent.engine.guides.grammar import endless
from edge_agent.engine.guides.json_grammar import translated
from edge_agent.engine.guides.number_grammar import decimals, integers, numbers
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


FRACTIONS = (None, "-12.5", "-0.25", "0", "0.1", "0.125", "1", "7.75", "100.5")


@pytest.mark.parametrize("low", FRACTIONS)
def test_numbers_keep_to_fractions_too(low):
    """Of those with as many digits what lies between, and nothing else; not the ends where they are excluded."""
    for high, above, below in itertools.product(FRACTIONS, (False, True), (False, True)):
        ends = [None if each is None else Fraction(each) for each in (low, high)]
        if None not in ends and (ends[0] > ends[1] or (ends[0] == ends[1] and (above or below))):
            continue
        found = expression(decimals(*ends, above=above, below=below))
        digits = max(2, 3 if found.fullmatch("0.126") or found.fullmatch("-0.124") else 2)
        for value in range(-1400, 10_200, 7):
            text = f"{'-' * (value < 0)}{abs(value) // 10**digits}.{abs(value) % 10**digits:0{digits}}"
            number = Fraction(text)
            inside = (ends[0] is None or number > ends[0] or (number == ends[0] and not above)) and (
                ends[1] is None or number < ends[1] or (number == ends[1] and not below)
            )
            assert bool(found.fullmatch(text)) is inside, (low, high, above, below, text)


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
        written = translated(bounds.asked_schema(json.dumps(schema)))
        assert not endless(written)
        bounds.check(Guide(GuideKind.GRAMMAR, written))
