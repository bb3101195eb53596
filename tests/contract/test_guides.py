"""Guided output of every backend: one notation, the same answers, and none that holds up the others."""

import json
import os
import random
import re
import time
from dataclasses import replace

import jsonschema
import pytest
from driving import drive

from edge_agent.base.errors import Code, EdgeAgentError
from edge_agent.engine.guides import burden
from edge_agent.engine.guides.guide import TOO_SLOW
from edge_agent.engine.messages import Failed, Finished, FinishReason, Generation, Guide, GuideKind, Text, Turn
from tests.schemas import KEPT, random_schema

QUESTION = (Turn("user", "is the pump on? " * 8),)
STATE = {
    "type": "object",
    "properties": {"the device": {"enum": ["the pump", "caf\u00e9 \u4e16"]}, "on": {"type": "boolean"}},
    "required": ["the device", "on"],
    "additionalProperties": False,
}


def regex(text):
    return Guide(GuideKind.REGEX, text), text


def grammar(text, pattern):
    return Guide(GuideKind.GRAMMAR, text), pattern


ODD = "\t\n\r !#$%&'()*+,-./:;<=>?@[]^_`{|}~\\\"\x7f\u00e9\u2028\u4e16\U0001f600"
ODD_TEXT = '"' + ODD.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
"""Characters that mean something to somebody who reads a grammar."""


@pytest.fixture
def ask(job_id):
    return lambda max_tokens=200, **options: Generation(job_id(), QUESTION, max_tokens, **options)


@pytest.mark.parametrize(
    ("guide", "pattern"),
    [
        regex("(yes|no)"),
        regex("yes no"),
        regex("( the){3}"),
        regex("[a-c]{3}-[0-9]{2,9}"),
        regex("[\u00e0-\u00ff]{3}\u4e16"),
        regex("[a-z ]{20}[.!]"),
        grammar('root ::= "a" "b"{2,3} "c"', "abb{1,2}c"),
        grammar('root ::= "the " the-thing " is on"\nthe-thing ::= "pump" | "fan"', "the (pump|fan) is on"),
        grammar('# a list\nroot ::= item ("," item)? # of\nitem ::= [a-z]{2}', "[a-z]{2}(,[a-z]{2})?"),
        grammar('root ::= nested\nnested ::= "(" nested ")" | "x"', r"\(*x\)*"),
        grammar('root ::= "\\u4e16" "\\x41" [\\u00e0-\\u00ff] "\\"\\\\"', '\u4e16A[\u00e0-\u00ff]"\\\\'),
        grammar('# it\'s a "\nroot ::= "(" a-b a_b # ) "\na-b ::= "#"\na_b ::=\n "\\n" |\n "/"', "\\(#[\n/]"),
        grammar(f"root ::= {ODD_TEXT}", re.escape(ODD)),
        grammar("root ::= " + " ".join(f"[\\x{ord(each):02x}]" for each in ODD if each < "\x80"), re.escape(ODD[:-4])),
        grammar("root ::= [^\\x00-\\x1f a-zA-Z0-9]{3} . [&&x] [-a]", "(?s)[^a-zA-Z0-9]{3}.[&x][a-]"),
    ],
    ids=lambda value: getattr(value, "text", None),
)
def test_a_text_keeps_to_its_guide_to_the_letter(model, ask, guide, pattern):
    """Spaces, also the first, and characters that are no token of the vocabulary; greedy and sampled."""
    for options in ({}, *({"temperature": 1.5, "seed": seed} for seed in range(4))):
        (said,) = drive(model, ask(guide=guide, **options))
        assert re.fullmatch(pattern, said.text)
        assert said.end.reason is FinishReason.STOP


def test_words_in_a_schema_are_said_to_the_letter(model, ask):
    """Names and values with spaces and rarer characters."""
    for seed in range(4):
        guide = Guide(GuideKind.JSON_SCHEMA, json.dumps(STATE))
        (said,) = drive(model, ask(400, guide=guide, temperature=1.5, seed=seed))
        jsonschema.validate(json.loads(said.text), STATE)


