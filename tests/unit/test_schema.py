"""A JSON Schema is kept or refused: what its grammar writes is of the schema, by the judge that the standard has."""

import json
import random
import re

import pytest
from jsonschema import Draft4Validator, Draft7Validator, Draft202012Validator

from edge_agent.base.errors import Code, EdgeAgentError
from edge_agent.engine.guides.grammar import read
from edge_agent.engine.guides.guide import asked_schema, check
from edge_agent.engine.guides.json_grammar import translated
from edge_agent.engine.guides.schema import SchemaError
from edge_agent.engine.messages import Guide, GuideKind
from tests.schemas import DRAFT_4, KEPT, OPENAPI, REFUSED, random_schema

SAMPLES = 60
DEEP = 14
"""Rules within rules, from where a sample takes the shortest way."""


def sample(rules, chance, name="root", depth=0):  # noqa: C901 - one case for each part of a rule
    """Return a text of a grammar, by chance."""

    def body(alternatives, depth):
        some = alternatives if depth < DEEP else sorted(alternatives, key=lambda each: sum(map(weight, each)))[:1]
        return "".join(part(each, depth) for each in chance.choice(some))

    def weight(each):
        if each.least == 0:
            return 0
        if each.name is not None:
            return 20 if each.name in {"object", "array", "any", "member"} else 3
        return max((sum(map(weight, sequence)) for sequence in each.group), default=1)

    def part(each, depth):
        spare = 0 if depth >= DEEP else chance.choice((0, 0, 1, 2))
        times = each.least + spare if each.most is None else min(each.least + spare, each.most)
        return "".join(one(each, depth) for _ in range(times))

    def one(each, depth):
        if each.text is not None:
            return each.text
        if each.name is not None:
            return sample(rules, chance, each.name, depth + 1)
        if not each.among:
            return body(each.group, depth + 1)
        if not each.negated:
            low, high = chance.choice(each.among)
            return chr(chance.randint(low, high))
        while True:
            found = chr(chance.choice((chance.randint(0x20, 0x7E), chance.choice((0xE9, 0x4E16, 0x1F642)))))
            if not any(low <= ord(found) <= high for low, high in each.among):
                return found

    return body(rules[name], depth)


def samples(schema, seed=1, count=SAMPLES):
    rules, chance = read(translated(asked_schema(json.dumps(schema)))), random.Random(seed)
    return [sample(rules, chance) for _ in range(count)]


def wrong(validator, texts):
    """Return what is no JSON, or not of the schema."""
    found = []
    for text in texts:
        try:
            value = json.loads(text)
        except ValueError:
            found.append(text)
            continue
        if not validator.is_valid(value):
            found.append(text)
    return found


@pytest.mark.parametrize("schema", KEPT.values(), ids=KEPT)
def test_what_is_written_is_of_the_schema(schema):
    check(Guide(GuideKind.JSON_SCHEMA, json.dumps(schema)))
    validator = Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER)
    assert wrong(validator, samples(schema)) == []


@pytest.mark.parametrize("schema", DRAFT_4.values(), ids=DRAFT_4)
def test_older_drafts_mean_what_they_meant(schema):
    validator = Draft4Validator(schema) if "exclusive" in json.dumps(schema) else Draft7Validator(schema)
    assert wrong(validator, samples(schema)) == []


@pytest.mark.parametrize(("schema", "meant"), OPENAPI.values(), ids=OPENAPI)
def test_what_openapi_spells_otherwise_means_the_same(schema, meant):
    texts = samples(schema, count=4 * SAMPLES)
    assert wrong(Draft202012Validator(meant), texts) == []
    assert (None in map(json.loads, texts)) == Draft202012Validator(meant).is_valid(None)


