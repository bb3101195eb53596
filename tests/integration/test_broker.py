"""The private broker, against the real mosquitto."""

import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from queue import Queue

import paho.mqtt.client as mqtt
import psutil
import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from edge_agent.mqtt.private_broker import BrokerError, BrokerMissingError, PrivateBroker, find_mosquitto

pytestmark = pytest.mark.broker

WAIT_S = 10.0


class Peer:
    """An MQTT 5 client that says what it was told: its CONNACK, its SUBACK, its messages."""

    def __init__(self, name, broker, *, username=None):
        self.connack = Queue()
        self.subscribed = threading.Event()
        self.messages = Queue()
        self.client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, name, protocol=mqtt.MQTTv5)
        self.client.on_connect = lambda _c, _u, _f, reason, properties: self.connack.put((reason, properties))
        self.client.on_subscribe = lambda *_: self.subscribed.set()
        self.client.on_message = lambda _c, _u, message: self.messages.put(message.payload)
        if username:
            self.client.username_pw_set(username, "secret")
        session = Properties(PacketTypes.CONNECT)
        session.SessionExpiryInterval = 3600
        self.client.connect(broker.host, broker.port, clean_start=False, properties=session)
        self.client.loop_start()
        self.reason, self.properties = self.connack.get(timeout=WAIT_S)

    def subscribe(self, topic):
        self.client.subscribe(topic, qos=1)
        assert self.subscribed.wait(WAIT_S)

    def publish(self, topic, payload):
        info = self.client.publish(topic, payload, qos=1)
        info.wait_for_publish(WAIT_S)
        assert info.is_published()


@contextmanager
def peer(name, broker, *, username=None) -> Iterator[Peer]:
    connected = Peer(name, broker, username=username)
    try:
        yield connected
    finally:
        connected.client.disconnect()
        connected.client.loop_stop()
        # loop_stop leaves paho's own pair of sockets to the garbage collector, which warns
        connected.client._reset_sockets()


def queue_for_absent(broker):
    """Leave a message behind for a client that has a session and is away."""
    with peer("away", broker) as away:
        away.subscribe("jobs")
    with peer("sender", broker) as sender:
        sender.publish("jobs", b"kept")


def message_for_absent(broker):
    with peer("away", broker) as away:
        return away.messages.get(timeout=WAIT_S)


def test_passes_messages(broker):
    """Clients of MQTT 5 reach each other through it as soon as it has started."""
    with peer("one", broker) as one, peer("two", broker) as two:
        one.subscribe("greetings")
        two.publish("greetings", b"hello")
        assert one.messages.get(timeout=WAIT_S) == b"hello"


def test_restart_keeps_port_and_queue(broker):
    """Stopped and started again it is on the same port and still has what it had queued."""
    port = broker.port
    queue_for_absent(broker)
    broker.stop()
    broker.start()
    assert broker.port == port
    assert message_for_absent(broker) == b"kept"


def test_killed_broker_has_what_it_saved(broker):
    """A kill loses no message older than the autosave of 5 s."""
    queue_for_absent(broker)
    changes = threading.Event()
    saved = broker.folder / "state" / "mosquitto.db"
    for _ in range(200):
        if saved.exists() and b"kept" in saved.read_bytes():
            break
        changes.wait(0.05)
    broker.kill()
    broker.start()
    assert message_for_absent(broker) == b"kept"


def test_start_and_stop_repeat_harmlessly(broker):
    """Starting a running broker or stopping a stopped one changes nothing."""
    pid = broker.pid
    broker.start()
    assert broker.pid == pid
    broker.stop()
    broker.stop()
    broker.kill()
    with pytest.raises(BrokerError, match="does not run"):
        _ = broker.pid


def test_dies_with_its_parent(tmp_path):
    """A parent killed without a chance to clean up takes the broker with it."""
    program = (
        "import sys, pathlib\n"
        "from edge_agent.mqtt.private_broker import PrivateBroker\n"
        "broker = PrivateBroker(folder=pathlib.Path(sys.argv[1]))\n"
        "broker.start()\n"
        "print(broker.pid, flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as parent:
        mosquitto = psutil.Process(int(parent.stdout.readline()))
        parent.send_signal(signal.SIGKILL)
    _, alive = psutil.wait_procs([mosquitto], timeout=WAIT_S)
    assert not alive


def test_draws_another_port(tmp_path):
    """A drawn port that is taken is not the end: another one is drawn."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ports = iter([taken.getsockname()[1], 21_883, 22_883, 23_883])
        with (
            PrivateBroker(folder=tmp_path, draw_port=lambda: next(ports)) as broker,
            peer("one", broker) as one,
        ):
            assert broker.port != taken.getsockname()[1]
            assert one.reason == "Success"


def test_given_port_taken(tmp_path):
    """A given port that is taken is reported in mosquitto's own words."""
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(BrokerError, match="Address already in use"),
    ):
        PrivateBroker(folder=tmp_path, port=taken.getsockname()[1]).start()


def test_bad_settings(tmp_path):
    """A configuration line that mosquitto refuses is reported in its own words."""
    broker = PrivateBroker(folder=tmp_path, settings="no_such_setting true")
    with pytest.raises(BrokerError, match='Unknown configuration variable "no_such_setting"'):
        broker.start()
    with pytest.raises(BrokerError, match="no port yet"):
        _ = broker.port


def test_tells_its_packet_size(tmp_path):
    """Clients learn the maximum packet size from CONNACK."""
    with PrivateBroker(folder=tmp_path, max_packet_size=4096) as broker, peer("one", broker) as one:
        assert one.properties.MaximumPacketSize == 4096


def test_passwords_and_acl(tmp_path):
    """With a password file strangers are refused, and the ACL decides what users may read."""
    passwords = tmp_path / "passwords"
    passwords.write_text("one:secret\n")
    subprocess.run(["mosquitto_passwd", "-U", passwords], check=True, timeout=WAIT_S)
    acl = tmp_path / "acl"
    acl.write_text("user one\ntopic readwrite allowed\ntopic write forbidden\n")
    folder = tmp_path / "a folder"
    with PrivateBroker(folder=folder, password_file=passwords, acl_file=acl) as broker:
        with peer("stranger", broker) as stranger:
            assert stranger.reason == "Not authorized"
        with peer("one", broker, username="one") as one:
            one.subscribe("#")
            one.publish("forbidden", b"unseen")
            one.publish("allowed", b"seen")
            assert one.messages.get(timeout=WAIT_S) == b"seen"


def test_stops_a_broker_that_hears_nothing(broker, monkeypatch):
    """A broker that does not answer SIGTERM is killed after a bounded wait."""
    monkeypatch.setattr("edge_agent.mqtt.private_broker.STOP_S", 0.1)
    mosquitto = psutil.Process(broker.pid)
    mosquitto.suspend()
    broker.stop()
    assert not mosquitto.is_running()


def test_absent(tmp_path):
    """Without mosquitto the error carries the install line."""
    with pytest.raises(BrokerMissingError, match="apt-get install mosquitto"):
        find_mosquitto(path=str(tmp_path))
