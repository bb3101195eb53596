"""What the keywords of a JSON Schema may hold: every keyword with every type, held against the standard."""

import json
import sys

import jsonschema
import pytest

from edge_agent.base.errors import Code, EdgeAgentError
from edge_agent.engine.guides import guide as bounds
from edge_agent.engine.guides.json_grammar import translated
from edge_agent.engine.guides.schema import SchemaError
from edge_agent.engine.messages import Guide, GuideKind
from edge_agent.jobs import json_schema

KEYWORDS = sorted(json_schema._RULES)
VALUES = (
    *(None, True, False, 0, 1, 2, -1, 1.5, 128, 129, 1025, 1e308, -1e308, sys.float_info.min, 10**15, 10**300),
    *("", "string", "date", "^a", "#", "#/$defs", "#/properties", "\u2028", "\U0010ffff", "a" * 5000),
    *([], [None], ["string"], ["string", "null"], ["string", 1], [[]], [{}], [{"type": "null"}], [True]),
    *({}, {"a": True}, {"a": {}}, {"a": []}, {"a": None}, {"type": "string"}, {"type": {}}, {"a": {"format": []}}),
)
NO_NUMBERS = (float("inf"), float("-inf"), float("nan"), 5e-324, -1e-310, 10**400, -(10**400))
DRAFT_4 = jsonschema.Draft4Validator(jsonschema.Draft4Validator.META_SCHEMA)
DRAFT_7 = jsonschema.Draft7Validator(jsonschema.Draft7Validator.META_SCHEMA)
META = jsonschema.Draft202012Validator(jsonschema.Draft202012Validator.META_SCHEMA)
BY_FORM = {"$id", "$anchor", "$schema"}
"""The standard asks for more of them than that they are strings."""


def fault(schema):
    """Return what is said of a schema; None when nothing is."""
    try:
        json_schema.check(schema)
    except ValueError as error:
        return str(error)
    return None


@pytest.mark.parametrize("keyword", KEYWORDS)
def test_a_keyword_holds_what_the_standard_lets_it(keyword):
    """With the keyword named where it does not, wherever in the schema it stands."""
    for value in VALUES:
        allowed = META.is_valid({keyword: value}) if keyword not in BY_FORM else isinstance(value, str)
        if (keyword, value) == ("enum", []) or (keyword in json_schema.COUNTS and isinstance(value, float)):
            allowed = False  # stricter than the standard: it would let nothing pass, or is written with a point
        if keyword in json_schema.EXCLUSIVE:  # true and false in draft 4
            allowed = allowed or DRAFT_4.is_valid({"minimum": 1, "maximum": 1, keyword: value})
        if keyword == "items" and value:  # a list of schemas up to 2019-09
            allowed = allowed or DRAFT_7.is_valid({keyword: value})
        for schema in ({keyword: value}, {"items": {keyword: value}}, {"anyOf": [True, {keyword: value}]}):
            said = fault(schema)
            assert (said is None) is allowed, (keyword, value, said)
            assert said is None or said.split()[0] in KEYWORDS


@pytest.mark.parametrize("number", NO_NUMBERS)
def test_a_number_that_no_reader_knows_is_refused_wherever_it_stands(number):
    for schema in ({"minimum": number}, {"const": [number]}, {"default": {"a": number}}, {"unknown": [{"b": number}]}):
        assert fault(schema) == "a number in the schema is too large, too small or none"


def test_whatever_a_keyword_holds_is_refused_with_a_sentence_or_translated():
    """The bounds and the translation come to an end with it, alone and beside another keyword."""
    for keyword in KEYWORDS:
        for value in VALUES:
            for more in ({}, {"type": "string"}, {"$ref": "#/$defs/a", "$defs": {"a": {"type": "null"}}}):
                text = json.dumps({keyword: value} | more)
                refused = refusal(text)
                if refused is None:
                    assert translated(text) != ""
                else:
                    assert refused.code in {Code.BAD_REQUEST, Code.UNSUPPORTED}
                    assert refused.message.startswith("response_format: ")


def refusal(text):
    """Return how the bounds refuse a schema; None when they do not."""
    try:
        bounds.check(Guide(GuideKind.JSON_SCHEMA, text))
    except EdgeAgentError as error:
        return error
    return None


@pytest.mark.parametrize("number", [-(2**63), 1 - 2**63, 2**63 + 4096, -1e300, 1e300])
def test_a_number_beyond_64_bits_is_refused_here(number):
    """llguidance dies of an integer that is to be one of the smallest (1.9)."""
    for schema in ({"type": "integer", "const": number}, {"enum": [number]}, {"minimum": number, "maximum": number}):
        assert refusal(json.dumps(schema)).message.endswith("too large, too small or none; mend it")
    assert refusal(json.dumps({"type": "integer", "maximum": 2**63 - 1})) is None


@pytest.mark.parametrize("schema", [{"pattern": "\0"}, {"patternProperties": {"\0": {}}}, {"const": {"a": ["b\0"]}}])
def test_a_nul_is_refused_wherever_it_stands(schema):
    """openvino-genai dies of one in a pattern (2026.4)."""
    assert fault(schema) == fault({"items": schema}) == "there is a NUL character in the schema"


@pytest.mark.parametrize("reference", ["#/$defs", "#/properties", "#/enum", "#/const", "#/required", "#/default"])
def test_a_reference_leads_to_a_schema(reference):
    """What is no schema was not looked at as one."""
    schema = {"$defs": {"a": {}}, "properties": {"b": {"$ref": reference}}, "enum": [1], "const": {"format": []}}
    schema |= {"required": ["b"], "default": {"type": []}}
    with pytest.raises(EdgeAgentError, match=r"^response_format: a \$ref must lead to a schema"):
        bounds.check(Guide(GuideKind.JSON_SCHEMA, json.dumps(schema)))


@pytest.mark.parametrize(("length", "followed"), [(50, True), (600, False)])
def test_a_long_chain_of_references_is_followed_as_far_as_python_goes(length, followed):
    chain = {f"d{n}": {"type": "array", "items": {"$ref": f"#/$defs/d{n + 1}"}} for n in range(length)}
    text = json.dumps({"$ref": "#/$defs/d0", "$defs": chain | {f"d{length}": {}}})

    def written():
        return translated(bounds.asked_schema(text))

    if followed:
        assert "root ::=" in written()
    else:
        with pytest.raises((EdgeAgentError, SchemaError), match="flatten"):
            written()
