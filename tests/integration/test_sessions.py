"""Nobody takes another's session at the broker: client ids cannot be guessed; what waits under old ones is fetched."""

import json
import subprocess
from dataclasses import replace

import pytest
from running import PATIENCE_S, AgentProcess, Listener, mosquitto_pub, wait_for
from secured import Mosquitto

from edge_agent.client.client import EdgeClient
from edge_agent.mqtt.access import Access
from edge_agent.mqtt.link import Link
from edge_agent.mqtt.private_broker import PrivateBroker

pytestmark = pytest.mark.broker

JOBS = "edge/v1/agents/edge-01/cmd/job/line-3"
RULE = '[[watch]]\nname = "alarm"\ntopic = "plant/+/alarm"\nqos = 1\nprompt = "{{ payload }}"\n'


def access_of(mosquitto, user):
    return Access(
        "127.0.0.1",
        mosquitto.port,
        client_id=user,
        username=user,
        password_file=mosquitto.folder / f"{user}.password",
        tls=True,
        tls_ca_file=mosquitto.folder / "ca.pem",
        session_expiry_s=3600,
    )


def take_over(access, name):
    """Connect under a client id as it was guessed, with nothing kept, and go."""
    link = Link(
        replace(access, client_id=name, session="", clean_start=True, session_expiry_s=0),
        subscriptions=(),
    )
    link.on_received.connect(lambda _inbound, receipt: receipt.acknowledge())
    link.start()
    assert link.wait_connected(PATIENCE_S)
    link.stop()


class SecuredAgent(AgentProcess):
    """A daemon of the broker that `edge-agent acl` sets up."""

    def __init__(self, mosquitto, folder, **settings):
        super().__init__(folder=folder, broker=mosquitto.broker, models=[], **settings)
        files = {"password_file": "edge-01.password", "tls_ca_file": "ca.pem"}
        lines = "".join(f'{key} = "{mosquitto.folder / name}"\n' for key, name in files.items())
        text = self.config.read_text().replace("[mqtt]\n", f'[mqtt]\nusername = "edge-01"\n{lines}')
        self.config.write_text(text.replace("[agent]\n", '[agent]\npools = ["line"]\n'))


@pytest.fixture
def guarded(tmp_path):
    mosquitto = Mosquitto(tmp_path / "broker", "passwords")
    with mosquitto.broker:
        yield mosquitto


GUESSES = [
    *(f"edge-01{part}" for part in ("", ".pool", ".watch", ".doctor", ".main", "-fleet", ".doctor-2")),
    *("line-3", "line-3-fleet", "line-3-test", "edge-01."),
]


def test_under_the_generated_acl_who_connects_under_every_guessable_id_loses_nobody_a_job(guarded, tmp_path):
    """While the agent is away, while it is there, and while its requester is away."""
    mallory = access_of(guarded, "line-4")
    agent = SecuredAgent(guarded, tmp_path / "agent", extra=RULE)
    with agent:
        agent.wait_said("link.up")
        agent.wait_said("session.former_ended", 2)
        assert agent.stop() == 0
    with EdgeClient(access_of(guarded, "line-3"), session_file=tmp_path / "line-3") as client:
        assert client.wait_connected(PATIENCE_S)
    for number in range(3):
        guarded.may_write("line-3", JOBS, json.dumps({"job_id": f"kept-{number}", "prompt": "x", "model": "none"}))
    for name in GUESSES:
        take_over(mallory, name)
    ups = len(agent.said("link.up"))
    with agent:
        agent.wait_said("message.rejected", 3)
        assert {each["job_id"] for each in agent.said("message.rejected")} == {"kept-0", "kept-1", "kept-2"}
        agent.wait_said("link.up", ups + 2)
        ups = len(agent.said("link.up"))
        for name in GUESSES:
            take_over(mallory, name)
        guarded.may_write("line-3", JOBS, json.dumps({"job_id": "later", "prompt": "x", "model": "none"}))
        agent.wait_said("message.rejected", 4)
        assert len(agent.said("link.up")) == ups
        assert agent.said("link.down") == []
        assert agent.stop() == 0
    # What was said to the requester while it was away waits for it, whoever came under its name.
    heard = []
    link = Link(
        replace(access_of(guarded, "line-3"), session=(tmp_path / "line-3").read_text().strip()),
        subscriptions=(),
    )
    link.on_received.connect(lambda inbound, receipt: (heard.append(inbound.topic), receipt.acknowledge()))
    link.start()
    wait_for(lambda: len(heard) >= 4, "what was kept for the requester")
    link.stop()


