"""Names and topics that are nearly ours: told to who can be told, and said in the log, but not too often."""

import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs
from test_intake import Desk

from edge_agent.base.errors import EdgeAgentError
from edge_agent.client.client import EdgeClient
from edge_agent.mqtt.access import Access
from edge_agent.protocol.filters import publishable
from edge_agent.protocol.messages import loggable
from edge_agent.protocol.topics import CLIENT, NAME_RULE, Topics, answerable
from edge_agent.serving.strangers import EACH_S, KEYS_MAX, MOST, REJECTIONS_MOST, WITHIN_S, Sparing, Strangers

WRONG = ["Line-3", "line.3", "line 3", "zürich", "-line", "a" * 64, "line:3", "LINE", "line@plant", "日本"]
UNANSWERABLE = ["", "a\nb", "\x1b[2J", "a" * 300, "￾"]


@pytest.fixture
def desk(tmp_path):
    with Desk(tmp_path) as made:
        made.said = []
        made.intake._outbox.say = made.said.append
        yield made


@pytest.mark.parametrize("name", WRONG)
def test_a_name_that_no_requester_can_have_is_answered_in_its_inbox_and_said_in_the_log(desk, name):
    assert not CLIENT.match(name)
    with capture_logs() as said:
        desk.take("job", {"job_id": "j-1", "prompt": "x"}, client=name)
    (answer,) = [each for each in desk.said if each.topic.startswith(f"edge/v1/clients/{name}/inbox/")]
    error = json.loads(answer.payload)["error"]
    assert error["code"] == "bad_request"
    assert NAME_RULE in error["message"]
    assert [each["event"] for each in said if each["log_level"] == "warning"] == ["message.misaddressed"]


@pytest.mark.parametrize("name", UNANSWERABLE)
def test_who_cannot_be_answered_is_said_in_the_log_in_letters_that_can_be_shown(desk, name):
    with capture_logs() as said:
        desk.take("job", {"job_id": "j-1", "prompt": "x"}, client=name)
    (line,) = [each for each in said if each["event"] == "message.misaddressed"]
    assert line["topic"].isprintable()
    assert [each for each in desk.said if "/clients/" in each.topic] == []


@given(st.text(max_size=300))
def test_no_name_makes_a_topic_that_a_broker_hangs_up_over(name):
    if answerable(name):
        topic = Topics("edge/v1", "edge-01").inbox(name, "j", "status")
        assert publishable(topic)
        assert topic.count("/") == 7
    if CLIENT.match(name):
        assert answerable(name)


def test_topics_that_are_nearly_commands_are_heard():
    assert Topics("edge/v1", "edge-01").near_misses == (
        "edge/v1/agents/edge-01/cmd/+",
        "edge/v1/agents/edge-01/cmd/+/+/+",
    )


@pytest.mark.parametrize("name", [*WRONG, *UNANSWERABLE[1:]])
def test_a_program_is_told_its_own_wrong_name_at_once(name):
    with pytest.raises(EdgeAgentError, match="letter or digit first"):
        EdgeClient(Access("127.0.0.1", 1, client_id="x"), name=name)


def lines(strangers, *topics):
    with capture_logs() as said:
        for topic in topics:
            strangers.note(topic, "why")
    return [each["topic"] for each in said]


def test_each_topic_is_said_once_in_a_while_and_all_together_no_more_than_so_often():
    now_s = [0.0]
    strangers = Strangers(lambda: now_s[0])
    assert lines(strangers, "a", "a", "b") == ["a", "b"]
    made_up = [str(number) for number in range(1000)]
    assert len(lines(strangers, *made_up)) == MOST - 2
    now_s[0] = WITHIN_S
    with capture_logs() as said:
        strangers.note("a", "why")
        strangers.note("c", "why")
    assert [(each["topic"], each["unsaid"]) for each in said] == [("c", 1000 - (MOST - 2) + 1)]
    now_s[0] = EACH_S
    assert lines(strangers, "a") == ["a"]


def test_thousands_of_refusals_of_one_client_are_a_few_lines_and_hide_nobody_elses():
    now_s = [0.0]
    strangers = Strangers(lambda: now_s[0])
    with capture_logs() as said:
        for number in range(10_000):
            strangers.rejected("message.rejected", "mallory", job_id=str(number))
        strangers.rejected("message.rejected", "line-3", job_id="a")
        now_s[0] = WITHIN_S
        strangers.rejected("message.rejected", "mallory", job_id="last")
    assert [each["job_id"] for each in said if each["client"] == "mallory"] == [
        *map(str, range(REJECTIONS_MOST)),
        "last",
    ]
    assert said[-1]["unsaid"] == 10_000 - REJECTIONS_MOST
    assert [each["job_id"] for each in said if each["client"] == "line-3"] == ["a"]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 50)), max_size=60))
def test_every_line_is_said_or_counted(events):
    now_s, said = [0.0], Counter()
    sparing = Sparing(lambda: now_s[0], most=2)
    for key, wait_s in events:
        now_s[0] += wait_s
        unsaid = sparing.due(key)
        if unsaid is not None:
            said[key] += 1 + unsaid
    now_s[0] += WITHIN_S + 1  # sums of floats are no exact times
    for key in {key for key, _ in events}:
        assert said[key] + sparing.due(key) == sum(each == key for each, _ in events)


def test_who_makes_up_names_takes_no_more_memory_and_has_nobody_forgotten_who_is_loud():
    sparing = Sparing(lambda: 0.0, most=1)
    assert sparing.due("loud") == 0
    for number in range(3 * KEYS_MAX):
        assert sparing.due(str(number)) == 0
        assert sparing.due("loud") is None
    assert len(sparing._said) == KEYS_MAX
    assert sparing.due("0") == 0  # forgotten
    assert sparing._unsaid == {"loud": 3 * KEYS_MAX}


def test_a_sentence_in_the_log_holds_no_word_of_the_sender(desk):
    secret = "the pump code is 4711"
    with capture_logs() as said:
        desk.take("job", {"job_id": "j-1", "prompt": "x", secret: 1, "metadata": {secret: []}, "max_tokens": 0})
    (line,) = [each for each in said if each["event"] == "message.rejected"]
    assert "max_tokens: " in line["reason"]
    assert secret not in str(said)
    assert loggable("the payload is not valid JSON") == "the payload is not valid JSON"
