"""What servers are asked beyond OpenAI's own API, and what none of them is asked."""

import json

import pytest

from edge_agent.base.errors import Code, EdgeAgentError
from edge_agent.engine.messages import Generation, Guide, GuideKind, JobId, Turn
from edge_agent.engine.openai.wire import request

SCHEMA = {"type": "object", "properties": {"on": {"type": "boolean"}}}


def body(server="openai", **options):
    generation = Generation(JobId("1.1"), (Turn("user", "on?"),), 8, **options)
    return request(generation, model="m", server=server, data_url=lambda _image: "")


@pytest.mark.parametrize(
    ("server", "guide", "told"),
    [
        ("openai", Guide(GuideKind.JSON_SCHEMA, '{"type":"object"}'), {"response_format": {"type": "json_object"}}),
        (
            "openai",
            Guide(GuideKind.JSON_SCHEMA, json.dumps(SCHEMA)),
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "answer", "strict": True, "schema": SCHEMA},
                }
            },
        ),
        ("vllm", Guide(GuideKind.REGEX, "a+"), {"structured_outputs": {"regex": "a+"}}),
        ("vllm", Guide(GuideKind.GRAMMAR, "root ::= x"), {"structured_outputs": {"grammar": "root ::= x"}}),
        ("llama-server", Guide(GuideKind.GRAMMAR, "root ::= x"), {"grammar": "root ::= x"}),
    ],
)
def test_a_guide_is_told_in_the_servers_words(server, guide, told):
    assert body(server, guide=guide) == body(server) | told


@pytest.mark.parametrize(
    ("server", "options", "field"),
    [
        ("openai", {"guide": Guide(GuideKind.REGEX, "a+")}, "response_format"),
        ("openai", {"guide": Guide(GuideKind.GRAMMAR, "root ::= x")}, "response_format"),
        ("llama-server", {"guide": Guide(GuideKind.REGEX, "a+")}, "response_format"),
        ("openai", {"top_k": 4}, "top_k"),
        ("openai", {"repetition_penalty": 1.1}, "repetition_penalty"),
    ],
)
def test_what_a_server_has_no_word_for_is_refused_and_not_left_out(server, options, field):
    with pytest.raises(EdgeAgentError, match=f"^{field}: ") as raised:
        body(server, **options)
    assert raised.value.code is Code.UNSUPPORTED


def test_other_servers_take_more():
    options = {"top_k": 4, "repetition_penalty": 1.1}
    assert body("vllm", **options) == body() | options
    assert body("llama-server", **options) == body() | {"top_k": 4, "repeat_penalty": 1.1}
