"""What a broker says of itself is heeded, or said: in its welcome, of each subscription, and as it hangs up."""

import queue
import struct

import pytest
from fakes import PATIENCE_S, Time
from paho.mqtt.packettypes import PacketTypes
from running import wait_for
from scripted import Scripted, text
from structlog.testing import capture_logs

from edge_agent.mqtt.access import Access
from edge_agent.mqtt.link import Link
from edge_agent.mqtt.packets import properties
from edge_agent.mqtt.silence import KEEPALIVES, SILENT_S
from edge_agent.mqtt.subscriptions import Subscription
from edge_agent.mqtt.welcome import RETAINED, SHARED, WILDCARDS, limits, obstacle, read
from edge_agent.protocol.messages import Publication

WILL = Publication("evt/presence", b"gone", qos=1, retain=True)
FILTERS = ("cmd/+/+", "$share/hall/pools/hall/job/+", "evt/presence", "plant/#")
NO_QOS_1, NO_RETAIN, NO_WILDCARDS, NO_SHARED = b"\x24\0", b"\x25\0", b"\x28\0", b"\x2a\0"


class Peer:
    def __init__(self, broker, *, filters=FILTERS, now_s=None):
        self.refused = queue.Queue()
        clock = {} if now_s is None else {"now_s": now_s}
        self.link = Link(
            Access(broker.host, broker.port, client_id="edge-01", session_expiry_s=3600),
            subscriptions=tuple(map(Subscription, filters)),
            will=lambda _epoch: WILL,
            chance=lambda: 0.0,
            **clock,
        )
        self.link.on_received.connect(lambda _inbound, receipt: receipt.acknowledge())
        self.link.on_subscribed.connect(self.refused.put)

    def __enter__(self):
        self.link.start()
        return self

    def __exit__(self, *_raised):
        self.link.stop()

    def settled(self, *filters):
        """Wait until exactly these are refused; return why."""
        while True:
            found = self.refused.get(timeout=PATIENCE_S)
            if set(found) == set(filters):
                return found


@pytest.mark.parametrize(
    ("said", "refused"),
    [
        (b"", ()),
        (NO_SHARED, FILTERS[1:2]),
        (NO_WILDCARDS, (FILTERS[0], FILTERS[1], FILTERS[3])),
        (NO_SHARED + NO_WILDCARDS, (FILTERS[0], FILTERS[1], FILTERS[3])),
    ],
)
def test_what_the_welcome_rules_out_is_not_asked_for_and_counts_as_refused(said, refused):
    with Scripted(said) as broker, Peer(broker) as one:
        why = one.settled(*refused)
        assert all("the broker has no" in each for each in why.values())
        wait_for(lambda: len(broker.visits[0].filters) == len(FILTERS) - len(refused), "the others")
        assert {topic for topic, _ in broker.visits[0].filters} == set(FILTERS) - set(refused)


@pytest.mark.parametrize(("reason", "refused"), [(0x9E, FILTERS[1:2]), (0xA2, (FILTERS[0], FILTERS[1], FILTERS[3]))])
def test_who_hangs_up_over_a_subscription_is_asked_for_no_such_one_again(reason, refused):
    """Though its welcome did not say so; it would hang up on every later connection."""

    def grant(visit, topic_filter):
        if topic_filter in refused:
            visit.disconnect(reason)
            return None
        return 1

    with Scripted(grant=grant) as broker, Peer(broker) as one:
        one.settled(*refused)
        wait_for(lambda: one.link.connected, "the link to stay")
        assert len(broker.visits) == 2
        assert one.link.trouble is None


@pytest.mark.parametrize("code", [0x80, 0x83, 0x87, 0x8F, 0x91, 0x97, 0x9E, 0xA1, 0xA2])
def test_every_refusal_of_a_subscription_is_told_with_its_reason(code):
    def grant(_visit, topic_filter):
        return code if topic_filter == "evt/presence" else 1

    with Scripted(grant=grant) as broker, Peer(broker) as one:
        assert one.settled("evt/presence")["evt/presence"]
        assert one.link.connected


def test_a_lower_qos_than_asked_for_is_said():
    with capture_logs() as said, Scripted(grant=lambda *_: 0) as broker, Peer(broker) as one:
        one.settled()
    assert [each["filters"] for each in said if each["event"] == "link.subscription_weak"] == [[*FILTERS]]


def test_who_answers_no_subscription_is_hung_up_on():
    clock = Time()
    with Scripted(grant=lambda *_: None) as broker, Peer(broker, now_s=clock.now_s) as one:
        wait_for(lambda: broker.visits and broker.visits[0].filters and one.link.connected, "the subscriptions")
        clock.pass_s(SILENT_S)
        wait_for(lambda: one.link.attend() or len(broker.visits) > 1, "the link to come anew")


