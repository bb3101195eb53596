"""The unit as installed, under a real systemd: what it restricts, and that the agent and its engines live with it."""

import json
from pathlib import Path

import pytest
from booted import PREFIX, SOURCE, Booted
from images import encoded, picture
from running import requester, wait_for

from edge_agent.mqtt.private_broker import PrivateBroker

pytestmark = [pytest.mark.booted, pytest.mark.broker, pytest.mark.engine]

UNIT = "edge-agent.service"
PROGRAM = f"{PREFIX}/bin/edge-agent"
SETTINGS = "/etc/edge-agent/edge-agent.toml"
LOG = "/run/agent.log"
FREEZE = "/run/freeze"
TESTING = f"""\
[Service]
Environment=PYTHONPATH={SOURCE} LD_LIBRARY_PATH=/opt/python/lib EDGE_AGENT_GOVERNOR__ENABLED=false
StandardError=append:{LOG}
"""
"""What is another here than on a device: this checkout is not installed, and there is no journal."""
IMPATIENT = f"""\
[Service]
Environment=PYTHONPATH={SOURCE}:{SOURCE}/tests/faults FAULTS_FREEZE={FREEZE}
WatchdogSec=3
RestartSec=0
"""


def settings(broker, *models):
    tables = "".join(
        f'[[models.serve]]\nname = "{each.name}"\npath = "/opt/models/{each.name}"\ncontext_tokens = 2048\n'
        for each in models
    )
    password = "$CREDENTIALS_DIRECTORY/mqtt-password"
    mqtt = f'host = "127.0.0.1"\nport = {broker.port}\nusername = "edge-01"\npassword_file = "{password}"\n'
    return f'[agent]\nid = "edge-01"\n[mqtt]\n{mqtt}{tables}'


@pytest.fixture(scope="module")
def broker(tmp_path_factory):
    with PrivateBroker(folder=tmp_path_factory.mktemp("broker")) as running:
        yield running


@pytest.fixture(scope="module")
def machine(tmp_path_factory, broker, tiny_model, tiny_openvino_vision):
    """A machine with the agent as its own command installs it, running."""
    with Booted(tmp_path_factory.mktemp("machine"), tiny_model, tiny_openvino_vision) as booted:
        booted.write(f"/run/systemd/system/{UNIT}.d/testing.conf", TESTING)
        booted.write(SETTINGS, settings(broker, tiny_model, tiny_openvino_vision))
        booted.write("/etc/credstore/edge-agent.mqtt-password", "secret\n")
        assert "write        /etc/systemd/system" in booted.do(PROGRAM, "install-service")
        assert booted.do(PROGRAM, "install-service").count("unchanged ") == 2
        booted.do("systemctl", "start", UNIT)
        yield booted


def test_engines_and_the_decoder_of_images_work_under_the_restrictions(
    machine, broker, tiny_model, tiny_openvino_vision
):
    with requester(broker) as client:
        text = client.submit("edge-01", prompt="Hello", max_tokens=4, model=tiny_model.name)
        asked = {"model": tiny_openvino_vision.name, "images": [encoded(picture())]}
        seen = client.submit("edge-01", prompt="What is it?", max_tokens=4, **asked)
        assert [(job.result(60).state, job.result(60).error) for job in (text, seen)] == [("succeeded", None)] * 2
    wait_for(lambda: "ready, connected" in machine.show(UNIT, "StatusText")["StatusText"], "the status line")

    group = Path(machine.show(UNIT, "ControlGroup")["ControlGroup"].lstrip("/"))
    scores = {}
    for each in machine.path("/sys/fs/cgroup" / group / "cgroup.procs").read_text().split():
        status = dict(line.split(":\t", 1) for line in Path(f"/proc/{each}/status").read_text().splitlines())
        assert (status["CapEff"], status["NoNewPrivs"], status["Seccomp"]) == ("0" * 16, "1", "2")
        scores[status["Name"]] = int(Path(f"/proc/{each}/oom_score_adj").read_text())
    (images,) = {name: score for name, score in scores.items() if name not in {"edge-agent", "ea-engine"}}.values()
    assert (scores["ea-engine"] - scores["edge-agent"], images) == (500, 1000)
    assert machine.path("/var/lib/private/edge-agent/queue.db").stat().st_mode & 0o777 == 0o600
    assert machine.path("/var/cache/private/edge-agent").is_dir()
    assert json.loads(machine.do(PROGRAM, "status", "--json", "--config", SETTINGS))


def test_an_agent_with_a_thread_that_stands_still_is_started_again_and_says_where_it_stood(machine, broker, tiny_model):
    """With all drop-ins, whose devices are not here: they must not keep it from starting."""
    machine.write(f"/run/systemd/system/{UNIT}.d/with-faults.conf", IMPATIENT)
    for drop_in in (Path(__file__).parents[2] / f"systemd/{UNIT}.d").iterdir():
        machine.write(f"/run/systemd/system/{UNIT}.d/{drop_in.name}", drop_in.read_text())
    machine.do("systemctl", "daemon-reload")
    machine.do("systemctl", "restart", UNIT)
    machine.write(f"{FREEZE}/dispatcher", "")
    with requester(broker) as client:
        job = client.submit("edge-01", prompt="Hello", max_tokens=4, model=tiny_model.name)
        wait_for(lambda: "Fatal Python error" in machine.path(LOG).read_text(), "the end")
        machine.path(f"{FREEZE}/dispatcher").unlink()
        assert job.result(60).state == "succeeded"
    log = machine.path(LOG).read_text()
    assert '"threads": ["dispatcher"]' in log
    assert "in _run" in log.partition("Fatal Python error: Aborted")[2]
    assert int(machine.show(UNIT, "NRestarts")["NRestarts"]) >= 1


def test_a_stop_is_orderly_and_what_was_installed_goes_away_again(machine):
    machine.do("systemctl", "stop", UNIT)
    assert machine.show(UNIT, "Result", "ExecMainStatus") == {"Result": "success", "ExecMainStatus": "0"}
    machine.do(PROGRAM, "install-service", "--remove")
    assert not machine.path(f"/etc/systemd/system/{UNIT}").exists()
    assert machine.path(SETTINGS).exists()
