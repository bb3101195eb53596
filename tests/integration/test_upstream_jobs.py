"""A server elsewhere, end to end: who names it is answered by it and told so, nobody else's words leave the device."""

import json
from pathlib import Path

import psutil
import pytest
from running import AgentProcess, Listener, mosquitto_pub, requester, wait_for
from upstream import CUT, HANG, Answer, Upstream, chunk, error, words

pytestmark = [pytest.mark.broker, pytest.mark.engine]

KEY = "sk-secret-4711"


@pytest.fixture
def server():
    with Upstream() as running:
        yield running


@pytest.fixture
def agent(broker, tmp_path, demo_model, server):
    """A running daemon with a small model of its own, and one elsewhere."""
    (tmp_path / "key").write_text(KEY)
    elsewhere = (
        f'[[models.serve]]\nname = "cloud"\nparallel = 2\n[models.serve.openai]\nurl = "{server.url}"\n'
        f'model = "big-1"\nkey_file = "{tmp_path / "key"}"\nretries = 0\n'
    )
    models = [{"name": "demo", "path": str(demo_model), "context_tokens": 512}]
    with AgentProcess(folder=tmp_path / "agent", broker=broker, models=models, extra=elsewhere) as running:
        running.wait_said("link.up")
        yield running


def test_only_jobs_that_name_it_leave_the_device_and_their_results_say_so(agent, broker, server, tmp_path):
    server.answers += [words("It is", " off.", counts=(9, 4)), Answer([chunk("It"), CUT]), words("It is off.")]
    with requester(broker) as client, Listener(broker, "edge/v1/agents/+/evt/#") as watching:
        named = client.submit("edge-01", prompt="Is the pump on?", model="cloud").result(60)
        assert (named.state, named.text, named.finish_reason) == ("succeeded", "It is off.", "stop")
        assert (named.device, named.host, named.variant, named.backend) == ("upstream", "127.0.0.1", "big-1", "openai")
        assert (named.usage.prompt_tokens, named.usage.completion_tokens) == (9, 4)
        local = client.submit("edge-01", prompt="Hello", max_tokens=4).result(60)
        assert (local.model, local.device, local.host) == ("demo", "cpu", None)
        assert len(server.asked) == 1
        cut = client.submit("edge-01", prompt="Is the pump on?", model="cloud").result(60)
        assert (cut.state, cut.attempt, cut.text) == ("succeeded", 2, "It is off.")
        hosts = lambda: {(m["name"], m.get("host")) for info in watching.of("info") for m in info["models"]}  # noqa: E731
        wait_for(lambda: ("cloud", "127.0.0.1") in hosts(), "the birth certificate to tell who answers")
        assert ("demo", "127.0.0.1") not in hosts()
        processes = [psutil.Process(agent.pid), *agent.engines()]
        assert len(processes) == 3
        assert not any(KEY in " ".join(process.cmdline()) for process in processes)
        said = json.dumps([body for _, body in watching.messages]) + named.model_dump_json() + agent.log.read_text()
        assert KEY not in said
        assert "pump on" not in agent.log.read_text()


def test_a_cancel_a_time_out_and_a_refusal_end_jobs_in_order(agent, broker, server):
    with requester(broker) as client:
        server.answers += [Answer([chunk("It"), HANG]), Answer([HANG]), error(401, f"bad key {KEY}")]
        running = client.submit("edge-01", prompt="Is the pump on?", model="cloud")
        next(update for update in running.updates() if getattr(update, "text", None))
        running.cancel()
        assert (running.result(60).state, running.result(60).text) == ("canceled", "It")
        assert server.gone.wait(10)
        late = client.submit("edge-01", prompt="Is the pump on?", model="cloud", timeout_s=1).result(60)
        assert (late.state, late.error.code) == ("failed", "timeout")
        refused = client.submit("edge-01", prompt="Is the pump on?", model="cloud").result(60)
        assert (refused.state, refused.error.code, refused.attempt) == ("failed", "model_error", 1)
        assert "mend key_file" in refused.error.message
        assert KEY not in refused.model_dump_json() + Path(agent.log).read_text()


def test_an_agent_with_nothing_but_a_server_elsewhere_sends_it_no_unnamed_job(broker, tmp_path, server):
    elsewhere = f'[[models.serve]]\nname = "cloud"\n[models.serve.openai]\nurl = "{server.url}"\nmodel = "big-1"\n'
    with (
        AgentProcess(folder=tmp_path / "agent", broker=broker, models=[], extra=elsewhere) as agent,
        Listener(broker, "edge/v1/clients/me/inbox/#") as inbox,
    ):
        agent.wait_said("link.up")
        mosquitto_pub(broker, "edge/v1/agents/edge-01/cmd/job/me", json.dumps({"job_id": "a", "prompt": "on?"}))
        (status,) = inbox.wait("status", state="rejected")
        assert status["error"]["code"] == "unknown_model"
        assert status["error"]["message"] == "model: name one of cloud; auto sends nothing to another machine"
        assert not server.asked


def test_where_the_settings_say_so_it_stands_in_for_a_model_that_cannot_be_had(broker, tmp_path, server):
    """For `auto` too, and every result tells why."""
    elsewhere = f'[[models.serve]]\nname = "cloud"\n[models.serve.openai]\nurl = "{server.url}"\nmodel = "big-1"\n'
    models = [{"name": "ours", "path": str(tmp_path / "nothing"), "upstream": "cloud"}]
    with (
        AgentProcess(folder=tmp_path / "agent", broker=broker, models=models, extra=elsewhere) as agent,
        requester(broker) as client,
        Listener(broker, "edge/v1/agents/+/evt/#") as watching,
    ):
        agent.wait_said("engine.ready", 2)
        server.answers.append(words("It is off."))
        result = client.submit("edge-01", prompt="Is the pump on?").result(60)
        assert (result.state, result.model, result.text) == ("succeeded", "ours", "It is off.")
        assert (result.device, result.host, result.variant) == ("upstream", "127.0.0.1", "big-1")
        assert "is not a folder" in result.fallback_from.reason
        assert server.bodies[0]["messages"][0]["content"] == "Is the pump on?"
        watching.wait("presence", health="degraded")
