"""Administrators order a real daemon: over MQTT with everybody's client, from a program, on the command line."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hub import COMMIT, Hub
from running import AgentProcess, Listener, mosquitto_pub, requester, wait_for
from typer.testing import CliRunner

from edge_agent.base.errors import Code, EdgeAgentError
from edge_agent.cli.app import app
from edge_agent.client.handle import JobRejectedError
from edge_agent.models.choose import free_bytes
from hardware import memory

pytestmark = [pytest.mark.broker, pytest.mark.engine]

TOPIC = "edge/v1/agents/edge-01/admin/model/ops"
CATALOGUE = """
[[family]]
name = "toy"
parameters = 1000000
source = "made up"
layers = 2
heads = 2
kv_heads = 2
head_size = 16
context_tokens = 4096

[[variant]]
name = "toy-build"
family = "toy"
backend = "onnx"
devices = ["cpu"]
repo = "maker/model"
revision = "{commit}"
folder = "build"
precision = "int4"
weight_bytes = 300000
source = "made up"
"""


def models(agent, *arguments):
    run = CliRunner(env={"COLUMNS": "100"}).invoke(app, ["models", *arguments, "--config", str(agent.config)])
    return run.exit_code, run.output


def test_models_are_loaded_unloaded_and_pinned_by_order(broker, tmp_path, tiny_model):
    """Two that do not fit together: the ordered one comes, the pinned one stays, over a restart too."""
    half = int(0.6 * free_bytes(memory.read(Path("/"))))
    table = {"path": str(tiny_model), "context_tokens": 256, "memory_bytes": half}
    daemon = AgentProcess(
        folder=tmp_path / "agent", broker=broker, models=[{"name": "first", **table}, {"name": "second", **table}]
    )
    with (
        daemon as agent,
        Listener(broker, "edge/v1/clients/ops/inbox/#") as inbox,
        Listener(broker, "edge/v1/agents/edge-01/evt/#") as monitor,
        requester(broker, "program") as client,
    ):
        agent.wait_said("engine.ready")
        mosquitto_pub(broker, TOPIC, json.dumps({"op_id": "a", "op": "load", "model": "second"}))
        inbox.wait("result", op_id="a", state="succeeded", phase="ready", op="load", model="second")
        assert inbox.of("status")[0] == {
            "agent": "edge-01",
            "op_id": "a",
            "op": "load",
            "model": "second",
            "state": "running",
        }
        assert agent.said("engine.unloaded")[0]["reason"] == "makes room for second"
        mosquitto_pub(broker, TOPIC, json.dumps({"op_id": "a", "op": "load", "model": "second"}))
        inbox.wait("result", 2, op_id="a", state="succeeded")

        assert client.admin("edge-01", "pin", "second").result(30).pinned
        monitor.wait("telemetry", health="degraded", reasons=["first: no room beside second, pinned there"])
        with pytest.raises(JobRejectedError) as barred:
            client.submit("edge-01", model="first", prompt="Go on", max_tokens=4).result(30)
        assert barred.value.code is Code.NO_FIT
        with pytest.raises(EdgeAgentError, match="unpin it first"):
            client.admin("edge-01", "unload", "second").result(30)

        assert agent.stop() == 0
        agent.start()
        agent.wait_said("engine.ready", 3)
        assert [each["model"] for each in agent.said("engine.ready")] == ["first", "second", "second"]

        assert models(agent, "unpin", "second")[0] == 0
        code, told = models(agent, "load", "first")
        assert (code, "first is loaded, after" in told) == (0, True)
        code, told = models(agent, "unload", "first", "--agent", "edge-01", "--json")
        lines = [json.loads(line) for line in told.splitlines() if line.startswith("{")]
        assert (code, lines[-1]["state"], lines[-1]["phase"]) == (0, "succeeded", "unloaded")
        assert not agent.engines()
        monitor.wait("telemetry", health="ready")
        assert client.submit("edge-01", model="first", prompt="Go on", max_tokens=4).result(30).state == "succeeded"
        code, told = models(agent, "load", "absent")
        assert (code, "this agent serves first, second" in told) == (1, True)

        for op_id, fields, error in (
            ("b", {"op": "burn", "model": "first"}, "op: must be"),
            ("c", {"op": "load", "model": "first", "pinned": True}, "pinned: belongs to pin alone"),
            ("d", {"op": "load", "model": "first", "more": 1}, "more: is no field of this message"),
            ("e", {"op": "load"}, "model: Field required"),
        ):
            mosquitto_pub(broker, TOPIC, json.dumps({"op_id": op_id} | fields))
            (refused,) = inbox.wait("result", op_id=op_id, state="rejected")
            assert refused["error"]["code"] == "bad_request"
            assert error in refused["error"]["message"]
        mosquitto_pub(broker, TOPIC, "no json")
        inbox.wait("result", op_id="unreadable", state="rejected")
        assert agent.stop() == 0


def test_a_build_is_pulled_by_order(broker, tmp_path, tiny_model):
    """From the hub of the settings into the store, with progress; what the hub lacks is said."""
    files = {f"build/{file.name}": file.read_bytes() for file in tiny_model.iterdir() if file.is_file()}
    file = tmp_path / "catalogue.toml"
    file.write_text(CATALOGUE.format(commit=COMMIT))
    with Hub(files) as hub:
        environ = {"EDGE_AGENT_MODELS__HUB_URL": hub.url, "EDGE_AGENT_MODELS__CATALOGUE": json.dumps([str(file)])}
        with (
            AgentProcess(folder=tmp_path / "agent", broker=broker, models=[{"name": "toy"}], environ=environ) as agent,
            requester(broker, "program") as client,
        ):
            agent.wait_said("model.failed")
            result = client.admin("edge-01", "pull", "toy-build").result(60)
            assert result.state == "succeeded", result
            agent.wait_said("engine.ready")  # what it was for is decided anew, and loaded
            assert client.submit("edge-01", prompt="Go on", max_tokens=4).result(30).state == "succeeded"
            code, told = models(agent, "pull", "toy-build", "--agent", "edge-01")  # which is there already
            assert (code, "toy-build is in the store, after" in told) == (0, True), told
            command = (sys.executable, "-m", "edge_agent", "models", "pull", "other", "--agent", "edge-01")
            refused = subprocess.run(
                [*command, "--config", str(agent.config)], capture_output=True, text=True, timeout=60, check=False
            )
            assert refused.returncode == 1
            assert "is no build of this agent's catalogue" in refused.stderr
            hub.files.clear()
            with pytest.raises(EdgeAgentError, match="is no build of this agent's catalogue"):
                client.admin("edge-01", "pull", "other").result(30)
            assert wait_for(lambda: agent.said("order.ended"), "its end")[0]["code"] is None
            assert agent.stop() == 0
