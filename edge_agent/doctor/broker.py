"""The way to the broker, tried: files, addresses, TLS, who we are to it, what it lets us do, what it keeps for us.

On connections of its own, so that a running agent is not thrown off; nothing that is published has a reader.
"""

import queue
import socket
import ssl
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from edge_agent import RELEASED
from edge_agent.doctor import greeting
from edge_agent.doctor.finding import Finding, failed, ok, unknown, warning
from edge_agent.mqtt import certificate, trouble
from edge_agent.mqtt.access import Access, CredentialError, located
from edge_agent.mqtt.link import Link
from edge_agent.mqtt.session import new
from edge_agent.mqtt.subscriptions import FILTERS_AT_ONCE, Subscription
from edge_agent.mqtt.welcome import Welcome
from edge_agent.protocol.messages import Publication
from edge_agent.protocol.topics import Topics
from edge_agent.settings.load import Settings
from edge_agent.watch import rules, watcher

CONNECT_S = 10.0
ANSWER_S = 5.0
SOON = timedelta(days=30)
REFUSED = 0x80
NOBODY = "doctor-nobody"
"""An agent and a requester that do not exist."""
NEW_ACL = "edge-agent acl writes what mosquitto needs; then: systemctl reload mosquitto"


def look(settings: Settings) -> Iterator[Finding]:
    """Try everything that has to do with the broker, in the order in which a connection comes about."""
    access = Access.of(settings.mqtt, client_id=f"{settings.agent.id}.doctor", clean_start=True)
    yield from files(settings, access)
    try:
        access.check()
    except CredentialError as error:
        found = trouble.of_error(error, access)
        yield failed("credentials", found.reason, found.next)
        return
    reached = False
    for address in access.addresses:
        finding = _address(access, address)
        reached |= finding.level in {"ok", "warning"}
        yield finding
    if reached:
        yield from _talk(settings, access)


def files(settings: Settings, access: Access) -> Iterator[Finding]:
    """Look at the files that say who we are, and whether they go with the agent's id."""
    for key, file in (("password_file", access.password_file), ("tls_key_file", access.tls_key_file)):
        if file is not None:
            yield from _secret(f"mqtt.{key}", file)
    if access.tls_cert_file is not None:
        yield _own_certificate(access.tls_cert_file, settings.agent.id, named=access.username is not None)
    if access.username is not None and access.username != settings.agent.id:
        yield warning(
            "mqtt.username",
            f"is {access.username}, not the agent's id, which is what the broker's ACL lets it speak as",
            f"set mqtt.username = {settings.agent.id!r}, or agent.id = {access.username!r}",
        )
    if access.username is not None and not access.tls and access.host not in {"127.0.0.1", "::1", "localhost"}:
        yield warning("mqtt.tls", "the password crosses the network for all to read", "set mqtt.tls_ca_file")


def _secret(about: str, file: Path) -> Iterator[Finding]:
    try:
        mode = located(file).stat().st_mode
    except OSError:
        return  # said with what reads it
    if mode & 0o077:
        yield warning(about, f"{file} may be read by others", f"chmod 600 {located(file)}")


def _own_certificate(file: Path, agent: str, *, named: bool) -> Finding:
    about = "mqtt.tls_cert_file"
    try:
        found = certificate.read(located(file))
    except (OSError, ValueError) as error:
        return failed(about, f"{file}: {getattr(error, 'strerror', None) or error}", "name the agent's certificate")
    now = datetime.now(UTC)
    renew = f'openssl x509 -req … -out {file} for "/CN={agent}", as edge-agent acl --proof certificates prints it'
    if now < RELEASED:
        return unknown(about, f"nobody can say whether it is valid while the clock shows {now:%Y-%m-%d}")
    if not found.begins <= now <= found.ends:
        said = f"is valid {found.begins:%Y-%m-%d} to {found.ends:%Y-%m-%d} only, and the clock shows {now:%Y-%m-%d}"
        return failed(about, said, renew)
    if not named and found.common_name != agent:
        return failed(about, f"its common name is {found.common_name}, the agent's id {agent}", renew)
    if found.ends - now < SOON:
        return warning(about, f"expires on {found.ends:%Y-%m-%d}", renew)
    return ok(about, f"of {found.common_name}, until {found.ends:%Y-%m-%d}")


def _address(access: Access, address: tuple[str, int]) -> Finding:
    """Connect, and shake hands where TLS is spoken."""
    host, port = address
    about = f"{host}:{port}"
    try:
        with socket.create_connection(address, timeout=CONNECT_S) as sock:
            context = access.context()
            if context is None:
                return ok(about, "answers")
            with context.wrap_socket(sock, server_hostname=host) as wrapped:
                return _peer(about, wrapped)
    except (OSError, UnicodeError) as error:
        found = trouble.of_error(error, access)
        return failed(about, found.reason, found.next)


def _peer(about: str, wrapped: ssl.SSLSocket) -> Finding:
    peer = wrapped.getpeercert() or {}
    ends = datetime.fromtimestamp(ssl.cert_time_to_seconds(str(peer["notAfter"])), UTC)
    said = f"answers with {wrapped.version()}, its certificate is valid until {ends:%Y-%m-%d}"
    if ends - datetime.now(UTC) < SOON:
        return warning(about, said, "renew the broker's certificate")
    return ok(about, said)


@dataclass(frozen=True, slots=True)
class _Talk:
    """A connection, and what the broker answers on it."""

    link: Link
    answers: "queue.SimpleQueue[tuple[int, int]]"

    def publish(self, topic: str) -> bool | None:
        """Return whether the broker takes a message; None when it does not say."""
        mid = self.link.publish(Publication(topic, b"{}", qos=1, expiry_s=1))
        try:
            while True:
                answered, reason = self.answers.get(timeout=ANSWER_S)
                if answered == mid:
                    return reason < REFUSED
        except queue.Empty:
            return None