SCHEMAS = {
    "itself": {"properties": {"a": {"$ref": "#"}, "b": {"enum": ["x", 'y"\\', None, [1, {}]]}}, "required": ["b"]},
    "some of many": {"type": "object", "properties": {f"k{i}": {"type": "boolean"} for i in range(5)}},
    "one of many": {"properties": {"a": True, "b": {"type": "null"}, "c": {"type": "null"}}, "required": ["b"]},
    "others": {"properties": {"a": {"type": "null"}}, "additionalProperties": {"type": "integer"}, "required": ["a"]},
    "lists": {
        "type": "array",
        "items": {"type": "integer", "minimum": -17, "maximum": 120},
        "minItems": 2,
        "maxItems": 4,
    },
    "places": {
        "type": "array",
        "prefixItems": [{"format": "uuid", "type": "string"}, {"type": "null"}],
        "items": False,
    },
    "times": {"type": "array", "items": {"type": "string", "format": "date-time"}, "minItems": 1, "maxItems": 2},
    "codes": {"type": "string", "pattern": r"^([A-Z]{2}-\d{1,3}|(?:no|yes)[ .]?)+$"},
    "characters": {"type": "string", "pattern": r"[^a-z\d\-]{2,9}[+\-^.\]]\.[\w ]x?"},
    "lengths": {"type": ["string", "null"], "minLength": 2, "maxLength": 5},
    "numbers": {"anyOf": [{"type": "number", "minimum": 2, "maximum": 3}, {"type": "integer", "exclusiveMaximum": 0}]},
}


@pytest.mark.parametrize("schema", SCHEMAS.values(), ids=SCHEMAS)
def test_an_answer_keeps_to_its_schema(model, ask, schema):
    """Greedy and sampled, whole or cut off by its tokens."""
    guide = Guide(GuideKind.JSON_SCHEMA, json.dumps(schema))
    for options in ({}, *({"temperature": 1.5, "seed": seed} for seed in range(4))):
        (said,) = drive(model, ask(120, guide=guide, **options))
        if said.end.reason is FinishReason.STOP:
            jsonschema.validate(json.loads(said.text), schema, format_checker=jsonschema.FormatChecker())


@pytest.mark.parametrize("text", ['start: "yes"', '%llguidance {}\nstart: "yes"', "yes | no"])
def test_a_grammar_in_another_notation_is_refused(model, ask, text):
    """Whatever the library could make of it: a job runs on any build, or on none."""
    with pytest.raises(EdgeAgentError, match=r"EBNF \(root ::= \.\.\.\)") as raised:
        model.start(ask(guide=Guide(GuideKind.GRAMMAR, text)))
    assert raised.value.code is Code.UNSUPPORTED


@pytest.mark.parametrize(
    "guide",
    [
        Guide(GuideKind.GRAMMAR, "root ::= root"),
        Guide(GuideKind.GRAMMAR, 'root ::= "ab" a\na ::= a "x" | b\nb ::= a'),
        Guide(GuideKind.GRAMMAR, 'root ::= "ab" a'),
        Guide(GuideKind.GRAMMAR, 'root ::= "ab"\na ::= a'),
        Guide(GuideKind.JSON_SCHEMA, '{"$ref":"#"}'),
        Guide(GuideKind.JSON_SCHEMA, '{"$ref":"#/$defs/a","$defs":{"a":{"anyOf":[{"$ref":"#/$defs/a"}]}}}'),
        Guide(GuideKind.JSON_SCHEMA, '{"enum":[]}'),
    ],
    ids=lambda guide: guide.text,
)
def test_a_guide_that_leads_nowhere_is_refused(model, ask, guide):
    """openvino-genai dies where nothing may come next, seen with a sampled answer; so none gets as far as that."""
    with pytest.raises(EdgeAgentError, match=r"^response_format: ") as raised:
        model.start(ask(guide=guide, temperature=1.0, seed=1))
    assert raised.value.code is Code.BAD_REQUEST
    assert not list(model.step())


