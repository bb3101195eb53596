"""The connection over real TLS and WebSockets: what is refused is said in words, what is renewed is picked up."""

import os
import queue
import signal
import socket
import ssl
import subprocess
import threading
from dataclasses import replace

import pytest
from authority import Authority, mosquitto_tls
from fakes import PATIENCE_S, Time
from running import wait_for
from websockets import front

from edge_agent.mqtt.access import Access
from edge_agent.mqtt.link import Link
from edge_agent.mqtt.private_broker import PrivateBroker
from edge_agent.mqtt.redial import NEXT_ADDRESS_S, RETRY_MAX_S, RETRY_MIN_S
from edge_agent.mqtt.renewal import RENEWAL_LOOK_S
from edge_agent.mqtt.sockets import plain
from edge_agent.mqtt.subscriptions import Subscription
from edge_agent.protocol.messages import Publication

pytestmark = pytest.mark.broker


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    made = Authority(tmp_path_factory.mktemp("tls") / "ca")
    made.issue("broker")
    made.issue("edge-01")
    return made


@pytest.fixture(scope="module")
def stranger(tmp_path_factory):
    made = Authority(tmp_path_factory.mktemp("tls") / "stranger", "stranger")
    made.issue("edge-01")
    return made


def files(authority, name):
    return authority.folder / f"{name}.pem", authority.folder / f"{name}.key"


def access(broker, authority=None, own=None, **fields):
    if authority is not None:
        fields |= {"tls": True, "tls_ca_file": authority.ca}
    if own is not None:
        fields |= {"tls_cert_file": own[0], "tls_key_file": own[1]}
    return Access(broker.host, broker.port, client_id="edge-01", session_expiry_s=3600, **fields)


class Line:
    """A link that keeps what it is told; its clock stands still unless the test moves it."""

    def __init__(self, access):
        self.clock = Time()
        self.received, self.ups, self.downs = queue.Queue(), [], []
        self.listening = threading.Event()
        self.link = Link(
            access,
            subscriptions=(Subscription("jobs/#"),),
            chance=lambda: 0.0,
            now_s=self.clock.now_s,
        )
        self.link.on_received.connect(self._receive)
        self.link.on_up.connect(self.ups.append)
        self.link.on_down.connect(self.downs.append)
        self.link.on_subscribed.connect(lambda _refused: self.listening.set())
        self.waits_s = []
        """How long it would have stayed away each time; here it never does."""
        self.away = threading.Event()
        self.away.set()
        self.link._client._reconnect_wait = self._wait

    def _wait(self):
        self.waits_s.append(self.link._client._reconnect_min_delay)
        threading.Event().wait(0.01)
        self.away.wait(PATIENCE_S)

    def _receive(self, inbound, receipt):
        self.link.ack(receipt)
        self.received.put(inbound.payload)

    def echo(self, payload):
        """Send oneself a message; return what comes."""
        assert self.listening.wait(PATIENCE_S)
        self.link.publish(Publication("jobs/1", payload, qos=1))
        return self.received.get(timeout=PATIENCE_S)

    def trouble(self, reason):
        """Wait until the link says why there is no connection; return what it advises."""
        wait_for(lambda: self.link.trouble and reason in self.link.trouble.reason, reason, PATIENCE_S)
        return self.link.trouble.next

    def look(self):
        """Let the link look after its files, as often as makes a change settled."""
        for _ in range(2):
            self.clock.pass_s(RENEWAL_LOOK_S)
            self.link.attend()

    def __enter__(self):
        self.link.start()
        return self

    def __exit__(self, *raised):
        self.link.stop()
        del self.link._client._reconnect_wait  # no cycle: paho closes its own socket pair as it is collected