def retained(broker):
    return [each for each in broker.said if each.retain], [visit.will[2] for visit in broker.visits]


def publish(one, broker):
    """Say something that shall be retained, and wait until it is answered."""
    one.link.publish(Publication("evt/presence", b"here", qos=1, retain=True))
    wait_for(lambda: broker.said and one.link.connected and not one.link._client.unanswered, "the answer")


def test_where_nothing_is_retained_nothing_shall_be(monkeypatch):
    """Said in the welcome: the next will too."""
    with Scripted(NO_RETAIN) as broker, Peer(broker) as one:
        assert one.link.wait_connected(PATIENCE_S)
        publish(one, broker)
        assert retained(broker) == ([], [True])
        broker.visits[0].hang_up()
        wait_for(lambda: len(broker.visits) == 2, "the next connection")
        assert retained(broker) == ([], [True, False])


def test_a_will_that_shall_be_retained_keeps_nobody_out():
    """Where the broker refuses the connection over it."""
    with Scripted(welcome=lambda visit: 0x9A if visit.will[2] else 0) as broker, Peer(broker) as one:
        assert one.link.wait_connected(PATIENCE_S)
        publish(one, broker)
        assert retained(broker) == ([], [True, False])


def test_who_hangs_up_over_a_retained_message_gets_it_as_another():
    with Scripted() as broker, Peer(broker) as one:
        assert one.link.wait_connected(PATIENCE_S)
        broker.confirms = False
        one.link.publish(Publication("evt/presence", b"here", qos=1, retain=True))
        assert broker.heard.get(timeout=PATIENCE_S).retain
        broker.confirms = True
        broker.visits[0].disconnect(0x9A)
        again = broker.heard.get(timeout=PATIENCE_S)
        assert (again.payload, again.retain, again.connection) == (b"here", False, 2)


def test_a_broker_of_qos_0_gets_nothing_and_is_named_as_what_it_is():
    """It ends the connection over a message of QoS 1, and with QoS 0 results get lost."""
    with Scripted(NO_QOS_1) as broker, Peer(broker) as one:
        wait_for(lambda: len(broker.visits) > 1, "another try")
        assert "QoS 0 only" in one.link.trouble.reason
        assert not one.link.connected
        assert broker.said == []


def test_the_keepalive_that_the_server_wants_counts():
    clock, keepalive_s = Time(), 600
    with Scripted(b"\x13" + struct.pack(">H", keepalive_s)) as broker, Peer(broker, now_s=clock.now_s) as one:
        one.settled()
        broker.confirms = False
        one.link.publish(Publication("evt/presence", b"here", qos=1))
        broker.heard.get(timeout=PATIENCE_S)
        clock.pass_s(KEEPALIVES * keepalive_s - 1)
        one.link.attend()
        assert one.link.connected
        clock.pass_s(1)
        wait_for(lambda: one.link.attend() or len(broker.visits) > 1, "the link to come anew")


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ({}, 0),
        ({"SessionExpiryInterval": 3600}, 0),
        ({"SessionExpiryInterval": 60}, 1),
        ({"AssignedClientIdentifier": "auto-1"}, 1),
        ({"ReceiveMaximum": 1, "TopicAliasMaximum": 0, "SubscriptionIdentifierAvailable": 0}, 0),
        ({"RetainAvailable": 0, "WildcardSubscriptionAvailable": 0, "SharedSubscriptionAvailable": 0}, 3),
    ],
)
def test_what_we_go_on_without_is_put_in_words(found, said):
    access = Access("127.0.0.1", 1, client_id="edge-01", session_expiry_s=3600)
    welcome = read(properties(PacketTypes.CONNACK, **found), resumed=False)
    assert len([*limits(welcome, welcome.lacks, access)]) == said


def test_a_client_id_that_is_ours_needs_no_word():
    access = Access("127.0.0.1", 1, client_id="edge-01")
    same = read(properties(PacketTypes.CONNACK, AssignedClientIdentifier=access.identity), resumed=False)
    assert [*limits(same, same.lacks, access)] == []


@pytest.mark.parametrize("topic_filter", FILTERS)
def test_a_broker_that_has_everything_takes_every_filter(topic_filter):
    assert obstacle(topic_filter, frozenset({RETAINED})) == ""
    assert (SHARED in obstacle(topic_filter, frozenset({SHARED}))) == topic_filter.startswith("$share")
    assert (WILDCARDS in obstacle(topic_filter, frozenset({WILDCARDS}))) == (
        "/+" in topic_filter or "/#" in topic_filter
    )


def test_a_name_that_the_broker_gives_us_does_not_end_the_connection():
    with Scripted(b"\x12" + text("auto-1")) as broker, Peer(broker) as one:
        one.settled()
        assert one.link.connected
