"""The connection: how long it stays away, whose messages it acknowledges, and what it knows of the broker."""

import queue
import socket
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import replace
from types import SimpleNamespace

import pytest
from fakes import PATIENCE_S, Time
from hypothesis import given
from hypothesis import strategies as st
from paho.mqtt.exception import MalformedPacket
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.reasoncodes import ReasonCode
from running import wait_for

from edge_agent.mqtt import flow
from edge_agent.mqtt.access import Access
from edge_agent.mqtt.flow import HELD_BYTES_MAX, HELD_MAX, UNSENT_MAX, ReceivedBytes
from edge_agent.mqtt.link import Link
from edge_agent.mqtt.private_broker import PrivateBroker
from edge_agent.mqtt.redial import STEADY_S, TAKEN_OVER_MIN_S
from edge_agent.mqtt.silence import SILENT_S
from edge_agent.mqtt.sockets import payload_begin
from edge_agent.mqtt.subscriptions import Subscription
from edge_agent.protocol.messages import Inbound, Publication


class Peer:
    """A link that keeps what it is told."""

    def __init__(
        self,
        broker,
        name="edge-01",
        *,
        filters=("jobs/#",),
        chance=lambda: 0.0,
        now_s=time.monotonic,
        ack=False,
        will=None,
    ):
        self.received, self.answered = queue.Queue(), queue.Queue()
        self.ups, self.downs, self.refused = [], [], queue.Queue()
        self.ack = ack
        self.link = Link(
            Access(host=broker.host, port=broker.port, client_id=name, session="kept", session_expiry_s=3600),
            subscriptions=tuple(map(Subscription, filters)),
            will=lambda epoch: will and replace(will, payload=str(epoch).encode()),
            chance=chance,
            now_s=now_s,
        )
        self.link.on_received.connect(self._receive)
        self.link.on_up.connect(self.ups.append)
        self.link.on_down.connect(self.downs.append)
        self.link.on_answered.connect(lambda mid, reason: self.answered.put((mid, reason)))
        self.link.on_subscribed.connect(self.refused.put)

    def _receive(self, inbound, receipt):
        if self.ack:
            self.link.ack(receipt)
        self.received.put((inbound, receipt))

    def __enter__(self):
        self.link.start()
        assert self.link.wait_connected(PATIENCE_S)
        self.refused.get(timeout=PATIENCE_S)  # subscribed
        return self

    def __exit__(self, *raised):
        self.link.stop()

    def publish(self, payload=b"x", **fields):
        return self.link.publish(Publication("jobs/1", payload, qos=1, **fields))

    def get(self):
        return self.received.get(timeout=PATIENCE_S)


@pytest.mark.broker
def test_a_message_arrives_with_all_that_came_with_it(broker):
    """Properties both ways; what is unset is absent."""
    with Peer(broker, ack=True) as one:
        mid = one.publish(
            b"body",
            retain=True,
            expiry_s=60,
            correlation=b"\x01",
            traceparent="00-ab",
            response_topic="edge/v1/clients/a/inbox",
            user={"part": "1", "parts": "2"},
        )
        assert one.answered.get(timeout=PATIENCE_S) == (mid, 0)
        inbound, receipt = one.get()
        assert inbound == Inbound(
            "jobs/1",
            b"body",
            qos=1,
            retained=True,
            expiry_s=60,
            response_topic="edge/v1/clients/a/inbox",
            correlation=b"\x01",
            traceparent="00-ab",
            user={"part": "1", "parts": "2"},
        )
        assert receipt.epoch == one.link.connections == 1
        one.publish(b"bare")
        assert one.get()[0] == Inbound("jobs/1", b"bare")


@pytest.mark.broker
def test_a_message_nobody_listens_to_is_answered_so(broker):
    with Peer(broker, filters=("other",)) as one:
        mid = one.publish()
        assert one.answered.get(timeout=PATIENCE_S) == (mid, 0x10)


@pytest.mark.broker
def test_the_brokers_packet_bound_is_known(tmp_path):
    with PrivateBroker(folder=tmp_path, max_packet_size=4096) as broker, Peer(broker) as one:
        assert one.link.packet_bytes_max == 4096


