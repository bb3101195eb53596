"""The [[watch]] tables: every fault is found when they are read, and named by its key."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from test_filters import filters

from edge_agent.base.errors import SettingsError
from edge_agent.protocol.filters import intersect, matches
from edge_agent.protocol.topics import Topics
from edge_agent.settings import load as settings
from edge_agent.settings.load import ServeSection, Settings
from edge_agent.watch import rules
from edge_agent.watch.decide import Memory, Take, decide
from edge_agent.watch.template import Seen

TOPICS = Topics("edge/v1", "edge-01")


def read(*tables, **sections):
    names = ({"name": f"rule-{number}", "topic": "a/+", "prompt": "Hm?"} | table for number, table in enumerate(tables))
    models = {"serve": [ServeSection(name="phi")]}
    return rules.read(Settings(watch=list(names), models=models, **sections), TOPICS)


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ({"topic": "a/#/b"}, "watch.0.topic: # must be the last level"),
        ({"topic": ["a/b", "$SYS/#"]}, "watch.0.topic: must not begin with $"),
        ({"topic": "$share/g/a"}, "watch.0.topic: must not begin with $"),
        ({"topic": "#"}, "watch.0.topic: # can take a topic below mqtt.root"),
        ({"topic": "+/v1/cam"}, "watch.0.topic: +/v1/cam can take a topic below mqtt.root"),
        ({"topic": "edge/v1/agents/edge-01/evt/presence"}, "below mqtt.root, where agents talk"),
        ({"prompt": "{{ value_json.a }}"}, "watch.0.prompt: no variable is called 'value_json.a'"),
        ({"prompt": "{{ topic"}, "watch.0.prompt: has {{ without }}"),
        ({"prompt": "{{ topic.3 }}"}, "watch.0.prompt: topic.3: a/+ has 2 levels"),
        ({"when": {"type": "new"}}, "watch.0.when.type: no variable is called 'type'"),
        ({"when": {"topic.9": "new"}}, "watch.0.when.topic.9: topic.9: a/+ has 2 levels"),
        ({"changed": "contact"}, "watch.0.changed: no variable is called 'contact'"),
        ({"image": "picture"}, "watch.0.image: no variable is called 'picture'"),
        ({"image": "topic"}, "watch.0.image: must be auto, payload, none or json.FIELD"),
        ({"model": "llama"}, "watch.0.model: no [[models.serve]] table has this name; there are: phi"),
        ({"ttl_s": 86_000}, "watch.0.ttl_s: must be at most queue.ttl_max_s"),
        ({"response_format": {"type": "regex"}}, "watch.0.response_format: regex is missing"),
        ({"response_format": {"type": "shape"}}, "watch.0.response_format: type"),
        (
            {"response_format": {"type": "regex", "regex": "a{1,129}"}},
            "watch.0.response_format: a repetition of more than 128",
        ),
        (
            {"response_format": {"type": "json_object", "schema": {"not": {}}}},
            "watch.0.response_format: not is not supported in a schema",
        ),
        ({"answer_topic": "b/+"}, "watch.0.answer_topic: must be a topic"),
        ({"answer_topic": "b/\n"}, "watch.0.answer_topic: must be a topic"),
        ({"answer_topic": "$SYS/b"}, "watch.0.answer_topic: must be a topic"),
        ({"answer_topic": "edge/v1/agents/b/cmd/job/c"}, "watch.0.answer_topic: can take a topic below mqtt.root"),
        ({"answer_topic": "{{ topic.1 }}/v1/x", "topic": "+/cam"}, "answer_topic: can take a topic below"),
        ({"answer_topic": "a/answer"}, "watch.0.answer_topic: may be a topic that [[watch]] 'rule-0' takes (a/+)"),
        ({"answer_topic": "a/{{ topic.2 }}"}, "and answers would make jobs for ever"),
        ({"answer_topic": "{{ topic }}"}, "may be a topic that"),
        ({"answer_topic": "a/{{ topic.2 }}-said"}, "may be a topic that"),
        ({"topic": "a/#", "answer_topic": "a"}, "may be a topic that"),
    ],
)
def test_a_fault_names_its_key(table, sentence):
    with pytest.raises(SettingsError) as caught:
        read(table, queue={"ttl_max_s": 3600, "keep_finished_s": 3600})
    assert sentence in str(caught.value)


def test_a_server_elsewhere_has_bounds_of_its_own_for_what_an_answer_is_shaped_like():
    served = [ServeSection(name="phi", openai={"url": "http://127.0.0.1:1/v1", "model": "m"})]
    rule = {"name": "a", "topic": "a/+", "prompt": "Hm?", "response_format": {"type": "regex", "regex": "a{1,129}"}}
    assert rules.read(Settings(watch=[rule], models={"serve": served}), TOPICS)[0].response_format


def test_every_fault_is_told_at_once():
    with pytest.raises(SettingsError) as caught:
        read({"prompt": "{{", "topic": "#"}, {"changed": "x"}, {"name": "rule-0"})
    assert [line.split(":")[0] for line in str(caught.value).splitlines()] == [
        "watch.0.topic",
        "watch.0.prompt",
        "watch.1.changed",
        "watch.2.name",
    ]


def test_circles_over_several_rules_are_found():
    with pytest.raises(SettingsError, match=r"watch.0.answer_topic: .*'rule-1' takes \(b/#\)"):
        read({"answer_topic": "b/{{ topic.2 }}"}, {"topic": "b/#"})


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ("topic = 'a'\nprompt = 'Hm?'\n", "watch.0.name: Field required"),
        ("name = 'a'\ntopic = 'a'\nprompt = 'Hm?'\nevery_sec = 3\n", "unknown key; did you mean 'every_s'?"),
        ("name = 'Ä'\ntopic = 'a'\nprompt = 'Hm?'\n", "watch.0.name: must be a-z"),
        (
            "name = 'a'\ntopic = 'a'\nprompt = 'Hm?'\nwhen = { 'json.a' = { over = 3 } }\n",
            "watch.0.when.json.a: must be a",
        ),
        (
            "name = 'a'\ntopic = 'a'\nprompt = 'Hm?'\nwhen = { payload = { above = 'x' } }\n",
            "watch.0.when.payload: must",
        ),
        ("name = 'a'\ntopic = 'a'\nprompt = 'Hm?'\nwhen = { payload = [[1]] }\n", "watch.0.when.payload: must"),
        ("name = 'a'\ntopic = 'a'\nprompt = 'Hm?'\nwhen = { payload = {} }\n", "watch.0.when.payload: must"),
    ],
)
def test_a_wrong_key_is_named_when_the_file_is_read(tmp_path, table, sentence):
    file = tmp_path / "edge-agent.toml"
    file.write_text("[[watch]]\n" + table)
    with pytest.raises(SettingsError) as caught:
        settings.load(file, environ={})
    assert sentence in str(caught.value)


def test_without_an_answer_topic_answers_go_below_the_agents_own_events():
    (rule,) = read({"name": "door"})
    decision = decide(rule, Seen("a/b", image=b"\xff\xd8\xff"), Memory(), retained=False, now_s=0.0)
    assert decision.answer_topic == "edge/v1/agents/edge-01/watch/door"


PIECES = st.sampled_from(
    ["a", "b", "c", "{{ topic }}", "{{ topic.1 }}", "{{ topic.2 }}", "{{ json.a }}", "x{{ topic.1 }}"]
)
ANSWERS = st.lists(PIECES, min_size=1, max_size=4).map("/".join)
VALUES = st.sampled_from(["a", "b", "c", "x", "a/b", "+", ""])


@given(st.lists(filters(), min_size=1, max_size=2), ANSWERS, st.data(), VALUES)
def test_no_answer_is_ever_watched(own, answer, data, value):
    """Whatever comes on a watched topic: if the rule was allowed, its answer makes no job."""
    try:
        (rule,) = read({"topic": own, "prompt": "{{ topic }}", "image": "none", "answer_topic": answer})
    except SettingsError:
        assume(False)
    words = st.sampled_from(["a", "b", "c", "x"])
    topic = "/".join(
        data.draw(words) if level in ("+", "#") else level for level in data.draw(st.sampled_from(own)).split("/")
    )
    assume(rule.takes(topic))
    decision = decide(rule, Seen(topic, payload=b"{}", body={"a": value}), Memory(), retained=False, now_s=0.0)
    if isinstance(decision, Take):
        assert not rule.takes(decision.answer_topic)
        assert not matches("edge/v1/#", decision.answer_topic)
        assert "#" not in decision.answer_topic
        assert "+" not in decision.answer_topic
        assert any(intersect(rules.shape(rule.answer, each), decision.answer_topic) for each in own)
