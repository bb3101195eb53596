"""Brokers that take less than the agent has to say: what fits is sent, what is refused waits, nobody is held up."""

import json
import os
import signal
from pathlib import Path

import pytest
from flow import rows
from running import AgentProcess, Listener, mosquitto_pub, requester, wait_for
from secured import refusing

from edge_agent.jobs.queue import Queue
from edge_agent.mqtt.private_broker import PrivateBroker

pytestmark = pytest.mark.broker

INBOX = "edge/v1/clients/{}/inbox/#"
COMMAND = "edge/v1/agents/edge-01/cmd/{}/{}"
EVENTS = "edge/v1/agents/edge-01/evt/+"
KEEP_TEXT = '[privacy]\nkeep_text = "until_pruned"\n'


@pytest.fixture
def agent_of(tmp_path, tiny_model):
    """Makes a daemon for a broker, with the tiny model in two lanes."""

    def make(broker, **settings):
        models = [{"name": "tiny", "path": str(tiny_model), "parallel": 2, "context_tokens": 2048}]
        return AgentProcess(folder=tmp_path / "agent", broker=broker, models=models, extra=KEEP_TEXT, **settings)

    return make


def stored(agent, job_id, client):
    """The outcome in a job's row; the daemon has ended."""
    with Queue(agent.state_dir / "queue.db") as queue, queue.transaction():
        return queue.recall(client, job_id).outcome


def unread_bytes(broker):
    """The most that waits in one of a broker's connections because it does not read."""
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    ours = [fields for fields in lines if fields[1].endswith(f":{broker.port:04X}")]
    return max(int(fields[4].split(":")[1], 16) for fields in ours)


def job(job_id, **fields):
    return json.dumps({"job_id": job_id, "prompt": "How is the pump?", "max_tokens": 9} | fields)


@pytest.mark.engine
def test_a_result_over_the_packet_limit_comes_cut_and_is_kept_whole(tmp_path, agent_of):
    """A result larger than the broker's packets is published cut, says so, and its row keeps the whole text."""
    with (
        PrivateBroker(folder=tmp_path / "broker", max_packet_size=2048) as broker,
        agent_of(broker) as agent,
        Listener(broker, INBOX.format("plain")) as inbox,
    ):
        agent.wait_said("engine.ready")
        agent.wait_said("link.up")
        mosquitto_pub(broker, COMMAND.format("job", "plain"), job("j-1", max_tokens=1200))
        (result,) = inbox.wait("result")
        assert result["text_truncated"]
        assert result["usage"]["completion_tokens"] == 1200
        assert len(agent.said("link.up")) == 1
        assert agent.stop() == 0
        whole = stored(agent, "j-1", "plain")
        assert whole.text.startswith(result["text"])
        assert len(whole.text) > len(result["text"]) > 0
        assert whole.text_truncated is None


@pytest.mark.engine
def test_a_limit_that_shrinks_below_what_is_under_way_makes_no_loop(tmp_path, agent_of):
    """A result handed over and unanswered when the broker comes back with smaller packets is cut, not sent for ever."""
    folder = tmp_path / "broker"
    with PrivateBroker(folder=folder) as broker, agent_of(broker, telemetry_s=3600) as agent:
        agent.wait_said("engine.ready")
        agent.wait_said("link.up")
        with requester(broker) as client:
            handle = client.submit("edge-01", prompt="Go on", max_tokens=1200, stream=False)
            wait_for(lambda: handle.status and handle.status.state == "running", "running")
            # A broker that hears nothing any more: what the agent says is handed over and never answered.
            os.kill(broker.pid, signal.SIGSTOP)
            agent.wait_said("job.ended")
            wait_for(lambda: unread_bytes(broker) > 2500, "the result to be handed over")
            broker.kill()
            smaller = PrivateBroker(folder=folder, port=broker.port, max_packet_size=2048)
            with smaller:
                agent.wait_said("link.up", 2)
                agent.wait_said("link.too_large")
                result = handle.result(60)
                assert result.text_truncated
                assert client.submit("edge-01", prompt="Next", max_tokens=3).result(60).state == "succeeded"
                assert len(agent.said("link.up")) == 2
                assert agent.stop() == 0