@pytest.mark.parametrize(
    ("certificate", "trusted", "reason", "advice"),
    [
        ({"days": -1}, "authority", "the broker's certificate has expired", "renew it at the broker"),
        ({}, "stranger", "nobody we trust has signed", "mqtt.tls_ca_file"),
        ({"alternative": "DNS:broker.example"}, "authority", "is for another name", "subjectAltName"),
    ],
)
def test_a_broker_that_does_not_convince_is_told_in_words(
    tmp_path, authority, stranger, certificate, trusted, reason, advice
):
    """And tried again less and less often."""
    shown = authority.issue("broker", file=f"bad-{len(certificate)}-{trusted}", **certificate)
    trusted = {"authority": authority, "stranger": stranger}[trusted]
    with (
        PrivateBroker(folder=tmp_path, settings=mosquitto_tls(authority, shown)) as broker,
        Line(access(broker, trusted)) as line,
    ):
        assert advice in line.trouble(reason)
        wait_for(lambda: len(line.waits_s) >= 8, "more tries", PATIENCE_S)
        assert line.waits_s[:8] == [min(RETRY_MAX_S, RETRY_MIN_S * 2**tries) / 2 for tries in range(8)]
        assert not line.ups


def test_tls_where_there_is_none_and_none_where_there_is(tmp_path, authority, broker):
    with Line(access(broker, authority)) as line:
        assert "mqtt.tls = false" in line.trouble("broke off the TLS handshake")
    tls = mosquitto_tls(authority, files(authority, "broker"))
    with PrivateBroker(folder=tmp_path / "tls", settings=tls) as guarded, Line(access(guarded)) as line:
        assert "mqtt.tls = true" in line.trouble("hung up before it welcomed us")


def test_a_certificate_of_ours_the_broker_refuses_is_told_in_words(tmp_path, authority, stranger):
    expired = authority.issue("edge-01", file="expired", days=-1)
    tls = mosquitto_tls(authority, files(authority, "broker"), ask=True)
    with PrivateBroker(folder=tmp_path, settings=tls) as broker:
        with Line(access(broker, authority, files(authority, "edge-01"))) as line:
            assert line.echo(b"x") == b"x"
        with Line(access(broker, authority)) as line:
            assert "mqtt.tls_cert_file" in line.trouble("the broker wants a certificate of ours")
        with Line(access(broker, authority, expired)) as line:
            assert "renew" in line.trouble("our certificate has expired")
        with Line(access(broker, authority, files(stranger, "edge-01"))) as line:
            assert "cafile" in line.trouble("does not know who signed our certificate")


def test_a_renewed_certificate_is_picked_up_without_losing_the_session(tmp_path, authority):
    """What was sent meanwhile arrives; half a renewal changes nothing."""
    own = tmp_path / "own.pem", tmp_path / "own.key"
    for file, source in zip(own, authority.issue("edge-01", file="first"), strict=True):
        file.write_bytes(source.read_bytes())
    second = authority.issue("edge-01", file="second")
    tls = mosquitto_tls(authority, files(authority, "broker"), ask=True)
    with (
        PrivateBroker(folder=tmp_path / "broker", settings=tls) as broker,
        Line(access(broker, authority, own)) as line,
    ):
        assert line.echo(b"before") == b"before"
        line.look()
        own[0].write_bytes(second[0].read_bytes())
        line.look()
        line.look()
        assert line.link.connected  # the key is not this certificate's
        assert line.link.connections == 1
        own[1].write_bytes(second[1].read_bytes())
        line.away.clear()
        line.look()
        wait_for(lambda: line.waits_s, "the old connection to end", PATIENCE_S)
        with Line(replace(access(broker, authority, files(authority, "edge-01")), client_id="sender")) as sender:
            assert sender.echo(b"meanwhile") == b"meanwhile"
        line.away.set()
        wait_for(lambda: len(line.ups) == 2, "the new connection", PATIENCE_S)
        assert line.waits_s == [0.0]
        while line.received.get(timeout=PATIENCE_S) != b"meanwhile":
            pass  # what was not acknowledged before comes again
        assert line.echo(b"after") == b"after"
        line.look()
        assert line.ups == [1, 2]


