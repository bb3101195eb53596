"""What stands in MQTT 5 packets, between paho's words and ours."""

from typing import Any

import paho.mqtt.properties
from paho.mqtt.client import MQTTMessage
from paho.mqtt.exception import MalformedPacket
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

from edge_agent.base.log import get_logger
from edge_agent.mqtt.access import Access
from edge_agent.mqtt.subscriptions import Subscription
from edge_agent.protocol.messages import Inbound, Publication

log = get_logger()

_HANDLING = {
    "never": SubscribeOptions.RETAIN_DO_NOT_SEND,
    "new": SubscribeOptions.RETAIN_SEND_IF_NEW_SUB,
    "always": SubscribeOptions.RETAIN_SEND_ON_SUBSCRIBE,
}


def read_text(buffer: bytes, maxlen: int) -> tuple[str, int]:
    """Return a string of a packet's properties and the bytes it takes, its two for the length included.

    paho's own takes the connection down over U+FEFF, which MQTT allows, and over what is no UTF-8: the broker would
    send such a message again on every connection, for ever. Raises MalformedPacket when the string is cut off.
    """
    size = 2 + int.from_bytes(buffer[:2], "big")
    if maxlen < max(2, size):
        raise MalformedPacket("a string reaches beyond its packet")
    return bytes(buffer[2:size]).decode(errors="replace"), size


paho.mqtt.properties.readUTF = read_text


def of_connect(access: Access) -> Properties:
    """Return what a connection begins with."""
    return properties(
        PacketTypes.CONNECT,
        SessionExpiryInterval=access.session_expiry_s,
        ReceiveMaximum=access.receive_max,
        MaximumPacketSize=access.receive_bytes_max,
    )


def of_publication(publication: Publication) -> Properties:
    """Return what goes with a message."""
    user = [*publication.user.items()]
    if publication.traceparent is not None:
        user.append(("traceparent", publication.traceparent))
    return properties(
        PacketTypes.PUBLISH,
        MessageExpiryInterval=publication.expiry_s,
        CorrelationData=publication.correlation,
        UserProperty=user or None,
        ResponseTopic=publication.response_topic,
    )


def of_subscription(subscription: Subscription) -> tuple[str, SubscribeOptions]:
    """Return a topic filter with what goes with it."""
    options = SubscribeOptions(
        qos=subscription.qos,
        retainAsPublished=subscription.as_published,
        retainHandling=_HANDLING[subscription.retained],
    )
    return subscription.topic, options


def properties(packet_type: int, **values: Any) -> Properties:
    """Return the properties of a packet: those that have a value."""
    found: Properties = Properties(packet_type)  # type: ignore[no-untyped-call]  # paho has no types here
    for name, value in values.items():
        if value is not None:
            setattr(found, name, value)
    return found


def too_large(topic: str, payload: bytes, properties: Properties | None, *, bytes_max: int | None) -> bool:
    """Return whether a broker that takes packets of `bytes_max` takes no such message, and say so."""
    if bytes_max is None:
        return False
    packed = b"" if properties is None else properties.pack()  # type: ignore[no-untyped-call]  # paho has no types here
    # A PUBLISH of QoS 1, the longest fixed header assumed (MQTT 5, section 3.3).
    bytes_ = 5 + 2 + len(topic.encode()) + 2 + len(packed) + len(payload)
    if bytes_ <= bytes_max:
        return False
    log.error(
        "link.too_large",
        topic=topic,
        bytes=bytes_,
        bytes_max=bytes_max,
        next="let the broker take larger packets (max_packet_size in mosquitto)",
    )
    return True


def inbound(message: MQTTMessage) -> Inbound:
    """Return a message that came. Raises UnicodeDecodeError for a topic that is none; no broker should forward it."""
    found = message.properties
    user = dict(getattr(found, "UserProperty", ()))
    return Inbound(
        topic=message.topic,
        payload=message.payload,  # type: ignore[arg-type]  # a bytearray is as good
        qos=message.qos,
        retained=message.retain,
        expiry_s=getattr(found, "MessageExpiryInterval", None),
        response_topic=getattr(found, "ResponseTopic", None),
        correlation=getattr(found, "CorrelationData", None),
        traceparent=user.pop("traceparent", None),
        user=user,
    )
