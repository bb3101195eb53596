"""The agent behind TLS, passwords and the documented ACL."""

import socket
import subprocess

import pytest
from authority import Authority
from running import AgentProcess, faulty, wait_for

from edge_agent.client.client import EdgeClient
from edge_agent.client.handle import JobRejectedError
from edge_agent.control.caller import ask_agent
from edge_agent.control.messages import AskState
from edge_agent.mqtt.access import Access
from edge_agent.mqtt.private_broker import PrivateBroker

REFUSED = "nobody we trust has signed the broker's certificate"

pytestmark = [pytest.mark.broker, pytest.mark.engine]

ACL = """\
pattern write edge/v1/agents/+/cmd/job/%u
pattern write edge/v1/agents/+/cmd/cancel/%u
pattern write edge/v1/agents/+/cmd/status/%u
pattern write edge/v1/agents/+/cmd/image/%u
pattern read edge/v1/clients/%u/inbox/#
pattern read edge/v1/agents/+/evt/presence
pattern read edge/v1/agents/+/evt/info
pattern read edge/v1/agents/%u/cmd/#
pattern write edge/v1/agents/%u/evt/#
pattern write edge/v1/clients/+/inbox/%u/#
"""


@pytest.fixture
def certificates(tmp_path):
    """A CA and a certificate for 127.0.0.1 signed by it."""
    authority = Authority(tmp_path / "tls")
    authority.issue("broker", file="server")
    return authority.folder


@pytest.fixture
def guarded(tmp_path, certificates):
    """A broker with TLS, passwords and the ACL of the protocol; users edge-01, line-3 and mallory."""
    passwords, acl = tmp_path / "passwords", tmp_path / "acl"
    passwords.write_text("edge-01:agent-pw\nline-3:line-pw\nmallory:mallory-pw\n")
    subprocess.run(["mosquitto_passwd", "-U", str(passwords)], check=True, timeout=60)
    acl.write_text(ACL)
    passwords.chmod(0o600)
    tls = f"certfile {certificates / 'server.pem'}\nkeyfile {certificates / 'server.key'}"
    with PrivateBroker(folder=tmp_path / "broker", password_file=passwords, acl_file=acl, settings=tls) as broker:
        yield broker


def access(broker, certificates, user, password):
    return Access(
        broker.host,
        broker.port,
        client_id=user,
        username=user,
        password=password,
        tls=True,
        tls_ca_file=certificates / "ca.pem",
    )


def test_a_job_passes_through_tls_passwords_and_acl(guarded, certificates, tmp_path, tiny_model):
    """With the documented ACL a requester's job is answered, and nobody else may write in its name."""
    (tmp_path / "pw").write_text("agent-pw\n")
    agent = AgentProcess(folder=tmp_path / "agent", broker=guarded, models=[{"name": "t", "path": str(tiny_model)}])
    mqtt = f'username = "edge-01"\npassword_file = "{tmp_path / "pw"}"\ntls_ca_file = "{certificates / "ca.pem"}"\n'
    agent.config.write_text(agent.config.read_text().replace("[mqtt]\n", f"[mqtt]\n{mqtt}"))
    with agent, EdgeClient(access(guarded, certificates, "line-3", "line-pw")) as client:
        result = client.submit("edge-01", prompt="Hello", max_tokens=5).result(60)
        assert result.state == "succeeded"
        assert not agent.said("link.subscription_refused")
        stranger = access(guarded, certificates, "mallory", "mallory-pw")
        with EdgeClient(stranger, name="line-3") as mallory, pytest.raises(JobRejectedError, match="ACL"):
            mallory.submit("edge-01", prompt="Hello").result(60)


def test_a_broker_nobody_vouches_for_is_not_talked_to(guarded, certificates, tmp_path):
    """Without the CA the certificate is refused: the agent goes on trying and never sends its password.

    It says why, and what mends it, in the log, to the service manager and to who asks it on its machine.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(60)
        environ = {"NOTIFY_SOCKET": str(tmp_path / "notify")}
        agent = AgentProcess(folder=tmp_path / "agent", broker=guarded, models=[], environ=environ)
        config = agent.config.read_text().replace("[mqtt]\n", '[mqtt]\nusername = "edge-01"\ntls = true\n')
        agent.config.write_text(config)
        with agent:
            (said, *_) = agent.wait_said("link.unreachable")
            assert (said["reason"], "mqtt.tls_ca_file" in said["next"]) == (REFUSED, True)
            wait_for(lambda: f"no broker ({REFUSED}: ".encode() in manager.recv(65_536), "the status line")
            assert REFUSED in ask_agent(agent.state_dir, AskState()).state.trouble
            assert agent.process.poll() is None
            assert not agent.said("link.up")


def test_a_wrong_password_is_said_in_the_log(guarded, certificates, tmp_path):
    (tmp_path / "pw").write_text("wrong\n")
    agent = AgentProcess(folder=tmp_path / "agent", broker=guarded, models=[])
    mqtt = f'username = "edge-01"\npassword_file = "{tmp_path / "pw"}"\ntls_ca_file = "{certificates / "ca.pem"}"\n'
    agent.config.write_text(agent.config.read_text().replace("[mqtt]\n", f"[mqtt]\n{mqtt}"))
    with agent:
        (refused, *_) = agent.wait_said("link.refused")
        assert "authorized" in refused["reason"].lower() or "password" in refused["reason"].lower()
        assert "wrong" not in agent.log.read_text()


def test_credentials_that_are_not_there_yet_are_waited_for(guarded, certificates, tmp_path):
    """What brings the secrets may start after the agent does; until then it says which file it misses."""
    agent = AgentProcess(folder=tmp_path / "agent", broker=guarded, models=[], environ=faulty())
    mqtt = f'username = "edge-01"\npassword_file = "{tmp_path / "pw"}"\ntls_ca_file = "{tmp_path / "ca.pem"}"\n'
    agent.config.write_text(agent.config.read_text().replace("[mqtt]\n", f"[mqtt]\n{mqtt}"))
    with agent:
        agent.wait_said("agent.started")
        (said, *_) = agent.wait_said("link.unreachable")
        assert f"{tmp_path / 'pw'} cannot be read: No such file or directory" in said["reason"]
        (tmp_path / "pw").write_text("agent-pw\n")
        wait_for(lambda: "ca.pem cannot be read" in agent.said("link.unreachable")[-1]["reason"], "the other file")
        (tmp_path / "ca.pem").write_bytes((certificates / "ca.pem").read_bytes())
        agent.wait_said("link.up")
        assert agent.stop() == 0