@pytest.mark.broker
def test_it_comes_back_after_the_broker_did_and_sends_what_was_not_answered(broker):
    """QoS 1 messages given while the broker was away are answered on the next connection; QoS 0 ones are dropped."""
    with Peer(broker, ack=True) as one:
        broker.stop()
        wait_for(lambda: not one.link.connected, "the link to notice", PATIENCE_S)
        mid = one.publish(b"kept")
        assert one.link.publish(Publication("jobs/1", b"dropped", qos=0)) is None
        broker.start()
        assert one.answered.get(timeout=PATIENCE_S) == (mid, 0)
        assert one.get()[0].payload == b"kept"
        assert one.ups == [1, one.link.connections]
        assert one.link.connections >= 2
        assert len(one.downs) >= 1


def test_no_message_gets_the_id_of_one_that_is_not_answered():
    """Ids come round; one of QoS 0 that left under that of a result would pass for the broker's answer to it."""
    link = Link(Access("127.0.0.1", 1, client_id="a"), subscriptions=())
    unanswered = link.publish(Publication("results/1", b"kept", qos=1))
    assert unanswered not in {link._client._mid_generate() for _ in range(65_535)}
    link.stop()


@pytest.mark.broker
def test_an_acknowledgement_from_before_a_reconnect_confirms_nothing(broker):
    """Message ids begin anew on a connection: a stale one would confirm another message, which would be lost."""
    with Peer(broker) as agent, Peer(broker, "sender", filters=("other",)) as sender:
        sender.publish(b"first")
        _, stale = agent.get()
        broker.stop()
        wait_for(lambda: not agent.link.connected, "the link to notice", PATIENCE_S)
        agent.link.ack(stale)
        broker.start()
        inbound, again = agent.get()
        assert inbound.payload == b"first"
        assert again.epoch > stale.epoch
        agent.link.ack(stale)
        broker.stop()
        wait_for(lambda: not agent.link.connected, "the link to notice", PATIENCE_S)
        broker.start()
        inbound, last = agent.get()
        assert inbound.payload == b"first"
        agent.link.ack(last)


@pytest.mark.broker
def test_what_is_acknowledged_does_not_come_again_and_the_rest_does(broker):
    with Peer(broker) as agent:
        agent.publish(b"taken")
        agent.publish(b"left")
        _, receipt = agent.get()
        agent.get()
        agent.link.ack(receipt)
    with Peer(broker, ack=True) as again:
        assert again.get()[0].payload == b"left"
        again.publish(b"next")
        assert again.get()[0].payload == b"next"


class Reticent:
    """A broker that takes everything and confirms a message only when told to; MQTT 5 packets in bytes.

    `most` is how many messages were on their way to it at once, `connections` how many clients it welcomed.
    """

    def __init__(self, *, receive_max=None):
        bound = b"" if receive_max is None else b"\x21" + receive_max.to_bytes(2, "big")
        self._connack = bytes([0x20, 3 + len(bound), 0, 0, len(bound)]) + bound
        self._server = socket.create_server(("127.0.0.1", 0))
        self.host, self.port = self._server.getsockname()
        self._thread = threading.Thread(target=self._serve)
        self._client = None
        self._taken = queue.Queue()
        self._unconfirmed = set()
        self.most = self.connections = 0

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *raised):
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self._thread.join(PATIENCE_S)

    def take(self):
        """Return the number of the connection a message came on, its id, and whether it was sent before."""
        return self._taken.get(timeout=PATIENCE_S)

    def confirm(self, mid):
        self._unconfirmed.discard(mid)
        self.send(bytes([0x40, 2]) + mid.to_bytes(2, "big"))

    def send(self, packet):
        self._client.sendall(packet)

    def hang_up(self):
        self._client.shutdown(socket.SHUT_RDWR)

    def _serve(self):
        while True:
            try:
                self._client, _ = self._server.accept()
            except OSError:
                return
            self._unconfirmed.clear()
            with suppress(OSError), self._client, self._client.makefile("rb") as stream:
                self._answer(stream)

    def _answer(self, stream):
        while head := stream.read(1):
            size, shift, byte = 0, 0, 0x80
            while byte & 0x80:
                (byte,) = stream.read(1)
                size, shift = size | (byte & 0x7F) << shift, shift + 7
            body = stream.read(size)
            match head[0] & 0xF0:
                case 0x10:
                    self.connections += 1
                    self.send(self._connack)
                case 0x80:
                    self.send(bytes([0x90, 4]) + body[:2] + b"\0\1")
                case 0xC0:
                    self.send(b"\xd0\0")
                case 0x30 if head[0] & 0x06:
                    topic_bytes = int.from_bytes(body[:2], "big")
                    mid = int.from_bytes(body[2 + topic_bytes :][:2], "big")
                    self._unconfirmed.add(mid)
                    self.most = max(self.most, len(self._unconfirmed))
                    self._taken.put((self.connections, mid, bool(head[0] & 0x08)))


