"""A broker that does as it is told: real MQTT 5 bytes on loopback, for what no broker at hand says or does.

See the standard (MQTT 5, sections 3.1 to 3.14) for the packets.
"""

import queue
import socket
import struct
import threading
from contextlib import suppress
from dataclasses import dataclass, field

from fakes import PATIENCE_S

SUCCESS, GRANTED = 0x00, 0x01


@dataclass(frozen=True)
class Said:
    """A message that a client published; `connection` counts from 1."""

    connection: int
    topic: str
    payload: bytes
    qos: int
    retain: bool
    mid: int


@dataclass
class Visit:
    """One connection: what its CONNECT said, and what was asked on it."""

    number: int
    client_id: str
    clean_start: bool
    will: tuple[str, int, bool] | None
    sock: socket.socket
    filters: list[tuple[str, int]] = field(default_factory=list)
    goodbye: bytes | None = None
    """What its DISCONNECT said."""

    def send(self, packet):
        self.sock.sendall(packet)

    def hang_up(self):
        with suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)

    def disconnect(self, reason):
        """Say goodbye as a server does."""
        self.send(bytes([0xE0, 2, reason, 0]))
        self.hang_up()

    def deliver(self, topic, payload=b"", *, mid=1):
        """Send a message of QoS 1."""
        self.send(packet(0x32, text(topic) + struct.pack(">H", mid) + b"\0" + payload))


class Scripted:
    """Use it as a context manager. Each of these may be changed while it runs:

    `properties`: of every CONNACK, packed; `welcome(visit)` returns a CONNACK's reason code, None for silence.
    `grant(visit, topic_filter)` returns a SUBACK's reason code, None to answer nothing; it may also hang up.
    `confirms`: whether PUBLISH is answered. `sessions`: client ids whose session is there already.
    """

    def __init__(self, properties=b"", *, welcome=None, grant=None):
        self.properties = properties
        self.welcome = welcome or (lambda _visit: SUCCESS)
        self.grant = grant or (lambda _visit, _filter: GRANTED)
        self.confirms = True
        self.sessions = set()
        self.visits = []
        self.said = []
        self.heard = queue.Queue()
        """Every message, as it comes."""
        self._lock = threading.Condition()
        self._server = socket.create_server(("127.0.0.1", 0))
        self.host, self.port = self._server.getsockname()
        self._threads = [threading.Thread(target=self._accept, name="scripted")]

    def __enter__(self):
        self._threads[0].start()
        return self

    def __exit__(self, *raised):
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        for visit in self.visits:
            visit.hang_up()
        for thread in list(self._threads):
            thread.join(PATIENCE_S)

    def confirm(self, said, reason=SUCCESS):
        """Answer a message."""
        visit = self.visits[said.connection - 1]
        with suppress(OSError):
            visit.send(bytes([0x40, 3]) + said.mid.to_bytes(2, "big") + bytes([reason]))

    def of(self, client_id):
        """The connections of a client."""
        return [visit for visit in list(self.visits) if visit.client_id == client_id]

    def _accept(self):
        while True:
            try:
                sock, _ = self._server.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(sock,), name="scripted-client")
            self._threads.append(thread)
            thread.start()

    def _serve(self, sock):
        with sock, sock.makefile("rb") as stream, suppress(OSError, EOFError):
            visit = None
            while True:
                head, body = read(stream)
                kind = head & 0xF0
                if kind == 0x10:
                    visit = self._connect(sock, body)
                elif kind == 0x30:
                    self._publish(visit, head, body)
                elif kind == 0x80:
                    self._subscribe(visit, body)
                elif kind == 0xA0:
                    visit.send(packet(0xB0, body[:2] + b"\0\0"))
                elif kind == 0xC0:
                    visit.send(b"\xd0\0")
                elif kind == 0xE0:
                    visit.goodbye = body
                    return

    def _connect(self, sock, body):
        flags, at = body[7], 10
        at = skip_properties(body, at)
        client_id, at = string(body, at)
        will = None
        if flags & 0x04:
            at = skip_properties(body, at)
            topic, at = string(body, at)
            will = (topic, flags >> 3 & 3, bool(flags & 0x20))
        with self._lock:
            visit = Visit(len(self.visits) + 1, client_id, bool(flags & 0x02), will, sock)
            self.visits.append(visit)
        reason = self.welcome(visit)
        if reason is not None:
            present = bytes([client_id in self.sessions and not reason])
            visit.send(packet(0x20, present + bytes([reason]) + length(len(self.properties)) + self.properties))
        if reason:
            visit.hang_up()
        return visit

    def _publish(self, visit, head, body):
        topic, at = string(body, 0)
        qos, mid = head >> 1 & 3, 0
        if qos:
            mid, at = int.from_bytes(body[at : at + 2], "big"), at + 2
        said = Said(visit.number, topic, body[skip_properties(body, at) :], qos, bool(head & 1), mid)
        self.said.append(said)
        if qos and self.confirms:
            self.confirm(said)
        self.heard.put(said)

    def _subscribe(self, visit, body):
        at, codes = skip_properties(body, 2), []
        while at < len(body):
            topic_filter, at = string(body, at)
            visit.filters.append((topic_filter, body[at] & 3))
            at += 1
            codes.append(self.grant(visit, topic_filter))
        if None not in codes:
            visit.send(packet(0x90, body[:2] + b"\0" + bytes(codes)))


def read(stream):
    """Return the next packet's first byte and what follows its length. Raises EOFError at the end."""
    head = stream.read(1)
    size = shift = 0
    while head:
        byte = stream.read(1)
        if not byte:
            break
        size, shift = size | (byte[0] & 0x7F) << shift, shift + 7
        if byte[0] < 0x80:
            return head[0], stream.read(size)
    raise EOFError


def length(size):
    """A variable byte integer."""
    found = bytearray()
    while True:
        size, low = size >> 7, size & 0x7F
        found.append(low | (0x80 if size else 0))
        if not size:
            return bytes(found)


def packet(head, body):
    return bytes([head]) + length(len(body)) + body


def text(value):
    return struct.pack(">H", len(value.encode())) + value.encode()


def string(body, at):
    size = int.from_bytes(body[at : at + 2], "big")
    return body[at + 2 : at + 2 + size].decode(), at + 2 + size


def skip_properties(body, at):
    """Where what follows the properties begins that begin here."""
    size = shift = 0
    while True:
        byte, at = body[at], at + 1
        size, shift = size | (byte & 0x7F) << shift, shift + 7
        if byte < 0x80:
            return at + size
