"""Just enough raw MQTT 5 (OASIS, 2019) to load a broker from a plain socket.

Encoding a PUBLISH beforehand costs nothing while the clock runs, and a library's own work is not measured.
"""

import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass

CONNACK, PUBLISH, PUBACK, SUBACK = 2, 3, 4, 9
RECEIVE_MAXIMUM = 0x21
RECEIVE_MAXIMUM_DEFAULT = 65_535
_PROPERTY_BYTES = {0x11: 4, 0x13: 2, 0x21: 2, 0x22: 2, 0x24: 1, 0x25: 1, 0x27: 4, 0x28: 1, 0x29: 1, 0x2A: 1}
"""Sizes of the CONNACK properties with a fixed size (section 2.2.2.2); the others are strings, with their length."""


@dataclass(frozen=True, slots=True)
class Packet:
    """A packet: `kind` is its type, `flags` the low half of its first byte, `body` what follows the length."""

    kind: int
    flags: int
    body: bytes

    @property
    def topic(self) -> bytes:
        """A PUBLISH's topic."""
        (length,) = struct.unpack_from(">H", self.body)
        return self.body[2 : 2 + length]


def varint(number: int) -> bytes:
    """Return a variable byte integer (section 1.5.5)."""
    encoded = bytearray()
    while True:
        number, digit = divmod(number, 128)
        encoded.append(digit | (0x80 if number else 0))
        if not number:
            return bytes(encoded)


def string(text: bytes) -> bytes:
    return struct.pack(">H", len(text)) + text


def packet(first: int, body: bytes) -> bytes:
    return bytes([first]) + varint(len(body)) + body


def connect(client_id: str, *, keepalive_s: int = 60) -> bytes:
    """Ask for a clean session that ends with the connection."""
    clean_start, no_properties = 0x02, b"\0"
    header = string(b"MQTT") + bytes([5, clean_start]) + struct.pack(">H", keepalive_s) + no_properties
    return packet(0x10, header + string(client_id.encode()))


def publish(topic: str, payload: bytes, mid: int) -> bytes:
    """Publish with QoS 1."""
    return packet(0x32, string(topic.encode()) + struct.pack(">H", mid) + b"\0" + payload)


def subscribe(topic: str) -> bytes:
    """Subscribe with QoS 0: nothing to acknowledge."""
    return packet(0x82, struct.pack(">H", 1) + b"\0" + string(topic.encode()) + b"\0")


def receive_maximum(connack: Packet) -> int:
    """Return how many unacknowledged QoS 1 messages the broker takes."""
    rest = connack.body[3:]
    while rest:
        name = rest[0]
        size = _PROPERTY_BYTES.get(name)
        if name == RECEIVE_MAXIMUM:
            return int.from_bytes(rest[1:3], "big")
        rest = rest[1 + (size if size is not None else 2 + int.from_bytes(rest[1:3], "big")) :]
    return RECEIVE_MAXIMUM_DEFAULT


class Line:
    """A connection to the broker. Raises TimeoutError when the broker says nothing for `patience_s`."""

    def __init__(self, host: str, port: int, client_id: str, *, patience_s: float = 60.0) -> None:
        self._socket = socket.create_connection((host, port), timeout=patience_s)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = b""
        self.send(connect(client_id))
        self.connack = self.expect(CONNACK)

    def send(self, encoded: bytes) -> None:
        self._socket.sendall(encoded)

    def expect(self, kind: int) -> Packet:
        """Return the next packet, which must be of this type."""
        (found,) = self.packets()
        if found.kind != kind:
            raise ConnectionError(f"a packet of type {found.kind} came where {kind} was due")
        return found

    def packets(self) -> Iterator[Packet]:
        """Wait for bytes; yield the packets that are complete with them, at least one."""
        complete = False
        while not complete:
            chunk = self._socket.recv(262_144)
            if not chunk:
                raise ConnectionError("the broker closed the connection")
            self._buffer += chunk
            start = 0
            while (cut := _cut(self._buffer, start)) is not None:
                found, start = cut
                complete = True
                yield found
            self._buffer = self._buffer[start:]


def _cut(buffer: bytes, start: int) -> tuple[Packet, int] | None:
    """Return the packet that begins at `start` and where the next does; None while it is not complete."""
    length, shift, at = 0, 0, start + 1
    while at < len(buffer):
        digit = buffer[at]
        length |= (digit & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if not digit & 0x80:
            if at + length > len(buffer):
                return None
            return Packet(buffer[start] >> 4, buffer[start] & 0x0F, buffer[at : at + length]), at + length
    return None
