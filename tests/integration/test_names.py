"""Names that nobody can have and topics that are nearly commands, through a real broker: no silence."""

import json

import pytest
from running import AgentProcess, Listener, mosquitto_pub

pytestmark = pytest.mark.broker

OURS = "edge/v1/agents/edge-01"


def test_a_wrong_name_is_answered_and_a_wrong_topic_is_said_in_the_log(broker, tmp_path):
    body = json.dumps({"job_id": "j-1", "prompt": "x"})
    names = ("Line-3", "line.3", "line 3", "zürich")
    wrong = (f"{OURS}/cmd/job", f"{OURS}/cmd/job/line-3/again")
    with (
        AgentProcess(folder=tmp_path / "agent", broker=broker, models=[]) as agent,
        Listener(broker, *(f"edge/v1/clients/{name}/inbox/#" for name in names)) as inboxes,
    ):
        agent.wait_said("link.up")
        for topic in (*(f"{OURS}/cmd/job/{name}" for name in names), f"{OURS}/admin/model/Op", *wrong, *wrong):
            mosquitto_pub(broker, topic, body)
        refused = inboxes.wait("status", len(names), state="rejected")
        assert {each["error"]["code"] for each in refused} == {"bad_request"}
        said = agent.wait_said("message.misaddressed", len(names) + 1 + len(wrong))
        assert {each["topic"] for each in said} >= {f"{OURS}/cmd/job/zürich", f"{OURS}/admin/model/Op", *wrong}
        assert agent.stop() == 0
