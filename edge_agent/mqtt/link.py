"""The connection to the broker, and all of paho.

Owns the facts paho hides: which connection a message came on (acknowledging on another one would confirm somebody
else's), what the broker takes at most, and how long to stay away before the next try.
"""

import random
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from edge_agent.beat import Beat
from edge_agent.log import get_logger
from edge_agent.mqtt import packets, trouble
from edge_agent.mqtt.access import Access
from edge_agent.mqtt.load import Held, Unsent
from edge_agent.mqtt.redial import Redial
from edge_agent.mqtt.renewal import Renewal
from edge_agent.mqtt.sockets import Paho, hang_up, plain
from edge_agent.mqtt.trouble import Trouble
from edge_agent.mqtt.wire import Inbound, Publication

WILL_DELAY_S = 10
FILTERS_AT_ONCE = 8
"""Topic filters in one SUBSCRIBE; hosted brokers take no more (aws/aws-iot-device-sdk-js#219)."""
SESSION_TAKEN_OVER = 0x8E
PACKET_TOO_LARGE = 0x95
"""What a broker would say of a message over its maximum, and disconnect us; so we say it instead."""

log = get_logger()


@dataclass(frozen=True, slots=True)
class Subscription:
    """A topic filter, and how we want what it takes.

    `retained`: when the broker sends what it retains there: never, once the subscription is new to the broker, or on
    every connection. `as_published`: whether `Inbound.retained` means that it was published so; else, that it is such
    a kept message and not news.
    """

    topic: str
    qos: int = 1
    retained: Literal["never", "new", "always"] = "never"
    as_published: bool = True


_HANDLING = {
    "never": SubscribeOptions.RETAIN_DO_NOT_SEND,
    "new": SubscribeOptions.RETAIN_SEND_IF_NEW_SUB,
    "always": SubscribeOptions.RETAIN_SEND_ON_SUBSCRIBE,
}


@dataclass(frozen=True, slots=True)
class Welcome:
    """What the broker said of itself as it welcomed us; a session it keeps as long as we asked has no `expiry`."""

    session_expiry_s: int | None
    retain: bool
    shared: bool


@dataclass(frozen=True, slots=True)
class Receipt:
    """What acknowledges a message, on the connection it came on; `size_bytes` is its payload's."""

    epoch: int
    mid: int
    qos: int
    size_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Callbacks:
    """Whom the link tells, on its own thread: none may block or raise.

    `up` gets the number of the connection; `down` the reason; `answered` the message id and the broker's reason code;
    `subscribed` the filters the broker refused us; `will` gives the last will of a connection.
    """

    receive: Callable[[Inbound, Receipt], None]
    up: Callable[[int], None] = lambda _epoch: None
    down: Callable[[str], None] = lambda _reason: None
    answered: Callable[[int, int], None] = lambda _mid, _reason: None
    subscribed: Callable[[tuple[str, ...]], None] = lambda _refused: None
    will: Callable[[int], Publication | None] = lambda _epoch: None


