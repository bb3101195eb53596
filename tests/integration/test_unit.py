"""The unit as installed, under a real systemd: what it restricts, and that the agent and its engines live with it."""

import json
from pathlib import Path

import pytest
from booted import PREFIX, SOURCE, Booted
from images import encoded, picture
from running import wait_for

from edge_agent.mqtt.access import Access
from edge_agent.mqtt.client import EdgeClient

pytestmark = [pytest.mark.booted, pytest.mark.broker, pytest.mark.engine]

UNIT = "edge-agent.service"
PROGRAM = f"{PREFIX}/bin/edge-agent"
LOG = "/run/agent.log"
TESTING = f"""\
[Service]
Environment=PYTHONPATH={SOURCE} LD_LIBRARY_PATH=/opt/python/lib EDGE_AGENT_GOVERNOR__ENABLED=false
StandardError=file:{LOG}
"""
"""What is another here than on a device: this checkout is not installed, and there is no journal."""


def settings(broker, *models):
    tables = "".join(
        f'[[models.serve]]\nname = "{each.name}"\npath = "/opt/models/{each.name}"\ncontext_tokens = 2048\n'
        for each in models
    )
    password = "$CREDENTIALS_DIRECTORY/mqtt-password"
    mqtt = f'host = "127.0.0.1"\nport = {broker.port}\nusername = "edge-01"\npassword_file = "{password}"\n'
    return f'[agent]\nid = "edge-01"\n[mqtt]\n{mqtt}{tables}'


@pytest.fixture
def machine(tmp_path, tiny_model, tiny_openvino_vision):
    with Booted(tmp_path / "machine", tiny_model, tiny_openvino_vision) as booted:
        booted.write(f"/run/systemd/system/{UNIT}.d/testing.conf", TESTING)
        yield booted


def test_agent_and_engines_work_under_the_restrictions(machine, broker, tiny_model, tiny_openvino_vision):
    """Installed by its own command: both backends and the decoder of images; then an orderly stop, and away with it."""
    machine.write("/etc/edge-agent/edge-agent.toml", settings(broker, tiny_model, tiny_openvino_vision))
    machine.write("/etc/credstore/edge-agent.mqtt-password", "secret\n")
    assert "write      /etc/systemd/system" in machine.do(PROGRAM, "install-service")
    assert machine.do(PROGRAM, "install-service").count("unchanged  ") == 2
    machine.do("systemctl", "start", UNIT)
    with EdgeClient(Access("127.0.0.1", broker.port, client_id="me")) as client:
        text = client.submit("edge-01", prompt="Hello", max_tokens=4, model=tiny_model.name)
        asked = {"model": tiny_openvino_vision.name, "images": [encoded(picture())]}
        seen = client.submit("edge-01", prompt="What is it?", max_tokens=4, **asked)
        assert [(job.result(60).state, job.result(60).error) for job in (text, seen)] == [("succeeded", None)] * 2
    wait_for(lambda: "ready, connected" in machine.show(UNIT, "StatusText")["StatusText"], "the status line")

    group = Path(machine.show(UNIT, "ControlGroup")["ControlGroup"].lstrip("/"))
    members = machine.path("/sys/fs/cgroup" / group / "cgroup.procs").read_text().split()
    scores = {}
    for each in members:
        status = dict(line.split(":\t", 1) for line in Path(f"/proc/{each}/status").read_text().splitlines())
        assert (status["CapEff"], status["NoNewPrivs"], status["Seccomp"]) == ("0" * 16, "1", "2")
        scores[status["Name"]] = int(Path(f"/proc/{each}/oom_score_adj").read_text())
    (images,) = {name: score for name, score in scores.items() if name not in ("edge-agent", "ea-engine")}.values()
    assert (scores["ea-engine"] - scores["edge-agent"], images) == (500, 1000)
    assert machine.path("/var/lib/private/edge-agent/queue.db").stat().st_mode & 0o777 == 0o600
    assert machine.path("/var/cache/private/edge-agent").is_dir()
    assert json.loads(machine.do(PROGRAM, "status", "--json", "--config", "/etc/edge-agent/edge-agent.toml"))

    machine.do("systemctl", "stop", UNIT)
    assert machine.show(UNIT, "Result", "NRestarts", "ExecMainStatus") == {
        "Result": "success",
        "NRestarts": "0",
        "ExecMainStatus": "0",
    }
    machine.do(PROGRAM, "install-service", "--remove")
    assert machine.show(UNIT, "LoadState")["LoadState"] != "loaded"
