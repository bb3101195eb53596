"""The connection to the broker, and all of paho.

Owns the facts paho hides: which connection a message came on (acknowledging on another one would confirm somebody
else's), what the broker takes at most, and how long to stay away before the next try.
"""

import logging
import random
import socket
import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from edge_agent.base.awake import awake_s
from edge_agent.base.heartbeat import Heartbeat
from edge_agent.base.log import get_logger
from edge_agent.base.signal import Signal
from edge_agent.mqtt import packets, trouble
from edge_agent.mqtt.access import Access
from edge_agent.mqtt.flow import ReceivedBytes, Unsent
from edge_agent.mqtt.redial import Redial
from edge_agent.mqtt.renewal import Renewal
from edge_agent.mqtt.silence import Silence
from edge_agent.mqtt.sockets import Paho, hang_up, plain
from edge_agent.mqtt.subscriptions import Grant, Subscription, Subscriptions
from edge_agent.mqtt.trouble import Trouble
from edge_agent.mqtt.welcome import LACKS, RETAINED, Welcome, limits, read
from edge_agent.protocol.messages import Inbound, Publication

WILL_DELAY_S = 10
SESSION_TAKEN_OVER = 0x8E
KEEPALIVE_TIMEOUT = 0x8D
"""What paho says when it gives a broker up that says nothing."""
PACKET_TOO_LARGE = 0x95
"""What a broker would say of a message over its maximum, and disconnect us; so we say it instead."""
QUOTA_EXCEEDED = 0x97
"""What a broker says that limits how much a client may send, and takes the same again later."""

log = get_logger()


@dataclass(frozen=True, slots=True)
class Receipt:
    """What acknowledges a message, on the connection of `link` it came on; `size_bytes` is its payload's."""

    epoch: int
    mid: int
    qos: int
    size_bytes: int = 0
    link: "Link | None" = field(default=None, compare=False, repr=False)

    def acknowledge(self) -> None:
        """Acknowledge it; see `Link.ack`."""
        assert self.link is not None  # noqa: S101 - whoever has a receipt of none asks for no acknowledgement
        self.link.ack(self)


