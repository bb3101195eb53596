"""A backend that an installed package brings: known everywhere by its record and one entry point."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from running import AgentProcess, Listener, mosquitto_pub

import edge_agent
from edge_agent.base.errors import SettingsError
from edge_agent.engine import registry

ROOT = Path(edge_agent.__file__).parents[1]
BROUGHT = ROOT / "tests/brought"
CATALOGUE = """
[[family]]
name = "parrot"
parameters = 1
layers = 1
heads = 4
kv_heads = 4
head_size = 8
context_tokens = 4096
source = "these tests"
[[variant]]
name = "parrot-echo"
family = "parrot"
backend = "echo"
devices = ["cpu"]
repo = "tests/parrot"
precision = "fp16"
weight_bytes = 6
source = "these tests"
"""


def install(site, name="echo", value="echo_backend.facts:FACTS"):
    """Write what an installer leaves of a package."""
    info = site / f"{name}_backend-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}-backend\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{registry.GROUP}]\n{name} = {value}\n")
    return site


@pytest.mark.broker
def test_a_build_for_it_is_taken_in_chosen_loaded_and_answers(broker, tmp_path):
    """Nothing else of the agent was touched for it."""
    catalogue = tmp_path / "catalogue.toml"
    catalogue.write_text(CATALOGUE)
    (tmp_path / "build").mkdir()
    (tmp_path / "build/echo.txt").write_text("parrot")
    environ = {"PYTHONPATH": os.pathsep.join(map(str, (ROOT, BROUGHT, install(tmp_path / "site"))))}
    agent = AgentProcess(
        folder=tmp_path / "agent",
        broker=broker,
        models=[{"name": "parrot", "context_tokens": 512}],
        extra=f'[models]\ncatalogue = ["{catalogue}"]\n',
        environ=environ,
    )

    def told(*arguments):
        command = [sys.executable, "-m", "edge_agent", *arguments, "--config", str(agent.config)]
        ended = subprocess.run(
            command, capture_output=True, text=True, env=os.environ | environ, timeout=100, check=False
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended.stdout

    told("models", "import", str(tmp_path / "build"), "--name", "parrot-echo")
    (best,) = json.loads(told("explain", "--json"))["models"][0]["candidates"]
    assert (best["backend"], best["device"], best["installed"]) == ("echo", "cpu", True)
    with Listener(broker, "edge/v1/agents/edge-01/evt/#", "edge/v1/clients/me/inbox/#") as listener, agent:
        agent.wait_said("engine.ready")
        job = {"job_id": "a", "prompt": "who is there", "max_tokens": 8}
        mosquitto_pub(broker, "edge/v1/agents/edge-01/cmd/job/me", json.dumps(job))
        (result,) = listener.wait("result", job_id="a")
    assert (result["text"].split(), result["variant"]) == (["who", "is", "there"], "parrot-echo")
    assert (result["backend"], result["device"]) == ("echo", "cpu")


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("onnx", "echo_backend.facts:FACTS", "its backend onnx cannot be taken: ValueError: there is one of that name"),
        ("echo", "absent_backend:FACTS", "its backend echo cannot be taken: ModuleNotFoundError: No module"),
        ("echo", "echo_backend.facts:read", "its backend echo cannot be taken: TypeError: .* is no BackendFacts"),
    ],
)
def test_a_package_whose_record_cannot_be_taken_is_named(monkeypatch, tmp_path, name, value, said):
    """It takes no other's place, and the agent says which package to mend."""
    for folder in (BROUGHT, install(tmp_path, name, value)):
        monkeypatch.syspath_prepend(folder)
    with pytest.raises(SettingsError, match=f"package {name}-backend: {said}.*; mend or uninstall the package"):
        registry.backends.__wrapped__()
