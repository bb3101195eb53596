"""The examples, as a user runs them, on a live agent; those for other people's programs by what they would send."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from jinja2 import Environment
from running import PATIENCE_S, AgentProcess

from edge_agent.jobs.request import Request

EXAMPLES = Path(__file__).parents[2] / "examples"
TEXT = 'Say "on", or a backslash \\ and ü.'


@pytest.fixture
def environ(broker, tmp_path, tiny_model):
    """What tells the examples where a live agent is."""
    models = [{"name": "tiny", "path": str(tiny_model), "context_tokens": 2048}]
    with AgentProcess(folder=tmp_path / "agent", broker=broker, models=models) as agent:
        agent.wait_said("engine.ready")
        agent.wait_said("link.up")
        yield os.environ | {"MQTT_HOST": broker.host, "MQTT_PORT": str(broker.port), "CLIENT": "line-3"}


def run(command, environ, **changes):
    return subprocess.run(
        command, capture_output=True, text=True, env=environ | changes, timeout=PATIENCE_S, check=False, cwd=EXAMPLES
    )


@pytest.mark.broker
@pytest.mark.engine
def test_the_shell_and_the_python_example_print_an_answer_or_why_there_is_none(environ):
    shell = run(["./ask.sh", TEXT], environ)
    assert shell.returncode == 0, shell.stderr
    result = json.loads(shell.stdout)
    assert (result["agent"], result["state"]) == ("edge-01", "succeeded")
    program = run([sys.executable, "ask.py", TEXT], environ)
    assert (program.returncode, program.stderr) == (0, "")
    assert program.stdout == result["text"] + "\n"  # the same seed, model and prompt
    for command in (["./ask.sh"], [sys.executable, "ask.py"]):
        done = run([*command, "x" * 30_000], environ)  # beyond the model's context
        assert (done.returncode, done.stdout) == (1, "")
        assert "the prompt" in done.stderr


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
def test_the_javascript_example_is_javascript():
    assert run(["node", "--check", "ask.mjs"], os.environ).returncode == 0


def test_what_the_flow_of_node_red_sends_is_a_job():
    nodes = {node["id"]: node for node in json.loads((EXAMPLES / "node-red.json").read_text())}
    wires = [target for node in nodes.values() for port in node.get("wires", []) for target in port]
    assert set(wires) <= set(nodes)
    assert nodes["edge.send"]["topic"] == "edge/v1/agents/edge-01/cmd/job/node-red"
    assert nodes["edge.inbox"]["topic"] == "edge/v1/clients/node-red/inbox/+/+/+"
    if node := shutil.which("node"):
        script = f"""
            const RED = {{ util: {{ generateId: () => "0123456789abcdef" }} }};
            const msg = {{ payload: {json.dumps(TEXT)} }};
            const job = new Function("msg", "RED", {json.dumps(nodes["edge.job"]["func"])})(msg, RED).payload;
            console.log(JSON.stringify(job));
        """
        sent = run([node, "-e", script], os.environ)
        assert Request.model_validate_json(sent.stdout).conversation[0].content == TEXT


def test_what_the_automation_of_home_assistant_sends_is_a_job():
    ask, *answers = yaml.safe_load((EXAMPLES / "home-assistant.yaml").read_text())
    data = ask["actions"][0]["data"]
    assert data["topic"] == "edge/v1/agents/edge-01/cmd/job/home-assistant"
    environment = Environment(autoescape=False)
    environment.filters["to_json"] = json.dumps

    class Named:
        def __init__(self, **fields):
            self.__dict__ |= fields

    payload = environment.from_string(data["payload"]).render(
        now=lambda: Named(timestamp=lambda: 1_796_000_000.5), trigger=Named(to_state=Named(name='Türe "Süd"'))
    )
    assert 'Türe "Süd" open' in Request.model_validate_json(payload).conversation[0].content
    for each in answers:
        assert re.fullmatch(
            r"edge/v1/clients/home-assistant/inbox/edge-01/\+/(result|status)", each["triggers"][0]["topic"]
        )