@pytest.mark.parametrize(("schema", "named"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_kept_is_refused_by_its_name(schema, named):
    """Before the job is accepted, or where the engine has its own grammar by that."""
    with pytest.raises((EdgeAgentError, SchemaError)) as raised:
        translated(asked_schema(json.dumps(schema)))
    assert re.search(rf"\b{re.escape(named)}\b", str(raised.value).replace("$ref", "ref")), raised.value
    if isinstance(raised.value, EdgeAgentError):
        assert raised.value.code in {Code.UNSUPPORTED, Code.BAD_REQUEST}


def test_of_many_schemas_made_by_chance_every_answer_is_of_its_schema():
    """Keywords of every kind beside, above and below each other; most are kept."""
    chance, kept = random.Random(7), 0
    for number in range(600):
        schema = random_schema(chance)
        try:
            texts = samples(schema, seed=number, count=8)
        except (EdgeAgentError, SchemaError):
            continue
        kept += 1
        assert wrong(Draft202012Validator(schema), texts) == [], schema
    assert kept > 300


@pytest.mark.parametrize("schema", KEPT.values(), ids=KEPT)
def test_one_spelling_asks_for_no_more_than_the_schema(schema):
    """Of the samples of a schema each is of its one spelling too: the libraries are asked for that."""
    spelled = asked_schema(json.dumps(schema))
    assert wrong(Draft202012Validator(spelled), samples(schema)) == []


def doubling(length, **beside):
    """Return a schema of which each part refers twice to the next."""
    parts = {
        f"p{n}": {"type": "object", "properties": {k: {"$ref": f"#/$defs/p{n + 1}", **beside} for k in "ab"}}
        for n in range(length)
    }
    return {"$ref": "#/$defs/p0", "$defs": parts | {f"p{length}": {"type": "object"}}}


HOSTILE = {
    "twice and twice again": doubling(24, required=["a"]),
    "alternatives of alternatives": {
        "allOf": [{"anyOf": [{"minimum": n}, {"maximum": -n}]} for n in range(20)],
        "type": "number",
    },
    "an expression that Python thinks of for ever": {"enum": ["a" * 40 + "!"], "type": "string", "pattern": "^(a+)+$"},
    "the same within": {
        "enum": [{"b": "a" * 40 + "!"}],
        "properties": {"b": {"type": "string", "pattern": "^(a+)+$"}},
        "type": "object",
    },
    "names by such an expression": {"enum": [{"a" * 40 + "!": 1}], "patternProperties": {"^(a+)+$": True}},
}


@pytest.mark.parametrize("schema", HOSTILE.values(), ids=HOSTILE)
def test_what_would_take_for_ever_is_refused(schema):
    """It is looked at where everybody's jobs come in."""
    with pytest.raises(EdgeAgentError) as raised:
        check(Guide(GuideKind.JSON_SCHEMA, json.dumps(schema)))
    assert raised.value.code is Code.UNSUPPORTED


def test_the_same_part_in_many_places_costs_nothing():
    """As long as nothing stands beside the references."""
    assert "root ::=" in translated(asked_schema(json.dumps(doubling(24))))


NOT_APART = {
    "a branch without a type": {"oneOf": [{"type": "integer"}, {"maxLength": 5}]},
    "properties without a type": {
        "oneOf": [{"type": "string"}, {"properties": {"a": {"type": "string"}}, "required": ["a"]}]
    },
    "an alternative that was left out": {
        "oneOf": [{"anyOf": [{"type": "string"}, {"type": "integer", "multipleOf": 1}]}, {"type": "integer"}]
    },
    "tags of what need not be an object": {
        "oneOf": [{"type": ["object", "string"], "properties": {"t": {"const": tag}}} for tag in "ab"]
    },
    "the same number": {"oneOf": [{"const": 1}, {"const": 1.0}]},
    "the same object": {"oneOf": [{"const": {"a": 1, "b": 2}}, {"const": {"b": 2, "a": 1}}]},
    "true is not 1": {"const": 1, "enum": [True]},
    "a reference that is moved": {
        "type": "object",
        "properties": {"p": {"$id": "http://x/p", "$ref": "#/$defs/q", "$defs": {"q": {"type": "integer"}}}},
        "$defs": {"q": {"type": "string"}},
    },
}


@pytest.mark.parametrize("schema", NOT_APART.values(), ids=NOT_APART)
def test_what_was_narrowed_proves_nothing(schema):
    with pytest.raises(EdgeAgentError) as raised:
        asked_schema(json.dumps(schema))
    assert raised.value.code is Code.UNSUPPORTED
