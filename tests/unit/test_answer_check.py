"""The last word on a guided answer: what is not of its schema has failed, and telling that takes a bounded time."""

import json

import pytest

from edge_agent.base.errors import Code, EdgeAgentError
from edge_agent.engine.guides.answer_check import AnswerCheck, check
from edge_agent.engine.messages import (
    Failed,
    Finished,
    FinishReason,
    Generation,
    Guide,
    GuideKind,
    JobId,
    Text,
    TokenCounts,
    Turn,
)

SCHEMA = {"type": "object", "properties": {"on": {"type": "boolean"}}, "required": ["on"]}
COUNTS = TokenCounts(1, 1, 0)


def told(*texts, kind=GuideKind.JSON_SCHEMA, reason=FinishReason.STOP, schema=SCHEMA, stop=()):
    answers, job_id = AnswerCheck(), JobId("1.1")
    guide = Guide(kind, json.dumps(schema))
    answers.begun(Generation(job_id, (Turn("user", "on?"),), 9, guide=guide, stop=stop))
    for text in texts:
        assert answers.judged(Text(job_id, text, 1)) == Text(job_id, text, 1)
    end = answers.judged(Finished(job_id, reason, COUNTS, 1.0, 1.0))
    assert (answers._texts, answers._schemas) == ({}, {})
    return end.code if isinstance(end, Failed) else end.reason


def test_an_answer_that_breaks_its_schema_has_failed():
    assert told('{"on": ', "true}") is FinishReason.STOP
    assert told('{"on": ', "1}") is Code.INVALID_ANSWER
    assert told('{"on": 0c1}') is Code.INVALID_ANSWER
    assert told("") is Code.INVALID_ANSWER
    assert told("[" * 5000 + "]" * 5000) is Code.INVALID_ANSWER


def test_only_whole_answers_are_judged():
    """One that was cut off, or ended before a stop string, is no JSON; other guides are no schemas."""
    assert told('{"on": ', reason=FinishReason.LENGTH) is FinishReason.LENGTH
    assert told('{"on": ', reason=FinishReason.CANCELED) is FinishReason.CANCELED
    assert told('{"on": ', stop=("t",)) is FinishReason.STOP
    assert told("yes", kind=GuideKind.REGEX) is FinishReason.STOP


def test_one_that_failed_leaves_nothing():
    answers, job_id = AnswerCheck(), JobId("1.1")
    answers.begun(Generation(job_id, (), 9, guide=Guide(GuideKind.JSON_SCHEMA, json.dumps(SCHEMA))))
    answers.judged(Failed(job_id, Code.MODEL_ERROR, "it is broken"))
    assert (answers._texts, answers._schemas) == ({}, {})


NODE = {"anyOf": [{"type": "array", "items": {"$ref": "#/$defs/n"}}, {"enum": [1]}]}
TWICE = {"$ref": "#/$defs/n", "$defs": {"n": {"anyOf": [*NODE["anyOf"], {**NODE["anyOf"][0], "maxItems": 5}]}}}


def test_a_judge_that_would_look_at_it_for_ever_is_stopped():
    """Each level is looked at twice for each above it, as long as the answer is none."""
    check("[" * 40 + "1" + "]" * 40, json.dumps(TWICE))
    with pytest.raises(EdgeAgentError, match="takes too long") as raised:
        check("[" * 40 + "2" + "]" * 40, json.dumps(TWICE))
    assert raised.value.code is Code.BAD_REQUEST


@pytest.mark.parametrize("pattern", ["^(a+)+$", "^(a*)*$", "^((a+)b?)+$", "^(a|a)*$", "^(a|aa)+$", "^(a{1,9}){1,99}$"])
def test_expressions_that_python_thinks_of_for_ever_are_left_to_the_guide(pattern):
    check(json.dumps("a" * 40 + "!"), json.dumps({"type": "string", "pattern": pattern}))


def test_digits_are_those_of_ascii():
    """As the guides have it: an answer with others was not guided by this."""
    schema = json.dumps({"type": "string", "pattern": "^\\d$"})
    check('"7"', schema)
    with pytest.raises(EdgeAgentError):
        check(json.dumps("\u0667"), schema)