def keeps(broker, name, *filters):
    """Leave a session at the broker, as an earlier version did."""
    topics = [word for each in filters for word in ("-t", each)]
    command = ["mosquitto_sub", "-V", "mqttv5", "-h", broker.host, "-p", str(broker.port), "-i", name]
    command += ["-c", "-x", "3600", "-q", "1", "-E", *topics]
    subprocess.run(command, check=True, capture_output=True, timeout=PATIENCE_S)


def test_the_first_start_after_an_upgrade_takes_what_the_broker_had_kept_under_the_old_name(broker, tmp_path):
    """It takes every message, those of watched topics too, ends the old sessions, and does so once."""
    keeps(broker, "edge-01", "edge/v1/agents/edge-01/cmd/+/+", "edge/v1/agents/edge-01/evt/presence")
    keeps(broker, "edge-01.watch-bbff79ed", "plant/+/alarm")
    mosquitto_pub(broker, "plant/a/alarm", "the alarm")
    for number in range(20):
        mosquitto_pub(broker, JOBS, json.dumps({"job_id": f"kept-{number}", "prompt": "x", "model": "none"}))
    agent = AgentProcess(folder=tmp_path / "agent", broker=broker, models=[], extra=RULE)
    with agent:
        agent.wait_said("message.rejected", 20)
        ended = agent.wait_said("session.former_ended", 2)
        assert {each["session"]: each["found"] for each in ended} == {"edge-01": True, "edge-01.watch-bbff79ed": True}
        agent.wait_said("watch.dropped")
        assert agent.stop() == 0
    assert {each["job_id"] for each in agent.said("message.rejected")} == {f"kept-{n}" for n in range(20)}
    names = {file.name: file.stat().st_mode & 0o777 for file in agent.state_dir.iterdir()}
    assert names["session"] == 0o600
    assert "session.former" not in names
    begun = broker.log.read_text().count("as edge-01 (")
    with agent:
        agent.wait_said("link.up", 4)
        assert agent.stop() == 0
    assert broker.log.read_text().count("as edge-01 (") == begun


def test_a_copy_of_a_state_folder_is_told_from_another_agent_of_the_name(broker, tmp_path):
    """Copies throw each other out; both say so in their log, and which it is."""
    one = AgentProcess(folder=tmp_path / "one", broker=broker, models=[])
    with one:
        one.wait_said("session.former_ended")
        assert one.stop() == 0
    two = AgentProcess(folder=tmp_path / "two", broker=broker, models=[])
    two.state_dir.mkdir(parents=True)
    (two.state_dir / "session").write_text((one.state_dir / "session").read_text())
    with Listener(broker, "edge/v1/agents/edge-01/evt/presence") as monitor, one, two:
        for agent in (one, two):
            said = agent.wait_said("presence.duplicate")
            assert "a copy of our state folder" in said[0]["reason"]

        def told():
            return {
                body["boot_id"]
                for body in monitor.of("presence")
                if "a copy of our state folder" in (body.get("reason") or "")
            }

        wait_for(lambda: len(told()) == 2, "both to say so")


def test_where_user_names_are_taken_for_client_ids_our_own_session_is_not_ended(tmp_path):
    """There the old id is our own: to look under it throws us off once, and loses no job."""
    settings = "use_username_as_clientid true\nlog_type all\n"
    with PrivateBroker(folder=tmp_path / "broker", settings=settings) as broker:
        agent = AgentProcess(folder=tmp_path / "agent", broker=broker, models=[])
        agent.config.write_text(agent.config.read_text().replace("[mqtt]\n", '[mqtt]\nusername = "edge-01"\n'))
        with agent:
            agent.wait_said("session.former_left")
            sent = 0
            for sent in range(1, 6):
                body = json.dumps({"job_id": f"j-{sent}", "prompt": "x", "model": "none"})
                mosquitto_pub(broker, JOBS, body, "-u", "line-3")
            agent.wait_said("message.rejected", sent)
            assert agent.said("session.former_ended") == []
            assert len(agent.said("link.up")) <= 3
            assert agent.stop() == 0
