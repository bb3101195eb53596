"""Guides through the whole daemon: hostile ones of every kind end in an answer or a refusal, and nobody else waits."""

import json
import os
import signal
from contextlib import contextmanager

import pytest
from running import AgentProcess, requester, wait_for

from edge_agent.base.errors import Code

pytestmark = [pytest.mark.broker, pytest.mark.engine]

TRIES = "edge_agent.engine.guides.child"
LETTERS = "abcdefghijklmnop"


def schema(value):
    return {"type": "json_schema", "schema": value}


def regex(text):
    return {"type": "regex", "regex": text}


def grammar(*rules):
    return {"type": "grammar", "grammar": "\n".join(rules)}


def optional(count, **more):
    return schema({"type": "object", "properties": {f"p{i}": {"type": "integer"} for i in range(count)}} | more)


def nested(depth):
    value = {"type": "string"}
    for _ in range(depth):
        value = {"anyOf": [value, {"type": "array", "items": value}]}
    return schema(value)


HOSTILE = {
    "counted in a star": regex("(.*a.{10}b.{10})*"),
    "wide and counted": regex("[\\s\\S]{128}" * 4),
    "nested stars": regex("(" * 25 + ".*|a" + ")*" * 25),
    "stars in a row": regex("(" + "(.*x)*(.*y)*" * 60 + ")*"),
    "late choice": regex("(a|b)*a" + "(a|b)" * 40),
    "many endings": regex("(" + "|".join(f"ab{i}.*" for i in range(200)) + ")*"),
    "classes of unicode": regex("[^\\x00-\\x7f]{1,128}(\\w{1,128}|\\W{1,128})"),
    "optional, so many of them": optional(200, additionalProperties=False, minProperties=100, maxProperties=101),
    "optional": optional(300),
    "long texts": schema(
        {"type": "object", "properties": {f"k{i}": {"type": "string", "maxLength": 100 - i} for i in range(5)}}
    ),
    "either, nested": nested(5),
    "itself in all": schema(
        {
            "$defs": {"a": {"type": "object", "properties": {each: {"$ref": "#/$defs/a"} for each in LETTERS}}},
            "$ref": "#/$defs/a",
        }
    ),
    "large enum": schema({"enum": [f"{number:06}" for number in range(1500)]}),
    "alike to the end": schema({"type": "array", "items": {"enum": ["a" * i + "b" for i in range(1, 150)]}}),
    "long lists of lists": schema(
        {"type": "array", "items": {"type": "array", "minItems": 1000, "maxItems": 1024}, "minItems": 1000}
    ),
    "ambiguous": grammar("root ::= s", "s ::= s s | [a-z ] | s s s s | s s s"),
    "doubled": grammar("root ::= a0", *(f"a{i} ::= a{i + 1} a{i + 1}" for i in range(60)), 'a60 ::= "x"'),
    "doubled or not": grammar("root ::= a0", *(f"a{i} ::= a{i + 1}? a{i + 1}?" for i in range(11)), "a11 ::= [a-z]*"),
    "nothing, often": grammar("root ::= a*", 'a ::= ""* b*', 'b ::= a | ""'),
}
ROUNDS = int(os.environ.get("HOSTILE_GUIDES_ROUNDS", "0"))
"""The long form asks for each so often, with other seeds; the short one for some, once."""
SOME = ("counted in a star", "wide and counted", "nested stars", "optional, so many of them", "either, nested")
SOME += ("itself in all", "large enum", "ambiguous", "doubled", "classes of unicode")


@pytest.fixture(scope="module", params=["onnx", "openvino"])
def demo(request, tmp_path_factory):
    """The trained model for each library that follows guides."""
    from edge_agent.synth import build_demo

    return build_demo(tmp_path_factory.mktemp("models") / request.param, backend=request.param)


@contextmanager
def daemon(folder, broker, model, *, parallel=4):
    models = [{"name": "demo", "path": str(model), "context_tokens": 1024, "parallel": parallel}]
    with AgentProcess(folder=folder / "agent", broker=broker, models=models) as agent:
        agent.wait_said("engine.ready")
        yield agent


def trying(agent):
    return [child.pid for child in agent.engines(TRIES)]


def answer(handle):
    """Return what became of a job, in the protocol's words."""
    result = handle.result(120)
    return result.state, result.error and result.error.code


@pytest.mark.timeout(120 + 120 * ROUNDS)
def test_hostile_guides_end_in_an_answer_or_a_refusal(broker, tmp_path, demo):
    """The engine stays, and another requester's jobs are answered meanwhile, one after the other."""
    with daemon(tmp_path, broker, demo) as agent, requester(broker, "mallory") as mallory, requester(broker) as bob:
        for seed in range(ROUNDS or 1):
            asked = {
                name: mallory.submit(
                    "edge-01", prompt="Turn on the fan. aaaa", max_tokens=32, temperature=1.5, seed=seed,
                    response_format=guide,
                )
                for name, guide in HOSTILE.items()
                if ROUNDS or name in SOME
            }  # fmt: skip
            waiting = dict(asked)
            while waiting:
                bob.submit("edge-01", prompt="Turn on the fan.", max_tokens=4).result(60)
                waiting = {name: handle for name, handle in waiting.items() if not handle.done}
            outcomes = {name: answer(handle) for name, handle in asked.items()}
            odd = {each for each in outcomes.values() if each != ("succeeded", None)}
            assert odd <= {("failed", Code.BAD_REQUEST), ("failed", Code.UNSUPPORTED)}, outcomes
        assert len(agent.said("engine.ready")) == 1
        assert not agent.said("engine.lost")


def test_a_free_text_of_the_same_requester_does_not_wait_for_a_trial(broker, tmp_path, demo):
    """Nor does another's: it begins and ends while the child that tries is stopped in the middle."""
    with daemon(tmp_path, broker, demo, parallel=1) as agent, requester(broker) as client:
        client.submit("edge-01", prompt="Hello", max_tokens=2, response_format=regex("a|b")).result(60)
        (child,) = trying(agent)
        os.kill(child, signal.SIGSTOP)
        guided = client.submit("edge-01", prompt="Hello", max_tokens=2, response_format=regex("c|d"))
        free = client.submit("edge-01", prompt="Turn on the fan.", max_tokens=8).result(60)
        known = client.submit("edge-01", prompt="Hello", max_tokens=2, response_format=regex("a|b")).result(60)
        assert free.state == known.state == "succeeded"
        assert not guided.done
        os.kill(child, signal.SIGKILL)
        assert guided.result(60).text in {"c", "d"}
        assert trying(agent) != [child]
        assert agent.said("guides.died")


def test_a_guide_that_was_tried_before_a_restart_is_tried_again(broker, tmp_path, demo):
    """Nothing of a verdict is on the disk: a job that waited through a restart is not lost, and not run untried."""
    with daemon(tmp_path, broker, demo) as agent, requester(broker) as client:
        client.submit("edge-01", prompt="Hello", max_tokens=2, response_format=regex("a|b")).result(60)
        (child,) = trying(agent)
        os.kill(child, signal.SIGSTOP)
        waiting = client.submit("edge-01", prompt="Hello", max_tokens=2, response_format=regex("c|d"))
        wait_for(lambda: len(agent.said("job.accepted")) == 2, "the job")
        agent.kill()
        agent.start()
        assert waiting.result(60).text in {"c", "d"}
        assert json.dumps(agent.said("engine.lost")) == "[]"