class Link:
    """One MQTT 5 connection that comes back by itself, with its subscriptions; `thread` is its thread's name to us."""

    def __init__(
        self,
        access: Access,
        *,
        subscriptions: tuple[Subscription, ...],
        callbacks: Callbacks,
        thread: str = "mqtt",
        chance: Callable[[], float] = random.random,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self.beat = Beat(thread)
        self._access = access
        self._subscriptions = subscriptions
        self._subscriptions_lock = threading.Lock()
        self._refused: tuple[str, ...] = ()
        self._subscribing: dict[int | None, tuple[Subscription, ...]] = {}
        self._callbacks = callbacks
        self._chance = chance
        self._now_s = now_s
        self._up_s = 0.0
        self._epoch = 0
        self._redial = Redial(len(access.addresses))
        self._socket: Any = None
        self._told = 0
        self._stopping = False
        self._renewing = False
        self._renewal = Renewal(access, now_s=now_s)
        self.trouble: Trouble | None = None
        self.welcome: Welcome | None = None
        self._unsent = Unsent()
        self._held = Held()
        self._connected = threading.Event()
        # No acknowledgement is queued between the loss of a connection and the next one.
        self._acks = threading.Lock()
        self.packet_bytes_max: int | None = None
        self._client = self._make_client()

    def _make_client(self) -> Client:
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

    def stop(self) -> None:
        """Disconnect in order (the broker publishes no will) and end the thread."""
        self._stopping = True
        self._client.disconnect()
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
        if self._too_large(publication.topic, publication.payload, properties):
            return None
        info = self._client.publish(
            publication.topic,
            publication.payload,
            qos=publication.qos,
            retain=publication.retain,
            properties=properties,
        )
        if publication.qos == 0:
            self._unsent.add(info)
        return info.mid

    def subscribe(self, topic: str) -> None:
        """Hear this topic too, what the broker retains there first; from now on, and on every later connection."""
        wanted = Subscription(topic, retained="always")
        with self._subscriptions_lock:
            if wanted in self._subscriptions:
                return
            self._subscriptions += (wanted,)
            if self.connected:
                self._ask_for(wanted)

    def _ask_for(self, *subscriptions: Subscription) -> None:
        _, mid = self._client.subscribe([(each.topic, _options(each)) for each in subscriptions])
        self._subscribing[mid] = subscriptions

    def ack(self, receipt: Receipt) -> None:
        """Acknowledge a message, unless the connection it came on is gone: the broker sends it again on the next.

        Call it for every message, once, whatever its QoS: it is not held in memory from then on.
        """
        self._held.let_go(receipt.size_bytes)
        with self._acks:
            if receipt.qos and self.connected and receipt.epoch == self._epoch:
                self._client.ack(receipt.mid, receipt.qos)

    def attend(self) -> None:
        """Reconnect when a password or certificate was renewed. Call it often, from one thread.

        The broker keeps the session and publishes no will over it.
        """
        if self._renewal.due(connected=self.connected):
            self._renewing = True
            hang_up(self._socket)

    def _too_large(self, topic: str, payload: bytes, properties: Properties | None) -> bool:
        """Return whether the broker takes no message of this size, and say so."""
        if self.packet_bytes_max is None:
            return False
        bytes_ = packets.packet_bytes(topic, payload, properties)
        if bytes_ <= self.packet_bytes_max:
            return False
        log.error(
            "link.too_large",
            topic=topic,
            bytes=bytes_,
            bytes_max=self.packet_bytes_max,
            next="let the broker take larger packets (max_packet_size in mosquitto)",
        )
        return True

    def _drop_too_large(self, client: Client) -> None:
        """Take back what an earlier connection left with paho and this broker would disconnect us for."""
        with client._out_message_mutex:  # noqa: SLF001 - drop_out_messages, paho's own way, drops all or none
            for message in list(client._out_messages.values()):  # noqa: SLF001 - see above
                if self._too_large(message.topic, bytes(message.payload), message.properties):
                    del client._out_messages[message.mid]  # noqa: SLF001 - see above
                    self._callbacks.answered(message.mid, PACKET_TOO_LARGE)

    # What paho tells, on its thread

    def _on_pre_connect(self, client: Client, _userdata: Any) -> None:
        self._epoch += 1
        self._unsent.forget()
        self._renewal.begin()
        if self._access.username is not None:
            client.username_pw_set(self._access.username, self._access.secret())
        will = self._callbacks.will(self._epoch)
        if will is not None:
            properties = packets.properties(PacketTypes.WILLMESSAGE, WillDelayInterval=WILL_DELAY_S)
            client.will_set(will.topic, will.payload, qos=will.qos, retain=will.retain, properties=properties)

    def _on_socket_open(self, _client: Client, _userdata: Any, sock: Any) -> None:
        self._socket = sock
        plain(sock).setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def _on_connect(
        self, client: Client, _userdata: Any, _flags: Any, reason: ReasonCode, properties: Properties | None
    ) -> None:
        if reason.is_failure:
            self._tell("link.refused", trouble.of_refusal(str(reason)))
            return
        self.trouble = None
        self._up_s = self._now_s()
        self.packet_bytes_max = getattr(properties, "MaximumPacketSize", None)
        self.welcome = Welcome(
            session_expiry_s=getattr(properties, "SessionExpiryInterval", None),
            retain=bool(getattr(properties, "RetainAvailable", True)),
            shared=bool(getattr(properties, "SharedSubscriptionAvailable", True)),
        )
        self._drop_too_large(client)
        with self._subscriptions_lock:
            self._subscribing.clear()
            self._refused = ()
            for first in range(0, len(self._subscriptions), FILTERS_AT_ONCE):
                self._ask_for(*self._subscriptions[first : first + FILTERS_AT_ONCE])
            self._connected.set()
        log.info("link.up", **self._where(), connection=self._epoch)
        self._callbacks.up(self._epoch)

    def _on_subscribe(
        self,
        _client: Client,
        _userdata: Any,
        mid: int,
        reasons: list[ReasonCode],
        _properties: Properties | None,
    ) -> None:
        with self._subscriptions_lock:
            asked = self._subscribing.pop(mid, ())
        refused = tuple(each.topic for each, reason in zip(asked, reasons, strict=False) if reason.is_failure)
        self._refused += refused
        if refused:
            log.error(
                "link.subscription_refused",
                filters=refused,
                next="let the agent read these topics in the broker's ACL",
            )
        self._callbacks.subscribed(self._refused)

    def _on_connect_fail(self, _client: Client, _userdata: Any) -> None:
        error = sys.exception()  # paho tells in its except clause
        self._tell("link.unreachable", trouble.of_error(error, self._access))
        self._stay_away()

    def _on_disconnect(
        self, _client: Client, _userdata: Any, flags: Any, reason: ReasonCode, _properties: Properties | None
    ) -> None:
        was_up = self.connected
        with self._acks:
            self._connected.clear()
        self._unsent.forget()
        taken_over = reason.value == SESSION_TAKEN_OVER
        if taken_over:
            log.error(
                "link.taken_over",
                client_id=self._access.client_id,
                next="another agent has this id: give one of them another",
            )
        elif not self._stopping and not self._renewing:
            goodbye = str(reason) if flags.is_disconnect_packet_from_server else None
            self._tell_down(was_up=was_up, goodbye=goodbye)
        self._stay_away(taken_over=taken_over, lived_s=self._now_s() - self._up_s if was_up else 0.0)
        self._callbacks.down("duplicate_agent" if taken_over else str(reason))

    def _tell_down(self, *, was_up: bool, goodbye: str | None) -> None:
        """Say why a connection ended: what the broker said, in MQTT or as a TLS alert, or that it said nothing."""
        fault = getattr(self._socket, "fault", None)
        if goodbye is not None:
            self._tell("link.down", trouble.of_goodbye(goodbye))
        elif fault is not None:
            self._tell("link.down", trouble.of_error(fault, self._access))
        elif was_up:
            self._tell("link.down", trouble.LOST)
        elif self._told != self._epoch:
            self._tell("link.down", trouble.of_silence(tls=self._access.tls))

    def _tell(self, event: str, found: Trouble) -> None:
        self.trouble, self._told = found, self._epoch
        log.warning(event, **self._where(), reason=found.reason, next=found.next)

    def _where(self) -> dict[str, Any]:
        host, port = self._access.addresses[self._redial.address]
        return {"host": host, "port": port}

    def _stay_away(self, *, taken_over: bool = False, lived_s: float = 0.0) -> None:
        """Set where and when paho connects again; its own backoff has no jitter."""
        if self._stopping:
            return
        wait_s, renewing, self._renewing = 0.0, self._renewing, False
        if taken_over:
            wait_s = self._redial.taken_over(chance=self._chance())
        elif not renewing:
            wait_s = self._redial.lost(lived_s=lived_s, chance=self._chance())
        self._aim()
        self._client.reconnect_delay_set(wait_s, wait_s)  # type: ignore[arg-type]  # seconds, fractions work

    def _on_publish(
        self, _client: Client, _userdata: Any, mid: int, reason: ReasonCode, _properties: Properties | None
    ) -> None:
        self._callbacks.answered(mid, reason.value)

    def _on_message(self, client: Client, _userdata: Any, message: MQTTMessage) -> None:
        self.beat()
        receipt = Receipt(self._epoch, message.mid, message.qos, len(message.payload))
        try:
            inbound = packets.inbound(message)
        except UnicodeDecodeError:
            client.ack(message.mid, message.qos)
            return
        self._held.add(receipt.size_bytes)
        self._callbacks.receive(inbound, receipt)


def _options(subscription: Subscription) -> SubscribeOptions:
    return SubscribeOptions(
        qos=subscription.qos,
        retainAsPublished=subscription.as_published,
        retainHandling=_HANDLING[subscription.retained],
    )
