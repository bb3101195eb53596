"""`edge-agent doctor` on a broker set up as it should be, then with one thing after another spoilt."""

import json
import os
from contextlib import contextmanager

import pytest
from authority import Authority, mosquitto_tls
from secured import Mosquitto
from typer.testing import CliRunner

from edge_agent.cli.app import app
from edge_agent.doctor import builds, machine
from edge_agent.doctor.finding import Severity
from edge_agent.mqtt.private_broker import PrivateBroker
from edge_agent.settings import load as settings


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    mosquitto = Mosquitto(tmp_path_factory.mktemp("passwords"), "passwords")
    with mosquitto.broker:
        yield mosquitto


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch):
    for name in [name for name in os.environ if name.startswith("EDGE_AGENT_")]:
        monkeypatch.delenv(name)


def examine(tmp_path, mqtt, *arguments, agent="edge-01"):
    """Run the doctor; return its exit code and its findings by what they are about."""
    state, model = tmp_path / "state", tmp_path / "model"
    state.mkdir(mode=0o700, exist_ok=True)
    model.mkdir(exist_ok=True)
    (model / "genai_config.json").touch()
    config = tmp_path / "edge-agent.toml"
    lines = "".join(
        f"{key} = {json.dumps(value if isinstance(value, int | str | list) else str(value))}\n"
        for key, value in mqtt.items()
    )
    config.write_text(
        f'[agent]\nid = "{agent}"\nstate_dir = "{state}"\n'
        f'[mqtt]\n{lines}[[models.serve]]\nname = "t"\npath = "{model}"\n'
    )
    run = CliRunner().invoke(app, ["doctor", "--json", "--config", str(config), *arguments])
    found = {}
    for finding in json.loads(run.stdout)["findings"]:
        found.setdefault(finding["about"], finding)
    return run.exit_code, found


def proper(mosquitto, user="edge-01"):
    return {
        "host": "127.0.0.1",
        "port": mosquitto.port,
        "username": user,
        "password_file": mosquitto.folder / f"{user}.password",
        "tls_ca_file": mosquitto.folder / "ca.pem",
    }


@pytest.mark.broker
def test_a_broker_set_up_by_acl_is_in_order(guarded, tmp_path):
    code, found = examine(tmp_path, proper(guarded))
    assert code == 0, found
    wanted = ("settings", "login", "session", "hearing", "speaking", "answering", "identity", "strangers", "disk")
    assert {about: found[about]["level"] for about in wanted} == dict.fromkeys(wanted, "ok")
    assert found["agent"]["level"] == "warning"
    assert "certificate is valid until" in found[f"127.0.0.1:{guarded.port}"]["said"]


@pytest.mark.broker
def test_a_broker_without_an_acl_is_told(broker, tmp_path):
    code, found = examine(tmp_path, {"host": broker.host, "port": broker.port, "username": "edge-01"})
    assert code == 0
    assert found["identity"]["level"] == found["strangers"]["level"] == "warning"
    assert "edge-agent acl" in found["identity"]["mend"]
    assert "allow_anonymous false" in found["strangers"]["mend"]


@pytest.mark.broker
@pytest.mark.parametrize(
    ("spoilt", "about", "said", "mend"),
    [
        ({"port": 1}, "127.0.0.1:1", "nothing listens", "mqtt.port"),
        ({"host": "localhost"}, "localhost:", "for another name", "subjectAltName"),
        ({"tls_ca_file": "stranger"}, "127.0.0.1:", "nobody we trust", "mqtt.tls_ca_file"),
        ({"password_file": "wrong"}, "login", "the broker refuses us", "mqtt.password_file"),
        ({"password_file": "/nowhere"}, "credentials", "cannot be read", "mend the file"),
        ({"username": "grafana", "password_file": "grafana"}, "speaking", "refuses edge/v1/agents/edge-01/evt", "acl"),
    ],
)
def test_what_is_wrong_is_named_with_the_line_that_mends_it(guarded, tmp_path, spoilt, about, said, mend):
    (tmp_path / "wrong").write_text("wrong\n")
    files = {"wrong": tmp_path / "wrong", "grafana": guarded.folder / "grafana.password"}
    if spoilt.get("tls_ca_file"):
        files["stranger"] = Authority(tmp_path / "stranger").ca
    mqtt = proper(guarded) | {
        key: files.get(value, value) if key != "username" else value for key, value in spoilt.items()
    }
    code, found = examine(tmp_path, mqtt)
    assert code == 1
    (finding,) = [each for name, each in found.items() if name.startswith(about)]
    assert (finding["level"], said in finding["said"], mend in finding["mend"]) == ("failed", True, True), finding