def test_a_broker_that_answers_nothing_is_hung_up_on_and_gets_it_again():
    """All else would wait behind what it does not answer. An answer, or a connection, begins the count anew."""
    clock = Time()
    with Reticent() as broker, Peer(broker, now_s=clock.now_s) as one:

        def look(seconds):
            clock.pass_s(seconds)
            one.link.attend()

        first, second = one.publish(), one.publish()
        assert [broker.take(), broker.take()] == [(1, first, False), (1, second, False)]
        look(SILENT_S - 1)
        broker.confirm(first)
        assert one.answered.get(timeout=PATIENCE_S) == (first, 0)
        look(SILENT_S - 1)
        assert one.link.publish(Publication("jobs/0", b"", qos=0))  # what nobody answers is no answer as it leaves
        third = one.publish()
        assert broker.take() == (1, third, False)
        clock.pass_s(1)
        wait_for(lambda: one.link.attend() or one.downs, "the link to hang up", PATIENCE_S)
        assert "confirmed none" in one.link.trouble.reason
        assert [broker.take(), broker.take()] == [(2, second, True), (2, third, True)]
        look(SILENT_S - 1)
        for mid in second, third:
            broker.confirm(mid)
            assert one.answered.get(timeout=PATIENCE_S) == (mid, 0)
        wait_for(lambda: not one.link._client.unanswered, "all to be answered", PATIENCE_S)
        look(2 * SILENT_S)
        last = one.publish()
        assert broker.take() == (2, last, False)


def test_a_broker_that_answers_nothing_is_a_failed_try_however_long_it_was_there():
    """So it is tried less and less often, and another address has its turn."""
    clock, waits_s = Time(), []
    with Reticent() as broker, Peer(broker, now_s=clock.now_s) as one:
        mid = one.publish()
        for number in range(1, 3):
            assert broker.take() == (number, mid, number > 1)
            clock.pass_s(SILENT_S)
            wait_for(
                lambda number=number: one.link.attend() or len(one.downs) == number, "the link to hang up", PATIENCE_S
            )
            waits_s.append(one.link._client._reconnect_min_delay)
            one.link._client._reconnect_delay = 0.0
        broker.take()
        broker.confirm(mid)
    assert SILENT_S > STEADY_S
    assert waits_s == [0.5, 1.0]


def test_while_a_message_arrives_the_broker_is_not_hung_up_on():
    """On a slow link a photo takes minutes, and what the broker answers comes behind it."""
    clock = Time()
    photo = b"\x30\x09" + b"\0\3job" + b"\0" + b"xyz"
    with Reticent() as broker, Peer(broker, now_s=clock.now_s) as one:
        one.publish()
        broker.take()
        broker.send(photo[:-1])
        wait_for(lambda: one.link._client.taking_in, "half of it", PATIENCE_S)
        clock.pass_s(SILENT_S)
        one.link.attend()
        broker.send(photo[-1:])
        one.get()
        wait_for(lambda: one.link.attend() or one.downs, "the link to hang up", PATIENCE_S)