@pytest.mark.engine
def test_what_cannot_be_cut_small_enough_is_put_off_and_ends_no_connection(tmp_path, agent_of):
    """Where not even an empty result fits it is put off, the connection stays, and what is smaller is said."""
    with (
        PrivateBroker(folder=tmp_path / "broker", max_packet_size=400) as broker,
        agent_of(broker) as agent,
        Listener(broker, INBOX.format("plain")) as inbox,
    ):
        agent.wait_said("engine.ready")
        agent.wait_said("link.up")
        mosquitto_pub(broker, COMMAND.format("job", "plain"), job("j-1"))
        inbox.wait("status", job_id="j-1", state="succeeded")
        (refused,) = agent.wait_said("result.refused")
        assert refused["reason"] == 0x95
        assert {said["topic"].rsplit("/")[-1] for said in agent.said("link.too_large")} >= {"info", "result"}
        mosquitto_pub(broker, COMMAND.format("job", "plain"), job("j-2"))
        inbox.wait("status", job_id="j-2", state="succeeded")
        assert len(agent.said("link.up")) == 1
        assert agent.said("link.down") == []


@pytest.mark.engine
def test_an_inbox_the_acl_forbids_waits_and_the_others_do_not(tmp_path, agent_of):
    """A result the broker refuses backs off while others are answered, and comes once the ACL is mended and asked."""
    acl = tmp_path / "acl"
    # Without patterns and users: what no line allows is refused to everybody.
    good = "topic readwrite edge/v1/agents/#\ntopic readwrite edge/v1/clients/tester/#\n"
    bad = "topic {} edge/v1/clients/bad/#\n"
    acl.write_text(good + bad.format("read"))
    with (
        PrivateBroker(folder=tmp_path / "broker", acl_file=acl) as broker,
        agent_of(broker) as agent,
        Listener(broker, INBOX.format("bad")) as inbox,
        requester(broker) as client,
    ):
        agent.wait_said("engine.ready")
        agent.wait_said("link.up")
        mosquitto_pub(broker, COMMAND.format("job", "bad"), job("j-1"))
        (refused,) = agent.wait_said("result.refused")
        assert (refused["client"], refused["reason"]) == ("bad", 0x87)
        for number in range(5):
            result = client.submit("edge-01", prompt=f"Number {number}", max_tokens=3).result(60)
            assert result.state == "succeeded"
        assert len(agent.said("result.refused")) == 1
        assert inbox.messages == []
        acl.write_text(good + bad.format("readwrite"))
        os.kill(broker.pid, signal.SIGHUP)

        def asked():
            mosquitto_pub(broker, COMMAND.format("status", "bad"), '{"job_id": "j-1"}')
            return inbox.of("result")

        (result, *_) = wait_for(asked, "the result, asked for")
        assert (result["job_id"], result["state"]) == ("j-1", "succeeded")
        assert result["text"]


@pytest.mark.engine
def test_a_result_nobody_listened_for_can_be_asked_for(broker, agent_of):
    """A result with no subscriber is done with; asked for later it comes whole."""
    with agent_of(broker) as agent:
        agent.wait_said("engine.ready")
        agent.wait_said("link.up")
        mosquitto_pub(broker, COMMAND.format("job", "late"), job("j-1"))
        agent.wait_said("job.ended")
        wait_for(lambda: rows(agent.state_dir)[0]["deliver_s"] is None, "the broker to have taken the result")
        with Listener(broker, INBOX.format("late")) as inbox:
            mosquitto_pub(broker, COMMAND.format("status", "late"), '{"job_id": "j-1"}')
            (result,) = inbox.wait("result")
            assert result["usage"]["completion_tokens"] == 9
            assert len(inbox.of("result")) == 1
        assert agent.said("result.refused") == []


def test_a_subscription_the_broker_refuses_shows_in_health(tmp_path):
    """An agent that may not hear commands says which topic is refused, in its log and its presence."""
    with (
        PrivateBroker(folder=tmp_path / "broker", settings=refusing(tmp_path, "edge/v1/agents/+/cmd/#")) as broker,
        Listener(broker, EVENTS) as monitor,
        AgentProcess(folder=tmp_path / "agent", broker=broker, models=[]) as agent,
    ):
        (refused,) = agent.wait_said("link.subscription_refused")
        assert refused["filters"] == ["edge/v1/agents/edge-01/cmd/+/+"]

        def told():
            return [
                p for p in monitor.of("presence") if "refuses edge/v1/agents/edge-01/cmd/+/+" in p.get("reason", "")
            ]

        assert wait_for(told, "the refusal in the agent's health")[0]["health"] != "ready"