@pytest.mark.broker
def test_certificates_past_their_time_and_of_others_are_told(tmp_path):
    authority = Authority(tmp_path / "tls")
    expired = authority.issue("broker", file="expired", days=-1)
    with PrivateBroker(folder=tmp_path / "broker", settings=mosquitto_tls(authority, expired)) as broker:
        own, key = authority.issue("edge-02", days=40)
        mqtt = {
            "host": broker.host,
            "port": broker.port,
            "tls_ca_file": authority.ca,
            "tls_cert_file": own,
            "tls_key_file": key,
        }
        code, found = examine(tmp_path, mqtt)
        assert code == 1
        assert "its common name is edge-02" in found["mqtt.tls_cert_file"]["said"]
        assert "the broker's certificate has expired" in found[f"127.0.0.1:{broker.port}"]["said"]
        own, key = authority.issue("edge-01", days=-1)
        _, found = examine(tmp_path, mqtt | {"tls_cert_file": own, "tls_key_file": key})
        assert "only" in found["mqtt.tls_cert_file"]["said"]
        own, key = authority.issue("edge-01", days=3)
        _, found = examine(tmp_path, mqtt | {"tls_cert_file": own, "tls_key_file": key})
        assert (found["mqtt.tls_cert_file"]["level"], "expires on" in found["mqtt.tls_cert_file"]["said"]) == (
            "warning",
            True,
        )


@pytest.mark.broker
def test_an_open_password_file_and_folder_are_told(guarded, tmp_path):
    (tmp_path / "open").write_text((guarded.folder / "edge-01.password").read_text())
    (tmp_path / "open").chmod(0o644)
    (tmp_path / "state").mkdir(mode=0o755)
    _, found = examine(tmp_path, proper(guarded) | {"password_file": tmp_path / "open"})
    assert found["mqtt.password_file"]["mend"] == f"chmod 600 {tmp_path / 'open'}"
    assert found["agent.state_dir"]["mend"] == f"sudo chmod 700 {tmp_path / 'state'}"


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ('[mqtt]\nhots = "x"\n', "did you mean 'host'?"),
        ('[[watch]]\nname = "a"\ntopic = "a"\nprompt = "{{ x }}"\n', "no variable is called 'x'"),
    ],
)
def test_settings_that_cannot_be_used_are_told(tmp_path, lines, said):
    config = tmp_path / "edge-agent.toml"
    config.write_text(lines)
    run = CliRunner().invoke(app, ["doctor", "--config", str(config)])
    assert run.exit_code == 1
    assert said in run.stdout


def test_builds_are_looked_at_by_size_and_with_full_by_hash(tmp_path, tiny_model):
    import_ = ["models", "import", str(tiny_model), "--name", "t", "--dir", str(tmp_path / "models")]
    assert CliRunner().invoke(app, import_).exit_code == 0
    loaded = settings.Settings(models={"dir": tmp_path / "models", "serve": [{"name": "t", "path": tiny_model}]})

    def look(*, full):
        return {each.about: each for each in builds.look(loaded, full=full)}["build t"]

    assert look(full=False).level is look(full=True).level is Severity.OK
    file = max((tmp_path / "models" / "t").iterdir(), key=lambda path: path.stat().st_size)
    with file.open("r+b") as opened:
        opened.write(b"spoilt")
    assert look(full=False).level is Severity.OK
    assert (look(full=True).level, "differs" in look(full=True).said) == (Severity.FAILED, True)
    file.unlink()
    assert look(full=False).level is Severity.FAILED
    nothing = settings.Settings(models={"dir": tmp_path / "none"})
    assert [each.level for each in builds.look(nothing, full=False)] == [Severity.FAILED]


@contextmanager
def shut_out(folder):
    """Be somebody who may not look into a folder."""
    folder.chmod(0)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
        folder.chmod(0o700)


def test_what_may_not_be_looked_at_is_told(tmp_path):
    """A state folder and a model in the house of another user."""
    house = tmp_path / "house"
    house.mkdir()
    loaded = settings.Settings(
        agent={"state_dir": house / "state"},
        models={"dir": "/nowhere/models", "serve": [{"name": "t", "path": house / "model"}]},
    )
    with shut_out(house):
        (folder,) = machine.agent(loaded)
        room = machine.disk(loaded)
        found = {each.about: each for each in builds.look(loaded, full=False)}
    assert (folder.level, folder.mend) == (Severity.FAILED, "run this as the agent's user, or with sudo")
    assert room.about == "disk"
    assert "Permission denied" in found["model t"].said
    (missing,) = machine.agent(loaded)
    assert "is not there" in missing.said


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("Type=notify\nExecStart=/bin/sh -c true\n", "is right"),
        ("Type=notify\nExecStart=/opt/none/edge-agent run\n", "which is no program here"),
        ("ExecStart=/bin/sh\n", "does not listen to the agent"),
    ],
)
def test_the_unit_is_looked_at(tmp_path, lines, said):
    (tmp_path / "edge-agent.service").write_text(f"[Unit]\nAfter=a\nAfter=b\n[Service]\n{lines}[Install]\n")
    (finding,) = machine.unit((tmp_path / "none", tmp_path))
    assert said in finding.said


def test_the_shipped_unit_is_right():
    from pathlib import Path

    (finding,) = machine.unit((Path(__file__).parents[2] / "systemd",))
    assert "starts /opt/edge-agent" in finding.said  # nothing else is said of it; the program is not here
