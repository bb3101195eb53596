"""What a broker grants and what it lacks, as far as it has said (MQTT 5, sections 3.2.2.3 and 3.14.2.1). PURE."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from edge_agent.mqtt.access import Access

SHARED, WILDCARDS, RETAINED = "shared subscriptions", "wildcard subscriptions", "retained messages"
LACKS = {0x9A: RETAINED, 0x9E: SHARED, 0xA2: WILDCARDS}
"""What a broker lacks that refuses a connection, or ends it, with such a reason code, whatever its welcome said."""


@dataclass(frozen=True, slots=True)
class Welcome:
    """What the broker said of itself as it welcomed us; a session it keeps as long as we asked has no `expiry`.

    `resumed`: it had a session of ours. `keepalive_s`, `client_id`: what it wants in place of ours, if it does.
    """

    session_expiry_s: int | None
    retain: bool
    shared: bool
    resumed: bool = False
    wildcards: bool = True
    qos_max: int = 2
    keepalive_s: int | None = None
    client_id: str | None = None

    @property
    def lacks(self) -> frozenset[str]:
        """What it says that it has not."""
        has = {SHARED: self.shared, WILDCARDS: self.wildcards, RETAINED: self.retain}
        return frozenset(name for name, there in has.items() if not there)


def read(properties: Any, *, resumed: bool) -> Welcome:
    """Return what the properties of a CONNACK say; what is absent stands for its default."""

    def value(name: str, default: Any) -> Any:
        return getattr(properties, name, default)

    return Welcome(
        session_expiry_s=value("SessionExpiryInterval", None),
        retain=bool(value("RetainAvailable", True)),
        shared=bool(value("SharedSubscriptionAvailable", True)),
        resumed=resumed,
        wildcards=bool(value("WildcardSubscriptionAvailable", True)),
        qos_max=value("MaximumQoS", 2),
        keepalive_s=value("ServerKeepAlive", None),
        client_id=value("AssignedClientIdentifier", None),
    )


def limits(welcome: Welcome, lacks: frozenset[str], access: Access) -> Iterator[str]:
    """Yield in words what we do not get of what we ask for, and go on without."""
    granted_s = welcome.session_expiry_s
    if granted_s is not None and granted_s < access.session_expiry_s:
        yield f"the broker keeps our session for {granted_s} s, not {access.session_expiry_s} s, while we are away"
    if welcome.client_id not in (None, access.identity):
        yield "the broker gives us another client id: after a reconnect it may not know our session"
    for each in sorted(lacks):
        yield f"the broker has no {each}"


def obstacle(topic_filter: str, lacks: frozenset[str]) -> str:
    """Return why a broker that lacks this takes no such subscription; empty when it may."""
    shared = topic_filter.startswith("$share/")
    wild = any(level in ("+", "#") for level in topic_filter.split("/"))
    missing = [each for each, wanted in ((SHARED, shared), (WILDCARDS, wild)) if wanted and each in lacks]
    return f"the broker has no {missing[0]}" if missing else ""