def test_no_more_messages_are_on_their_way_than_the_broker_takes():
    """One too many, also of those that are sent again, and it ends the connection, the next one too, for ever."""
    with Reticent(receive_max=2) as broker, Peer(broker) as one:
        mids = [one.publish() for _ in range(6)]
        assert [broker.take()[1], broker.take()[1]] == mids[:2]
        broker.confirm(mids[0])
        assert broker.take() == (1, mids[2], False)
        broker.hang_up()
        for mid in mids[1:]:
            assert broker.take()[:2] == (2, mid)
            broker.confirm(mid)
            assert one.answered.get(timeout=PATIENCE_S)[1] == 0
        assert broker.most == 2


@contextmanager
def scripted_broker(*after_subscribe):
    """A broker that welcomes one client, then says what it is told to; MQTT 5 packets in bytes."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            client, _ = server.accept()
            with client:
                client.settimeout(PATIENCE_S)
                client.recv(1024)
                client.sendall(bytes.fromhex("2003000000"))  # CONNACK, success
                client.recv(1024)
                client.sendall(bytes.fromhex("9004000100") + b"\x01")  # SUBACK of message 1, QoS 1
                client.sendall(b"".join(after_subscribe))
                client.recv(1024)

        thread = threading.Thread(target=serve)
        thread.start()
        yield SimpleNamespace(host="127.0.0.1", port=server.getsockname()[1])
        thread.join(PATIENCE_S)


def test_thrown_out_by_another_of_its_name_it_says_so_and_stays_away():
    """Or both would throw each other out for ever."""
    taken_over = bytes.fromhex("e0028e00")
    with scripted_broker(taken_over) as broker, Peer(broker) as first:
        wait_for(lambda: first.downs, "the link to be thrown out", PATIENCE_S)
        assert first.downs == ["duplicate_agent"]
        assert first.link._client._reconnect_min_delay == TAKEN_OVER_MIN_S


@pytest.mark.broker
@pytest.mark.parametrize(("lived_s", "retry_s"), [(STEADY_S - 1, [0.5, 1.0]), (STEADY_S, [0.5, 0.5])])
def test_connections_that_do_not_last_are_tried_for_less_and_less_often(broker, lived_s, retry_s):
    """Two agents of one name, where the broker does not say so; one that lasted begins anew."""
    clock = Time()
    waits_s = []
    with Peer(broker, now_s=clock.now_s) as one:
        for tries in range(1, 3):
            clock.pass_s(lived_s)
            one.link._client.socket().shutdown(socket.SHUT_RDWR)
            wait_for(lambda tries=tries: len(one.downs) == tries, "the link to notice", PATIENCE_S)
            waits_s.append(one.link._client._reconnect_min_delay)
            one.link._client._reconnect_delay = 0.0
            wait_for(lambda: one.link.connected, "the link to come back", PATIENCE_S)
    assert waits_s == retry_s


@pytest.mark.broker
def test_the_will_of_the_last_connection_is_what_the_broker_has(broker):
    """Each connection has its own will, so that a late one can be told from this one's."""
    will = Publication("wills/edge-01", b"", qos=1, retain=True)
    with Peer(broker, "watcher", filters=("wills/#",), ack=True) as watcher:
        with Peer(broker, will=will) as agent:
            agent.link._client.socket().shutdown(socket.SHUT_RDWR)  # vanishes without a word
            wait_for(lambda: len(agent.ups) > 1, "the link to come back", PATIENCE_S)
        assert watcher.received.empty()  # it came back before its will was due, and left in order


@pytest.mark.broker
def test_a_refused_subscription_is_told(tmp_path):
    acl = tmp_path / "acl"
    acl.write_text("topic read allowed/#\n")
    with PrivateBroker(folder=tmp_path / "broker", acl_file=acl) as broker:
        peer = Peer(broker, filters=("allowed/1", "forbidden/1"))
        peer.link.start()
        assert tuple(peer.refused.get(timeout=PATIENCE_S)) in (
            (),
            ("forbidden/1",),
        )  # mosquitto grants and delivers nothing
        peer.link.stop()


