"""Pools that the broker cannot have, or keeps an agent out of: said in its presence, and its own topic is served."""

import json

import pytest
from running import AgentProcess, wait_for
from scripted import Scripted

pytestmark = pytest.mark.engine

HALL = "$share/hall/edge/v1/pools/hall/job/+"


def hangs_up(visit, topic_filter):
    if topic_filter == HALL:
        visit.disconnect(0x9E)
        return None
    return 1


BROKERS = {
    "says so as it welcomes": {"properties": b"\x2a\0", "grant": hangs_up},
    "hangs up without having said so": {"grant": hangs_up},
    "refuses the subscription": {"grant": lambda _visit, topic_filter: 0x9E if topic_filter == HALL else 1},
    "keeps us out": {"grant": lambda _visit, topic_filter: 0x87 if topic_filter == HALL else 1},
}


@pytest.mark.parametrize("how", BROKERS)
def test_a_pool_that_cannot_be_joined_is_named_and_the_agents_own_topic_is_served(tmp_path, tiny_model, how):
    """With why; it is not tried again and again, and nobody says that it was joined."""
    models = [{"name": "tiny", "path": str(tiny_model)}]
    with Scripted(**BROKERS[how]) as broker:
        agent = AgentProcess(folder=tmp_path / "agent", broker=broker, models=models, telemetry_s=3600)
        agent.config.write_text(agent.config.read_text().replace("[agent]\n", '[agent]\npools = ["hall"]\n'))
        with agent:

            def presence():
                said = [json.loads(each.payload) for each in broker.said if each.topic.endswith("/evt/presence")]
                return [each for each in said if "not in the pool hall: " in each.get("reason", "")]

            told = wait_for(presence, "the pool in the agent's presence")[-1]
            assert told["health"] == "degraded"
            main = next(visit for visit in broker.visits if any("cmd" in topic for topic, _ in visit.filters))
            main.deliver("edge/v1/agents/edge-01/cmd/job/me", b'{"job_id": "j", "prompt": "x", "max_tokens": 2}')
            ended = "edge/v1/clients/me/inbox/edge-01/j/result"
            wait_for(lambda: [each for each in broker.said if each.topic == ended], "the result of a job of its own")
            pools = [visit for visit in broker.visits if visit.client_id.startswith("edge-01.pool.")]
            assert len(pools) <= 2
            assert agent.said("pool.joined") == []
            assert agent.stop() == 0
