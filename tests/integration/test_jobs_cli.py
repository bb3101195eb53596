"""`edge-agent jobs` beside a running daemon, and on its queue once it is down."""

import json
import stat

import pytest
from running import AgentProcess, Listener, mosquitto_pub, wait_for
from typer.testing import CliRunner

from edge_agent.cli.app import app

pytestmark = [pytest.mark.broker, pytest.mark.engine]

JOB = "edge/v1/agents/edge-01/cmd/job/line-3"


def jobs(agent, *arguments):
    return CliRunner(env={"COLUMNS": "100"}).invoke(app, ["jobs", *arguments, "--config", str(agent.config)])


def send(broker, job_id, **fields):
    mosquitto_pub(broker, JOB, json.dumps({"job_id": job_id, "prompt": "a secret", "max_tokens": 8} | fields))


def test_an_operator_sees_cancels_repeats_and_forgets_jobs(broker, tmp_path, tiny_model):
    """Beside the running agent, then the same on its queue, where its lock would keep out a second agent."""
    models = [{"name": "tiny", "path": str(tiny_model), "context_tokens": 2048}]
    with (
        AgentProcess(folder=tmp_path / "agent", broker=broker, models=models) as agent,
        Listener(broker, "edge/v1/clients/line-3/inbox/#") as inbox,
    ):
        agent.wait_said("engine.ready")
        send(broker, "short")
        inbox.wait("result")
        send(broker, "long", max_tokens=1900)
        inbox.wait("status", state="running", job_id="long")
        (engine,) = agent.engines()
        engine.suspend()
        send(broker, "waiting")
        inbox.wait("status", state="queued", job_id="waiting")
        assert stat.S_IMODE((agent.state_dir / "control.sock").stat().st_mode) == 0o600

        listed = jobs(agent, "list")
        assert [line.split()[0] for line in listed.stdout.splitlines()[1:]] == ["waiting", "long", "short"]
        assert "secret" not in listed.stdout
        shown = jobs(agent, "show", "short")
        assert "secret" not in shown.stdout
        told = jobs(agent, "show", "short", "--text")
        assert "a secret" in told.stdout
        assert inbox.of("result")[0]["text"].split()[0] in told.stdout

        examined = CliRunner().invoke(app, ["doctor", "--json", "--config", str(agent.config)])
        levels = {finding["about"]: finding["level"] for finding in json.loads(examined.stdout)["findings"]}
        assert (levels["agent"], levels["login"], levels["speaking"]) == ("ok", "ok", "ok")
        assert not agent.said("link.down")  # the doctor has a connection of its own

        assert "waiting is canceled" in jobs(agent, "cancel", "waiting").stdout
        assert "told to stop" in jobs(agent, "cancel", "long").stdout
        engine.resume()
        inbox.wait("result", job_id="long", state="canceled")
        inbox.wait("result", job_id="waiting", state="canceled")

        again = json.loads(jobs(agent, "retry", "waiting", "--json").stdout)["jobs"][0]["job_id"]
        (result,) = inbox.wait("result", job_id=again)
        assert (result["state"], result["metadata"]) == ("succeeded", {"retry_of": "waiting"})
        assert len([body for body in inbox.of("result") if body["job_id"] == "waiting"]) == 1

        unknown = jobs(agent, "show", "nothing")
        assert (unknown.exit_code, "no such job" in unknown.stderr) == (1, True)
        assert agent.stop() == 0
        assert not (agent.state_dir / "control.sock").exists()

        again = json.loads(jobs(agent, "retry", "short", "--json").stdout)["jobs"][0]["job_id"]
        assert jobs(agent, "list", "--state", "queued").stdout.count(again) == 1
        forgotten = json.loads(jobs(agent, "prune", "--older-s", "0", "--json").stdout)["pruned"]
        assert forgotten == 4
        agent.start()
        inbox.wait("result", job_id=again, state="succeeded")
        wait_for(lambda: "succeeded" in jobs(agent, "list").stdout, "the agent to tell of it")