def test_many_subscriptions_are_asked_for_eight_at_a_time_and_refusals_add_up(monkeypatch):
    """Hosted brokers take no more in one message; each message is answered by itself."""
    told, asked = [], []
    link = Link(
        Access("127.0.0.1", 1, client_id="edge-01"),
        subscriptions=tuple(Subscription(f"topic/{number}") for number in range(20)),
    )
    link.on_subscribed.connect(told.append)
    monkeypatch.setattr(link._client, "subscribe", lambda topics: asked.append(topics) or (0, len(asked)))
    link._on_connect(link._client, None, SimpleNamespace(session_present=False), ReasonCode(PacketTypes.CONNACK), None)
    assert [len(topics) for topics in asked] == [8, 8, 4]
    granted, refused = (ReasonCode(PacketTypes.SUBACK, identifier=code) for code in (0x01, 0x87))
    for mid, reasons in ((2, [refused] + [granted] * 7), (1, [granted] * 8), (3, [granted] * 3 + [refused])):
        link._on_subscribe(link._client, None, mid, reasons, None)
    assert [tuple(each) for each in told] == [("topic/8",), ("topic/8",), ("topic/8", "topic/19")]


@pytest.mark.broker
def test_messages_of_qos_0_do_not_pile_up_on_a_slow_connection(broker, monkeypatch):
    """Beyond the bound they are dropped until the connection has taken some."""
    with Peer(broker) as one:
        with one.link._client._in_callback_mutex, one.link._client._callback_mutex:  # paho's thread sends nothing now
            sent = [one.link.publish(Publication("jobs/0", b"x", qos=0)) for _ in range(UNSENT_MAX + 5)]
        assert sent.count(None) <= 5 + UNSENT_MAX
        wait_for(lambda: one.link.publish(Publication("jobs/0", b"y", qos=0)), "room again", PATIENCE_S)


@pytest.mark.broker
def test_large_messages_that_wait_to_be_dealt_with_are_bounded(broker):
    """No more is read from the broker meanwhile; it all comes in the end."""
    size_bytes, count = HELD_BYTES_MAX // 4, 12
    with Peer(broker, "sender", filters=("other",)) as sender, Peer(broker) as slow:
        for _ in range(count):
            sender.publish(bytes(size_bytes))
        receipts = [slow.get()[1] for _ in range(4)]
        sender.answered.get(timeout=PATIENCE_S)
        with pytest.raises(queue.Empty):
            slow.received.get(timeout=0.5)  # shorter than HELD_S
        slow.ack = True
        for receipt in receipts:
            slow.link.ack(receipt)
        for _ in range(count - 4):
            slow.get()


def test_small_messages_that_wait_to_be_dealt_with_are_bounded_too(monkeypatch):
    """Whatever the broker makes of our Receive Maximum: the next is read when one of them is done."""
    monkeypatch.setattr(flow, "HELD_S", 10 * PATIENCE_S)  # it is not its end that lets the reader go on
    held, done = ReceivedBytes(), threading.Event()
    for _ in range(HELD_MAX):
        held.add(1)
    reader = threading.Thread(target=lambda: (held.add(1), done.set()))
    reader.start()
    wait_for(lambda: held.count == HELD_MAX + 1, "the reader to be at it", PATIENCE_S)
    assert not done.wait(0.3)
    held.let_go(1)
    assert done.wait(PATIENCE_S)
    reader.join()
    assert held.count == HELD_MAX


@given(
    st.binary(max_size=300), st.sampled_from([0, 1, 2]), st.integers(0, 300), st.binary(max_size=40), st.integers(1, 20)
)
def test_a_payload_begins_behind_topic_id_and_properties(topic, qos, properties, payload, cut):
    """Whatever their lengths; a packet that ends before is malformed."""
    length = bytes([properties]) if properties < 128 else bytes([properties % 128 | 128, properties // 128])
    head = len(topic).to_bytes(2, "big") + topic + b"\0\7" * bool(qos) + length + bytes(properties)
    assert payload_begin(bytearray(head + payload), qos=qos) == len(head)
    with pytest.raises(MalformedPacket):
        payload_begin(bytearray(head[:-cut]), qos=qos)
