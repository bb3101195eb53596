"""The command line as a user runs it, each verb a process of its own."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from running import PATIENCE_S, AgentProcess, check_schema, faulty, wait_for

pytestmark = [pytest.mark.broker, pytest.mark.engine]


def edge_agent(*arguments, stdin=None, **environ):
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("EDGE_AGENT_")}
    return subprocess.run(
        [sys.executable, "-m", "edge_agent", *arguments],
        capture_output=True,
        text=True,
        input=stdin,
        env=inherited | environ,
        timeout=PATIENCE_S,
        check=False,
    )


@pytest.fixture
def agent(broker, tmp_path, demo_model):
    """A daemon with the trained demo model."""
    models = [{"name": "demo", "path": str(demo_model), "context_tokens": 1024}]
    with AgentProcess(folder=tmp_path / "agent", broker=broker, models=models) as running:
        running.wait_said("engine.ready")
        running.wait_said("link.up")
        yield running


@pytest.fixture
def where(broker):
    return ("--agent", "edge-01", "--host", broker.host, "--port", str(broker.port))


def test_submit_prints_the_answer_and_nothing_else_to_stdout(agent, where):
    done = edge_agent("submit", "Turn on the fan.", *where)
    assert done.returncode == 0
    assert json.loads(done.stdout) == {"action": "set", "device": "fan", "state": "on"}
    assert "tokens/s" in done.stderr


def test_submit_takes_the_prompt_from_stdin_and_the_broker_from_settings(agent, where):
    done = edge_agent("submit", "-", "--agent", "edge-01", stdin="Who are you?", EDGE_AGENT_CONFIG=str(agent.config))
    assert done.returncode == 0
    assert done.stdout.strip() == "I am a tiny edge agent that runs on this device."


def test_submit_json_prints_every_message_as_it_came(agent, where):
    done = edge_agent("submit", "Hello", "--json", *where)
    bodies = [json.loads(line) for line in done.stdout.splitlines()]
    leaves = ["chunk" if "seq" in body else "result" if "usage" in body else "status" for body in bodies]
    assert leaves[0] == "status"
    assert leaves[-1] == "result"
    assert "chunk" in leaves
    for leaf, body in zip(leaves, bodies, strict=True):
        check_schema(f"edge/v1/clients/me/inbox/edge-01/a/{leaf}", body)


def test_submit_says_why_a_job_was_refused(agent, where):
    done = edge_agent("submit", "Hello", "--model", "phi-9", *where)
    assert done.returncode == 1
    assert "unknown_model" in done.stderr
    assert done.stdout == ""


def test_submit_refuses_what_no_agent_could_take_before_it_sends_it(where):
    done = edge_agent("submit", "Hello", "--temperature", "9", *where)
    assert done.returncode == 2
    assert "temperature" in done.stderr


def test_submit_says_when_no_broker_answers():
    done = edge_agent("submit", "Hello", "--agent", "edge-01", "--port", "1", **faulty())
    assert done.returncode == 1
    assert "no broker at 127.0.0.1:1: nothing listens there" in done.stderr


def test_submit_refuses_a_name_no_agent_can_have(where):
    for name in ("Edge 1", "+", "a/b"):
        done = edge_agent("submit", "Hello", *where, "--agent", name)
        assert done.returncode == 2
        assert "a letter or digit first" in done.stderr, done.stderr


def test_submit_says_when_nobody_listens(where):
    """It goes on all the same: the agent may come."""
    command = [sys.executable, "-m", "edge_agent", "submit", "Go on", *where, "--agent", "nobody"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as submit:
        assert "nobody listens as nobody" in submit.stderr.readline()
        submit.send_signal(signal.SIGINT)
        submit.communicate(timeout=PATIENCE_S)


def test_ctrl_c_cancels_the_job(broker, tmp_path, where):
    """On a model deep enough that its answer would take half a minute."""
    from edge_agent.synth import TINY, build_text

    deep = build_text(tmp_path / "deep", shape=replace(TINY, layers=96))
    models = [{"name": "deep", "path": str(deep), "context_tokens": 4096}]
    with AgentProcess(folder=tmp_path / "agent", broker=broker, models=models) as agent:
        agent.wait_said("engine.ready")
        command = [sys.executable, "-m", "edge_agent", "submit", "Go on", "--max-tokens", "4000", *where]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as submit:
            agent.wait_said("job.started")
            assert submit.stdout.read(1)
            submit.send_signal(signal.SIGINT)
            _, said = submit.communicate(timeout=PATIENCE_S)
        assert submit.returncode == 1, said
        assert "canceled" in said
        (ended,) = agent.wait_said("job.ended")
        assert ended["state"] == "canceled"


def test_the_demo_answers_three_questions_with_sense_and_leaves_nothing_running(tmp_path):
    done = edge_agent("demo", TMPDIR=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "I am a tiny edge agent that runs on this device." in done.stdout
    assert "Yes, the temperature is 85 C" in done.stdout
    assert '{"action": "set", "device": "fan", "state": "on"}' in done.stdout
    assert "models.serve" in done.stdout
    wait_for(lambda: list(tmp_path.iterdir()) == [], "the demo's folder to go")


def test_probe_prints_one_json_object():
    found = json.loads(edge_agent("probe", "--json").stdout)
    assert found["cpu"]["granted_cores"] >= 1
    assert found["memory"]["total_bytes"] > 0


def test_the_daemon_loads_nothing_of_the_command_line(agent):
    """Neither typer nor rich, nor any engine, is mapped into the daemon."""
    maps = Path(f"/proc/{agent.pid}/maps").read_text()
    assert "onnxruntime" not in maps
    assert "numpy" not in maps