HOSTILE = {
    "many optional properties": {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(900)}},
    "deep": json.loads('{"items":' * 30 + '{"type":"string"}' + "}" * 30),
    "long strings": {"type": "array", "items": {"type": "string", "maxLength": 128}, "maxItems": 1024},
    "many choices": {"anyOf": [{"type": "string", "maxLength": length % 128} for length in range(500)]},
    "back to back": {"type": "string", "pattern": "^(a?){24}a{24}$"},
}
HOSTILE_EXPRESSIONS = ["((a|b|ab)*c){1,128}", "(.*a){1,24}.{100}", "([^x]{1,100}x){1,5}"]
HOSTILE_GRAMMARS = [
    'root ::= a\na ::= a a a | ""',
    'root ::= a*\na ::= "x"* a | "x"*',
    'root ::= a\na ::= b "x" | "x"\nb ::= a "y" | a',
    "\n".join(["root ::= r0", *(f"r{i} ::= r{i + 1}" for i in range(250)), 'r250 ::= "x"']),
]


@pytest.mark.parametrize(
    "guide",
    [
        *(Guide(GuideKind.JSON_SCHEMA, json.dumps(schema)) for schema in HOSTILE.values()),
        *(Guide(GuideKind.REGEX, text) for text in HOSTILE_EXPRESSIONS),
        *(Guide(GuideKind.GRAMMAR, text) for text in HOSTILE_GRAMMARS),
    ],
    ids=[*HOSTILE, *HOSTILE_EXPRESSIONS, *(text[:30] for text in HOSTILE_GRAMMARS)],
)
def test_a_hostile_guide_takes_no_time(model, ask, guide):
    """Refused or followed: neither its start nor a step of it holds up the others for a second."""
    neighbour = ask(400)
    model.start(neighbour)
    slowest_s, begun_s = 0.0, time.process_time()
    refused = None
    try:
        model.start(hostile := ask(40, guide=guide, temperature=1.0, seed=1))
    except EdgeAgentError as error:
        hostile, refused = None, error
    slowest_s = time.process_time() - begun_s
    for _ in range(60):
        if hostile is None:
            break
        begun_s = time.process_time()
        events = [event for event in model.step() if event.job_id == hostile.job_id]
        slowest_s = max(slowest_s, time.process_time() - begun_s)
        assert all(event.code is Code.BAD_REQUEST for event in events if isinstance(event, Failed))
        if any(not hasattr(event, "text") and not hasattr(event, "unprocessed_tokens") for event in events):
            hostile = None
    assert slowest_s < 1
    assert refused is None or refused.message.startswith("response_format: ")
    (end,) = (event for event in model.cancel(neighbour.job_id) if not isinstance(event, Text))
    assert end.reason is FinishReason.CANCELED
    if hostile is not None:
        list(model.cancel(hostile.job_id))


def test_a_text_that_took_what_all_its_tokens_may_is_ended(model, ask, monkeypatch):
    """Though none of them took long; the others go on. That so much is allowed at all is tried without a model."""
    model.start(slow := ask(900, guide=Guide(GuideKind.REGEX, "[a-z ]*\u2603")))
    model.start(neighbour := ask(40))
    for bound in ("EASY_S", "ALLOWED_S", "BORNE"):
        monkeypatch.setattr(burden, bound, 0)
    ends = {}
    while len(ends) < 2:
        ends |= {each.job_id: each for each in model.step() if isinstance(each, Failed | Finished)}
    assert ends[slow.job_id] == Failed(slow.job_id, Code.BAD_REQUEST, TOO_SLOW)
    assert isinstance(ends[neighbour.job_id], Finished)


TOLD = [
    *({"$ref": target} for target in ("SECRET.json", "http://127.0.0.1:9/SECRET", "#SECRET", "#/SECRET", "")),
    {"$id": "http://SECRET", "$ref": "http://SECRET"},
    *({"type": "string", "pattern": text} for text in ("SECRET(", "SECRET\\q", "a^SECRET", "a$SECRET", "(?iSECRET)")),
    {"type": "string", "pattern": "SECRET", "maxLength": 2},
    {"type": "object", "patternProperties": {"SECRET[z-a]": {}}},
    {"type": "object", "properties": {"SECRET": False}, "required": ["SECRET"]},
]