def test_a_revoked_user_is_told_and_a_new_password_picked_up(tmp_path):
    """Thrown out while connected, refused with words, tried less and less often, back with the renewed password."""
    users, password = tmp_path / "users", tmp_path / "password"

    def allow(name, word):
        users.write_text(f"{name}:{word}\n")
        subprocess.run(["mosquitto_passwd", "-U", str(users)], check=True, timeout=60)
        users.chmod(0o600)

    allow("edge-01", "one")
    password.write_text("one\n")
    with (
        PrivateBroker(folder=tmp_path / "broker", password_file=users) as broker,
        Line(access(broker, username="edge-01", password_file=password)) as line,
    ):
        wait_for(lambda: line.ups, "the first connection", PATIENCE_S)
        allow("edge-01", "two")

        os.kill(broker.pid, signal.SIGHUP)
        advice = line.trouble("the broker refuses us")
        assert "mqtt.password_file" in advice
        wait_for(lambda: len(line.waits_s) >= 4, "more tries", PATIENCE_S)
        assert line.waits_s[1:4] == [RETRY_MIN_S, 2 * RETRY_MIN_S, 4 * RETRY_MIN_S]
        password.write_text("two\n")
        wait_for(lambda: len(line.ups) == 2, "the new connection", PATIENCE_S)
        assert line.link.trouble is None


def test_further_addresses_are_tried_in_order(tmp_path, broker):
    """Quickly one after the other; only after the last of them is waited for longer."""
    dead = [("127.0.0.1", port) for port in (1, 2)]
    with Line(Access(*dead[0], client_id="edge-01", fallbacks=(dead[1], (broker.host, broker.port)))) as line:
        wait_for(lambda: line.ups, "the third address", PATIENCE_S)
        assert line.ups == [3]
        assert line.waits_s == [NEXT_ADDRESS_S / 2] * 2
        broker.stop()
        wait_for(lambda: len(line.waits_s) >= 8, "two rounds after the loss", PATIENCE_S)
        assert line.waits_s[2:8] == [RETRY_MIN_S / 2, *[NEXT_ADDRESS_S / 2] * 2, RETRY_MIN_S, *[NEXT_ADDRESS_S / 2] * 2]
        broker.start()
        wait_for(lambda: len(line.ups) == 2, "the third address again", PATIENCE_S)


@pytest.mark.parametrize("encrypted", [False, True])
def test_mqtt_travels_in_websockets(broker, authority, encrypted):
    """Small and large messages both ways, with TLS and without; through a front, Debian's mosquitto has none."""
    context = None
    if encrypted:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*files(authority, "broker"))
    with front(broker, path="/edge/mqtt", context=context) as at:
        fields = {"transport": "websockets", "websocket_path": "/edge/mqtt"}
        line = Line(access(at, authority if encrypted else None, **fields))
        opened = line.link._client.on_socket_open

        def narrow(client, userdata, sock):
            opened(client, userdata, sock)
            plain(sock).setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # a large frame goes out in parts

        line.link._client.on_socket_open = narrow
        with line:
            for size in (1, 124, 130, 70_000, 1_000_000):
                assert line.echo(b"x" * size) == b"x" * size


def test_what_speaks_no_websocket_is_told_in_words(broker):
    with front(broker) as at, Line(access(at, transport="websockets", websocket_path="/wrong")) as line:
        assert "mqtt.websocket_path" in line.trouble("speaks no WebSocket")
    with Line(access(broker, transport="websockets")) as line:
        assert "mqtt.websocket_path" in line.trouble("speaks no WebSocket")


def test_an_answer_that_makes_no_sense_ends_no_thread():
    """Paho fails on this one with an error that is no failed connection."""
    nonsense = b"HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept:\r\n\r\n"
    with socket.create_server(("127.0.0.1", 0)) as server:
        access = Access(*server.getsockname(), client_id="edge-01", transport="websockets")
        with Line(access) as line:
            for tries in range(1, 3):
                client, _ = server.accept()
                with client:
                    client.recv(4096)
                    client.sendall(nonsense)
                    wait_for(lambda tries=tries: len(line.waits_s) == tries, "another failed try", PATIENCE_S)
            assert line.trouble("speaks no WebSocket")
