"""Guided output of the onnx backend, from a model that of itself says nothing of the kind."""

import json
import re
from itertools import count

import jsonschema
import pytest
from driving import drive, outcome

from edge_agent.base.errors import Code, EdgeAgentError
from edge_agent.engine import backend
from edge_agent.engine.backend import ModelSpec
from edge_agent.engine.messages import FinishReason, Generation, Guide, GuideKind, JobId, Text, Turn

pytestmark = pytest.mark.engine

QUESTION = (Turn("user", "is the pump on? " * 8),)
READING = {
    "type": "object",
    "properties": {
        "device": {"enum": ["pump", "fan"]},
        "hours": {"type": "integer", "minimum": 0, "maximum": 99},
        "parts": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3},
    },
    "required": ["device", "hours", "parts"],
    "additionalProperties": False,
}
SCHEMA = Guide(GuideKind.JSON_SCHEMA, json.dumps(READING))
REGEX = Guide(GuideKind.REGEX, "[a-c]{3}-[0-9]{2,9}")
GRAMMAR = Guide(GuideKind.GRAMMAR, 'root ::= "yes" | "no" " way"')


@pytest.fixture(scope="module")
def model(tiny_model):
    """The tiny model, used by one test after the other."""
    loaded = backend.find("onnx")(ModelSpec(tiny_model, "onnx", 4096, 4, threads=1))
    yield loaded
    loaded.close()


@pytest.fixture(scope="module")
def ask():
    numbers = count(1)
    return lambda max_tokens=200, **options: Generation(JobId(f"{next(numbers)}.1"), QUESTION, max_tokens, **options)


@pytest.mark.parametrize("options", [{}, *({"temperature": 1.5, "seed": seed} for seed in range(12))], ids=str)
def test_a_schema_is_kept_to(model, ask, options):
    """The text is JSON of that schema, and ends by itself."""
    (said,) = drive(model, ask(guide=SCHEMA, **options))
    jsonschema.validate(json.loads(said.text), READING)
    assert said.end.reason is FinishReason.STOP
    assert sum(event.tokens for event in said.events if isinstance(event, Text)) == said.end.usage.completion_tokens


@pytest.mark.parametrize(
    ("guide", "pattern"), [(REGEX, "[a-c]{3}-[0-9]{2,9}"), (GRAMMAR, "yes|no way")], ids=["regex", "grammar"]
)
def test_a_regex_and_a_grammar_are_kept_to(model, ask, guide, pattern):
    for seed in range(8):
        (said,) = drive(model, ask(guide=guide, temperature=1.5, seed=seed))
        assert re.fullmatch(pattern, said.text)
        assert said.end.reason is FinishReason.STOP


def test_a_complete_text_ends_without_a_token_for_it(model, ask):
    """When nothing may follow, nothing more is computed."""
    (said,) = drive(model, ask(guide=GRAMMAR))
    *_, last = (event for event in said.events if isinstance(event, Text))
    assert said.text.endswith(last.text)
    assert last.text


def test_a_text_without_end_ends_at_its_length(model, ask):
    (said,) = drive(model, ask(20, guide=Guide(GuideKind.REGEX, "[0-9]+x")))
    assert re.fullmatch("[0-9]+", said.text)
    assert said.end.reason is FinishReason.LENGTH


def test_a_stop_string_ends_a_guided_text(model, ask):
    (said,) = drive(model, ask(guide=SCHEMA, stop=("hours",)))
    assert said.text.endswith('"')
    assert "hours" not in said.text
    assert said.end.reason is FinishReason.STOP


def test_a_guide_does_not_stay_in_its_lane(model, ask):
    """Guided or not, on the lane of one that was the other: the text is what it would be on a fresh one."""
    (free,) = drive(model, ask(40))
    (guided,) = drive(model, ask(40, guide=SCHEMA))
    (again,) = drive(model, ask(40))
    (guided_again,) = drive(model, ask(40, guide=SCHEMA))
    assert guided.end.usage.cached_tokens == guided.end.usage.prompt_tokens - 1
    assert again.end.usage.cached_tokens == again.end.usage.prompt_tokens - 1
    assert (again.text, guided_again.text) == (free.text, guided.text)
    assert free.text != guided.text


def test_guided_and_free_texts_do_not_mix(model, ask):
    """In one batch each keeps its own rule; the texts are those of each alone."""
    settings = [{}, {"guide": SCHEMA}, {"guide": REGEX}, {"guide": SCHEMA, "temperature": 1.0, "seed": 5}]
    alone = [drive(model, ask(40, **each))[0].text for each in settings]
    assert [each.text for each in drive(model, *(ask(40, **each) for each in settings))] == alone


def test_a_cancel_ends_a_guided_text(model, ask):
    """And the guide starts afresh with the next."""
    (whole,) = drive(model, ask(guide=SCHEMA))
    canceled = ask(guide=SCHEMA)
    model.start(canceled)
    events = []
    while sum(isinstance(event, Text) for event in events) < 5:
        events += model.step()
    events += model.cancel(canceled.job_id)
    said = outcome(events, canceled.job_id)
    assert said.end.reason is FinishReason.CANCELED
    assert whole.text.startswith(said.text)
    assert drive(model, ask(guide=SCHEMA))[0].text == whole.text


@pytest.mark.parametrize(
    ("guide", "reason"),
    [
        (Guide(GuideKind.JSON_SCHEMA, '{"type": "SECRET"}'), "type must be one of .*"),
        (Guide(GuideKind.JSON_SCHEMA, '{"$ref": "#"}'), "a .ref leads to nothing but itself"),
        (Guide(GuideKind.JSON_SCHEMA, '{"minimum": 5, "maximum": 3, "type": "integer"}'), "Unsatisfiable schema"),
        (Guide(GuideKind.JSON_SCHEMA, "SECRET"), "the schema is no JSON"),
        (Guide(GuideKind.REGEX, "SECRET[a-"), "unclosed character class"),
        (Guide(GuideKind.REGEX, '"SECRET(?=x)'), "look-around, .* is not supported"),
        *(
            (Guide(GuideKind.GRAMMAR, text), "a rule of the grammar never comes to an end, or is missing")
            for text in ("root ::= SECRET", 'root ::= "SECRET', "SECRET ::= [a-z]")
        ),
        (Guide(GuideKind.GRAMMAR, 'root ::= "a"{SECRET}'), "Expected integer"),
        (Guide(GuideKind.GRAMMAR, "root ::= [SECRET-A]"), "invalid character class range, .*"),
    ],
    ids=lambda value: getattr(value, "text", None),
)
def test_a_guide_that_cannot_be_followed_is_refused_with_the_reason(model, ask, guide, reason):
    """Before any compute; in one line that names the field and repeats nothing of it."""
    with pytest.raises(EdgeAgentError, match=f"^response_format: {reason}(; mend it)?$") as raised:
        model.start(ask(guide=guide))
    assert raised.value.code is Code.BAD_REQUEST
    assert "\n" not in raised.value.message
    assert "SECRET" not in raised.value.message
    assert not list(model.step())
