"""A WebSocket front for a broker that has none, as Debian's mosquitto 2.0.11: frames in, bytes out (RFC 6455)."""

import base64
import hashlib
import select
import socket
import struct
import threading
from contextlib import contextmanager, suppress
from types import SimpleNamespace

MAGIC = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


def _shake_hands(client, path):
    heard = b""
    while b"\r\n\r\n" not in heard:
        if not (piece := client.recv(4096)):
            raise ConnectionError
        heard += piece
    request, *lines = heard.partition(b"\r\n\r\n")[0].split(b"\r\n")
    pairs = (line.partition(b":") for line in lines)
    headers = {name.lower(): value.strip() for name, _, value in pairs}
    if request.split()[1] != path.encode() or headers[b"sec-websocket-protocol"] != b"mqtt":
        client.sendall(b"HTTP/1.1 404 Not Found\r\nConnection: close\r\n\r\n")
        raise ConnectionError
    accept = base64.b64encode(hashlib.sha1(headers[b"sec-websocket-key"] + MAGIC).digest())
    client.sendall(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Protocol: mqtt\r\nSec-WebSocket-Accept: " + accept + b"\r\n\r\n"
    )


def _first_frame(heard):
    """Return opcode, body and length of the first whole frame; None while there is none."""
    if len(heard) < 14:
        heard = heard + bytes(14)  # enough for any head; a size beyond what came is no whole frame
        whole = len(heard) - 14
    else:
        whole = len(heard)
    if whole < 2:
        return None
    assert heard[1] & 0x80, "a client's frame is masked"
    size, head = heard[1] & 0x7F, 2
    if size >= 126:
        width = 2 if size == 126 else 8
        size, head = int.from_bytes(heard[2 : 2 + width], "big"), 2 + width
    length = head + 4 + size
    if whole < length:
        return None
    mask = bytes(heard[head : head + 4]) * (size // 4 + 1)
    body = int.from_bytes(heard[head + 4 : length], "big") ^ int.from_bytes(mask[:size], "big")
    return heard[0] & 0x0F, body.to_bytes(size, "big"), length


def _pump(client, onward):
    """Carry frames one way and bytes the other, until one side ends. One thread: a TLS socket bears no two."""
    client.sendall(bytes([0x89, 2]) + b"hi")  # a ping, which is answered
    heard = bytearray()
    while True:
        buffered = getattr(client, "pending", int)()
        ready = [client] if buffered else select.select([client, onward], [], [], 60)[0]
        if client in ready:
            piece = client.recv(65_536)
            heard += piece
            while (frame := _first_frame(heard)) is not None:
                opcode, body, length = frame
                del heard[:length]
                if opcode == 0x2:
                    onward.sendall(body)
            if not piece:
                return
        if onward in ready:
            if not (data := onward.recv(65_535)):
                return
            head = bytes([0x82, len(data)]) if len(data) < 126 else bytes([0x82, 126]) + struct.pack("!H", len(data))
            client.sendall(head + data)


def _serve(raw, broker, path, context):
    with suppress(OSError):
        client = context.wrap_socket(raw, server_side=True) if context else raw
        with client:
            _shake_hands(client, path)
            with socket.create_connection((broker.host, broker.port)) as onward:
                _pump(client, onward)


@contextmanager
def front(broker, *, path="/mqtt", context=None):
    """Listen for WebSockets, with TLS where a context is given; yield where."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        threads = []

        def accept():
            with suppress(OSError):
                while True:
                    client, _ = server.accept()
                    client.settimeout(60)
                    threads.append(threading.Thread(target=_serve, args=(client, broker, path, context), daemon=True))
                    threads[-1].start()

        accepting = threading.Thread(target=accept, daemon=True)
        accepting.start()
        yield SimpleNamespace(host="127.0.0.1", port=server.getsockname()[1])
        server.shutdown(socket.SHUT_RDWR)
        accepting.join(10)
    for thread in threads:
        thread.join(10)