def _talk(settings: Settings, access: Access) -> Iterator[Finding]:
    """Connect as the agent's user, ask for its session, try what it may say and hear."""
    topics = Topics(settings.mqtt.root, settings.agent.id)
    heard = (topics.commands, topics.event("presence"), *map(topics.pool_cancels, settings.agent.pools))
    wanted = tuple(map(Subscription, heard)) + _watched(settings, topics)
    refused: queue.SimpleQueue[Mapping[str, str]] = queue.SimpleQueue()
    answers: queue.SimpleQueue[tuple[int, int]] = queue.SimpleQueue()
    link = Link(access, subscriptions=wanted)
    link.on_received.connect(lambda _inbound, receipt: receipt.acknowledge())
    link.on_answered.connect(lambda mid, reason: answers.put((mid, reason)))
    link.on_subscribed.connect(refused.put)
    link.start()
    try:
        if not _welcomed(link, access):
            found = link.excuse or trouble.LOST
            if found.reason in (trouble.MUTE, trouble.HUNG_UP):
                found = _asked(access) or found
            yield failed("login", found.reason, found.next)
            return
        yield ok("login", f"the broker welcomes {access.username or 'us'}")
        yield from session(settings, link.welcome)
        yield _subscriptions(refused, answers=-(-len(wanted) // FILTERS_AT_ONCE))
        yield from _rights(topics, _Talk(link, answers))
    finally:
        link.stop(forget=True)
    if access.username is not None:
        yield _anonymous(access)


def _asked(access: Access) -> trouble.Trouble | None:
    """Return what speaks at an address of ours, if it is no broker of MQTT 5."""
    found = (greeting.ask(access, address) for address in access.addresses)
    return next((each for each in found if each), None)


def session(settings: Settings, welcome: Welcome | None) -> Iterator[Finding]:
    """Look at what the broker grants, and whether the agent can do with it (pure)."""
    if welcome is None:
        return
    asked_s, granted_s = settings.mqtt.session_expiry_s, welcome.session_expiry_s
    if granted_s is not None and granted_s < min(asked_s, settings.queue.ttl_max_s):
        yield warning(
            "session",
            f"the broker keeps jobs for {granted_s} s while the agent is away, less than a job may live",
            "raise it at the broker (persistent_client_expiration in mosquitto)",
        )
    else:
        yield ok("session", f"the broker keeps jobs while the agent is away, for {granted_s or asked_s} s")
    if not welcome.wildcards:
        yield failed("session", "the broker has no wildcards in filters: no job is heard", "use another broker")
    if not welcome.retain:
        yield failed("session", "the broker retains nothing: presence is lost", "let the broker retain messages")
    if settings.agent.pools and not welcome.shared:
        yield failed("pools", "the broker has no shared subscriptions", "use another broker, or set agent.pools = []")


def _watched(settings: Settings, topics: Topics) -> tuple[Subscription, ...]:
    """Return what is watched, as cheaply as it can be had: what comes is let go."""
    wanted = watcher.subscriptions(rules.read(settings, topics))
    return tuple(Subscription(each.topic, qos=0) for each in wanted)


def _subscriptions(refused: "queue.SimpleQueue[Mapping[str, str]]", *, answers: int) -> Finding:
    """Wait for the broker's answers, of which each tells what was refused so far."""
    topics: Mapping[str, str] = {}
    try:
        for _ in range(answers):
            topics = refused.get(timeout=ANSWER_S)
    except queue.Empty:
        return unknown("hearing", "the broker did not answer the subscriptions")
    if topics:
        return failed("hearing", f"the broker refuses {', '.join(topics)}", NEW_ACL)
    return ok(
        "hearing", "every subscription is granted; mosquitto grants all and then withholds, only a job shows that"
    )


def _rights(topics: Topics, talk: _Talk) -> Iterator[Finding]:
    """Say what the agent says, then what only others may."""
    other = Topics(topics.root, NOBODY)
    needed = {
        "speaking": topics.event("doctor"),
        "answering": topics.inbox(NOBODY, "doctor", "status"),
    }
    for about, topic in needed.items():
        taken = talk.publish(topic)
        if taken is None:
            yield unknown(about, f"the broker does not answer on {topic}")
        elif taken:
            yield ok(about, f"the broker takes {topic}")
        else:
            yield failed(about, f"the broker refuses {topic}", NEW_ACL)
    foreign = (
        other.event("doctor"),
        other.inbox(NOBODY, "doctor", "status"),
        topics.admin(NOBODY).replace("+", "doctor"),
    )
    taken_too = [topic for topic in foreign if talk.publish(topic)]
    if taken_too:
        yield warning("identity", f"the broker lets this agent speak as others: {', '.join(taken_too)}", NEW_ACL)
    else:
        yield ok("identity", "the broker lets this agent speak for itself only")


def _anonymous(access: Access) -> Finding:
    link = Link(replace(access, username=None, password=None, password_file=None, session=new()), subscriptions=())
    link.start()
    try:
        if _welcomed(link, access):
            return warning("strangers", "the broker welcomes who gives no name", "allow_anonymous false in mosquitto")
    finally:
        link.stop()
    return ok("strangers", "the broker turns away who gives no name")


def _welcomed(link: Link, access: Access) -> bool:
    """Wait until the broker welcomes us, or every address has failed us once."""
    end_s = time.monotonic() + CONNECT_S
    while time.monotonic() < end_s and not link.wait_connected(0.05):
        if link.trouble is not None and link.connections >= len(access.addresses):
            break
    return link.connected