def refusal(model, generation):
    """Return why a generation is not begun; None when it is."""
    try:
        model.start(generation)
    except EdgeAgentError as error:
        return error
    list(model.cancel(generation.job_id))
    return None


@pytest.mark.parametrize("schema", TOLD, ids=json.dumps)
def test_what_is_asked_for_is_told_to_nobody(model, ask, schema, capfd):
    """Libraries print what they do not like, and what children print stands in the agent's log."""
    asked = [Guide(GuideKind.JSON_SCHEMA, json.dumps(schema))]
    asked += [Guide(GuideKind.REGEX, schema["pattern"])] if "pattern" in schema else []
    refusals = [refusal(model, ask(guide=guide)) for guide in asked]
    assert "SECRET" not in "".join((*map(str, refusals), *capfd.readouterr()))


@pytest.mark.parametrize(
    "guide",
    [
        Guide(GuideKind.JSON_SCHEMA, '{"$ref":"other.json"}'),
        Guide(GuideKind.JSON_SCHEMA, '{"type":"string","pattern":"^(a|bbb)$","maxLength":2}'),
        Guide(GuideKind.REGEX, r"a\yb"),
    ],
    ids=lambda guide: guide.text,
)
def test_no_part_of_a_guide_is_quietly_left_out(model, ask, guide):
    """Asked once more it is no better, though the library says nothing then."""
    for _ in range(2):
        refused = refusal(model, ask(guide=guide))
        assert (refused and refused.code) in {Code.BAD_REQUEST, Code.UNSUPPORTED} or (
            drive(model, ask(guide=guide))[0].text == '"a"'
        )


def test_whose_a_guide_is_changes_nothing_of_it(model, ask):
    """Each owner has their own, of every kind: what it lets through is the same."""
    asked = [
        Guide(GuideKind.REGEX, "(yes|no)!"),
        Guide(GuideKind.JSON_SCHEMA, json.dumps(STATE)),
        Guide(GuideKind.JSON_SCHEMA, json.dumps({"type": "number", "exclusiveMinimum": 0.5, "maximum": 0.75})),
        Guide(GuideKind.GRAMMAR, 'root ::= "the " ("pump" | "fan")'),
    ]
    for guide in asked:
        texts = {drive(model, ask(guide=replace(guide, owner=owner)))[0].text for owner in ("", "line-3", "a#b")}
        assert len(texts) == 1, guide


ANSWERS = int(os.environ.get("SCHEMA_ANSWERS", "300"))
"""How many answers are held against their schemas; the long form takes 10,000, over schemas made by chance too."""
REFUSALS = frozenset({Code.UNSUPPORTED, Code.BAD_REQUEST})


@pytest.mark.timeout(120 + ANSWERS)
def test_every_answer_is_of_its_schema_or_the_schema_was_refused_by_name(model, ask):
    """By random weights, at a high temperature: whatever the guide lets through comes sooner or later."""
    chance, whole = random.Random(3), 0
    schemas = [*KEPT.values()]
    schemas += [random_schema(chance) for _ in range(ANSWERS // 10)]
    for number in range(ANSWERS):
        schema = schemas[number % len(schemas)]
        guide = Guide(GuideKind.JSON_SCHEMA, json.dumps(schema))
        refused = None
        try:
            (said,) = drive(model, ask(guide=guide, temperature=1.5, seed=number, max_tokens=200))
        except EdgeAgentError as error:
            refused = error.code
        if refused is not None:
            assert refused in REFUSALS, schema
            assert schema not in KEPT.values(), schema
            continue
        assert isinstance(said.end, Finished), (schema, said.end)
        if said.end.reason is FinishReason.STOP:
            whole += 1
            assert jsonschema.Draft202012Validator(schema).is_valid(json.loads(said.text)), (schema, said.text)
    assert whole > ANSWERS / 3