class Link:
    """One MQTT 5 connection that comes back by itself, with its subscriptions; `thread` is its thread's name to us.

    `on_up` tells the number of the connection; `on_down` the reason; `on_answered` the id of a QoS 1 message and the
    broker's reason code; `on_subscribed` the filters the broker refused us, and why. They are told on the link's own
    thread: no handler may block or raise. `will` gives the last will of a connection.

    How it fares is logged; of one that is not `aloud` only for whoever debugs.
    """

    def __init__(
        self,
        access: Access,
        *,
        subscriptions: tuple[Subscription, ...],
        will: Callable[[int], Publication | None] = lambda _connection: None,
        thread: str = "mqtt",
        aloud: bool = True,
        chance: Callable[[], float] = random.random,
        now_s: Callable[[], float] = awake_s,
    ) -> None:
        self.beat = Heartbeat(thread)
        self._level = None if aloud else logging.DEBUG
        self._access = access
        self.on_received: Signal[Inbound, Receipt] = Signal()
        self.on_up: Signal[int] = Signal()
        self.on_down: Signal[str] = Signal()
        self.on_answered: Signal[int, int] = Signal()
        self.on_subscribed: Signal[Mapping[str, str]] = Signal()
        self._will = will
        self._chance = chance
        self._now_s = now_s
        self._up_s = 0.0
        self._epoch = 0
        self._redial = Redial(len(access.addresses))
        self._socket: Any = None
        self._told = 0
        self._stopping = False
        self._leaving: Literal["renewed", "unanswered"] | None = None
        self._renewal = Renewal(access, now_s=now_s)
        self._silence = Silence(keepalive_s=access.keepalive_s, now_s=now_s)
        self.trouble: Trouble | None = None
        self.welcome: Welcome | None = None
        # By address: another broker may answer at each.
        self._lacks: defaultdict[int, frozenset[str]] = defaultdict(frozenset)
        self._unsent = Unsent()
        self._held = ReceivedBytes()
        self._connected = threading.Event()
        # No acknowledgement is queued between the loss of a connection and the next one.
        self._acks = threading.Lock()
        self.packet_bytes_max: int | None = None
        self._client = self._make_client()
        self._subscriptions = Subscriptions(subscriptions, ask=partial(_subscribe, self._client))

    def _make_client(self) -> Paho:
        client = Paho(self._access, beat=self.beat)
        client.on_pre_connect = self._on_pre_connect
        client.on_socket_open = self._on_socket_open
        client.on_connect = self._on_connect
        client.on_connect_fail = self._on_connect_fail
        client.on_disconnect = self._on_disconnect
        client.on_subscribe = self._on_subscribe
        client.on_message = self._on_message
        client.on_publish = self._on_publish
        return client

    # What the agent does

    @property
    def connected(self) -> bool:
        """Whether the broker has welcomed us and not gone since."""
        return self._connected.is_set()

    @property
    def connections(self) -> int:
        """How many connections there were, the present one included."""
        return self._epoch

    @property
    def lacks(self) -> frozenset[str]:
        """What the broker has not that MQTT 5 lets it do without; see welcome.py."""
        return self._lacks[self._redial.address]

    @property
    def idle(self) -> bool:
        """Whether everything that came was dealt with."""
        return self._held.count == 0

    @property
    def excuse(self) -> Trouble | None:
        """Why there is no connection, as far as is known: also while somebody is there and has not answered yet."""
        if self.trouble is None and self._socket is not None and not self.connected:
            return trouble.unwelcomed(self._access)
        return self.trouble

    def wait_connected(self, timeout_s: float) -> bool:
        """Wait for a connection; return whether there is one."""
        return self._connected.wait(timeout_s)

    def start(self) -> None:
        """Begin to connect, and to reconnect whenever the connection is lost."""
        self._aim()
        self._client.loop_start()

    def _aim(self) -> None:
        """Choose the address of the next try. Paho takes another one only as a connection begun anew."""
        host, port = self._access.addresses[self._redial.address]
        self._client.connect_async(
            host,
            port,
            keepalive=self._access.keepalive_s,
            clean_start=self._access.clean_start,
            properties=packets.of_connect(self._access),
        )

    def stop(self, *, forget: bool = False) -> None:
        """Disconnect in order (the broker publishes no will) and end the thread; `forget` ends the session too."""
        self._stopping = True
        expiry_s = 0 if forget else None
        self._client.disconnect(properties=packets.properties(PacketTypes.DISCONNECT, SessionExpiryInterval=expiry_s))
        self._client.loop_stop()
        self.beat.over()
        self._connected.clear()
        # paho closes its internal socket pair only when it is collected: leave it in no reference cycle with us.
        for name in (
            "pre_connect",
            "socket_open",
            "connect",
            "connect_fail",
            "disconnect",
            "subscribe",
            "message",
            "publish",
        ):
            setattr(self._client, f"on_{name}", None)

    def publish(self, publication: Publication) -> int | None:
        """Send a message; return its id, or None when it was dropped.

        Dropped is what the broker would not take for its size, and QoS 0 on a connection that is down or slow. A QoS 1
        message is sent again after a reconnect until `answered` tells its id, with PACKET_TOO_LARGE when the broker
        takes less by then.
        """
        if publication.qos == 0 and not (self.connected and self._unsent.room()):
            return None
        properties = packets.of_publication(publication)
        bytes_max = self.packet_bytes_max
        if packets.too_large(publication.topic, publication.payload, properties, bytes_max=bytes_max):
            return None
        info = self._client.publish(
            publication.topic,
            publication.payload,
            qos=publication.qos,
            retain=publication.retain and RETAINED not in self.lacks,
            properties=properties,
        )
        if publication.qos == 0:
            self._unsent.add(info)
        return info.mid

    def subscribe(self, topic: str) -> None:
        """Hear this topic too, what the broker retains there first; from now on, and on every later connection."""
        self._subscriptions.add(Subscription(topic, retained="always"))

    def ack(self, receipt: Receipt) -> None:
        """Acknowledge a message, unless the connection it came on is gone: the broker sends it again on the next.

        Call it for every message, once, whatever its QoS: it is not held in memory from then on.
        """
        self._held.let_go(receipt.size_bytes)
        with self._acks:
            if receipt.qos and self.connected and receipt.epoch == self._epoch:
                self._client.ack(receipt.mid, receipt.qos)

    def attend(self) -> None:
        """Reconnect when a file was renewed, or when the broker answers nothing. Call it often, from one thread.

        The broker keeps the session and publishes no will over it; what it has not answered is sent again.
        """
        owed = self.connected and bool(self._client.unanswered or self._subscriptions.unanswered)
        if self._renewal.due(connected=self.connected):
            self._leave("renewed")
        elif self._silence.too_long(owed=owed) and not self._client.taking_in:
            self._leave("unanswered")

    def _leave(self, why: Literal["renewed", "unanswered"]) -> None:
        self._leaving = why
        hang_up(self._socket)

    # What paho tells, on its thread

    def _on_pre_connect(self, client: Client, _userdata: Any) -> None:
        self._epoch += 1
        self._leaving = None
        self._unsent.forget()
        self._renewal.begin()
        if self._access.username is not None:
            client.username_pw_set(self._access.username, self._access.secret())
        will = self._will(self._epoch)
        if will is not None:
            properties = packets.properties(PacketTypes.WILLMESSAGE, WillDelayInterval=WILL_DELAY_S)
            retain = will.retain and RETAINED not in self.lacks
            client.will_set(will.topic, will.payload, qos=will.qos, retain=retain, properties=properties)

    def _on_socket_open(self, _client: Client, _userdata: Any, sock: Any) -> None:
        self._socket = sock
        plain(sock).setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def _on_connect(
        self, _client: Client, _userdata: Any, flags: Any, reason: ReasonCode, properties: Properties | None
    ) -> None:
        if reason.is_failure:
            self._learn(reason.value)
            self._tell("link.refused", trouble.of_refusal(str(reason)))
            return
        welcome = read(properties, resumed=flags.session_present)
        if welcome.qos_max < 1:
            self._tell("link.refused", trouble.NO_QOS_1)
            hang_up(self._socket)
            return
        self.trouble = None
        self._up_s = self._now_s()
        self._silence.begin(keepalive_s=welcome.keepalive_s or self._access.keepalive_s)
        self.packet_bytes_max = getattr(properties, "MaximumPacketSize", None)
        self.welcome = welcome
        self._lacks[self._redial.address] |= welcome.lacks
        self._resume(getattr(properties, "ReceiveMaximum", None))
        self._subscriptions.begin(self.lacks)
        self._connected.set()
        log.log(self._level or logging.INFO, "link.up", **self._where(), connection=self._epoch)
        if limited := [*limits(welcome, self.lacks, self._access)]:
            log.log(self._level or logging.WARNING, "link.limited", **self._where(), limits=limited)
        self.on_up(self._epoch)
        if self._subscriptions.refused:
            self.on_subscribed(self._subscriptions.refused)

    def _resume(self, receive_max: int | None) -> None:
        """Have sent again what an earlier connection left, but for what this broker would disconnect us for."""

        def unwanted(message: MQTTMessage) -> bool:
            payload = bytes(message.payload)
            return packets.too_large(message.topic, payload, message.properties, bytes_max=self.packet_bytes_max)

        for mid in self._client.withdraw(unwanted):
            self.on_answered(mid, PACKET_TOO_LARGE)
        self._client.take_turns(receive_max, retain=RETAINED not in self.lacks)

    def _on_subscribe(
        self,
        _client: Client,
        _userdata: Any,
        mid: int,
        reasons: list[ReasonCode],
        _properties: Properties | None,
    ) -> None:
        self._subscriptions.answered(mid, [Grant(reason.value, str(reason)) for reason in reasons])
        self.on_subscribed(self._subscriptions.refused)

    def _on_connect_fail(self, _client: Client, _userdata: Any) -> None:
        error = sys.exception()  # paho tells in its except clause
        self._tell("link.unreachable", trouble.of_error(error, self._access))
        self._stay_away(self._redial.lost(lived_s=0.0, chance=self._chance()))

    def _on_disconnect(
        self, _client: Client, _userdata: Any, flags: Any, reason: ReasonCode, _properties: Properties | None
    ) -> None:
        was_up, leaving = self.connected, self._leaving
        with self._acks:
            self._connected.clear()
        self._subscriptions.end()
        self._unsent.forget()
        self._learn(reason.value)
        taken_over = reason.value == SESSION_TAKEN_OVER
        if taken_over:
            log.log(
                self._level or logging.ERROR,
                "link.taken_over",
                client_id=self._access.client_id,
                next="somebody works from a copy of our state folder: give one of them another agent.id and an empty "
                "folder; or the broker takes user names for client ids: let it not (use_username_as_clientid)",
            )
            wait_s = self._redial.taken_over(chance=self._chance())
        elif leaving == "renewed":
            wait_s = 0.0
        else:
            if not self._stopping and self._told != self._epoch:
                found = trouble.of_end(
                    self._access,
                    unanswered=leaving == "unanswered",
                    goodbye=str(reason) if flags.is_disconnect_packet_from_server else None,
                    fault=getattr(self._socket, "fault", None),
                    welcomed=was_up,
                    mute=reason.value == KEEPALIVE_TIMEOUT and not flags.is_disconnect_packet_from_server,
                )
                self._tell("link.down", found)
            # However long it was up: with a broker that answers nothing it has failed.
            lived_s = self._now_s() - self._up_s if was_up and not leaving else 0.0
            wait_s = self._redial.lost(lived_s=lived_s, chance=self._chance())
        self._stay_away(wait_s)
        self.on_down("duplicate_agent" if taken_over else str(reason))

    def _learn(self, reason: int) -> None:
        """Note what the broker has not: it ends the connection over it, though its welcome did not say so."""
        if reason in LACKS:
            self._lacks[self._redial.address] |= {LACKS[reason]}

    def _tell(self, event: str, found: Trouble) -> None:
        self.trouble, self._told = found, self._epoch
        log.log(self._level or logging.WARNING, event, **self._where(), reason=found.reason, next=found.next)

    def _where(self) -> dict[str, Any]:
        host, port = self._access.addresses[self._redial.address]
        return {"host": host, "port": port}

    def _stay_away(self, wait_s: float) -> None:
        """Set when and where paho connects again; its own backoff has no jitter."""
        if not self._stopping:
            self._aim()
            self._client.reconnect_delay_set(wait_s, wait_s)  # type: ignore[arg-type]  # seconds, fractions work

    def _on_publish(
        self, _client: Client, _userdata: Any, mid: int, reason: ReasonCode, _properties: Properties | None
    ) -> None:
        if mid in self._client.unanswered:  # paho also tells of each of QoS 0, as it leaves
            self._silence.begin()
            self.on_answered(mid, reason.value)

    def _on_message(self, client: Client, _userdata: Any, message: MQTTMessage) -> None:
        self.beat()
        receipt = Receipt(self._epoch, message.mid, message.qos, len(message.payload), self)
        try:
            inbound = packets.inbound(message)
        except UnicodeDecodeError:
            client.ack(message.mid, message.qos)
            return
        self._held.add(receipt.size_bytes)
        self.on_received(inbound, receipt)


def _subscribe(client: Client, batch: Sequence[Subscription]) -> int | None:
    return client.subscribe([packets.of_subscription(each) for each in batch])[1]
