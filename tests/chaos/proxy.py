"""A TCP proxy on loopback that can be as bad as a real network: it cuts, stalls, delays and swallows."""

import contextlib
import select
import socket
import struct
import threading

PIECE_BYTES = 16_384
BUFFER_BYTES = 16_384
"""Small socket buffers: a stalled sender shall feel it after kilobytes, as over radio, not after megabytes."""
LOOK_S = 0.05
"""How often a pump looks whether the weather has changed."""
RESET = struct.pack("ii", 1, 0)
"""SO_LINGER of zero seconds: closing sends RST instead of FIN."""


class Proxy:
    """Stands between clients and one server; use it as a context manager. `host` and `port` are where to connect."""

    def __init__(self, server):
        self._server = server
        self._listener = socket.socket()
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)  # inherited by what it accepts
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen()
        self.host, self.port = self._listener.getsockname()
        self._pairs = set()
        self._threads = []
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._calm = threading.Event()
        self._calm.set()
        self.delay_s = 0.0
        self.accepted = 0
        """Connections so far."""

    def __enter__(self):
        self._spawn("proxy-accept", self._accept)
        return self

    def __exit__(self, *_exception):
        self._closing.set()
        self.cut()
        for thread in list(self._threads):
            thread.join(10)
            assert not thread.is_alive(), f"{thread.name} did not end"
        self._listener.close()

    # The weather

    def cut(self):
        """Reset every connection."""
        with self._lock:
            for pair in self._pairs:
                pair.reset()

    def half_open(self):
        """From now on swallow what the present connections carry; they stay open. New ones work."""
        with self._lock:
            for pair in self._pairs:
                pair.swallows = True

    @contextlib.contextmanager
    def stalled(self):
        """Read nothing from anybody inside the block."""
        self._calm.clear()
        try:
            yield
        finally:
            self._calm.set()

    @contextlib.contextmanager
    def delayed(self, delay_s):
        """Let every piece wait inside the block."""
        self.delay_s = delay_s
        try:
            yield
        finally:
            self.delay_s = 0.0

    # The threads

    def _spawn(self, name, target, *arguments):
        thread = threading.Thread(target=target, args=arguments, name=name)
        self._threads.append(thread)
        thread.start()

    def _accept(self):
        while not self._closing.is_set():
            if readable(self._listener):
                self._connect(self._listener.accept()[0])

    def _connect(self, client):
        try:
            server = socket.create_connection((self._server.host, self._server.port), timeout=5)
        except OSError:  # the server is down, and so are we to this client
            client.close()
            return
        server.settimeout(None)
        pair = Pair(client, server)
        with self._lock:
            self._pairs.add(pair)
            self.accepted += 1
        self._spawn(f"proxy-{self.accepted}", self._carry, pair)

    def _carry(self, pair):
        """Carry bytes both ways until either end is gone or we close."""
        back = threading.Thread(target=self._pump, args=(pair, pair.server, pair.client), name="proxy-back")
        back.start()
        self._pump(pair, pair.client, pair.server)
        back.join()
        with self._lock:
            self._pairs.remove(pair)
            pair.close()

    def _pump(self, pair, source, sink):
        pause = threading.Event()
        try:
            while not self._closing.is_set():
                if not self._calm.wait(LOOK_S) or not readable(source):
                    continue
                piece = source.recv(PIECE_BYTES)
                if not piece:
                    break
                if self.delay_s:
                    pause.wait(self.delay_s)
                if not pair.swallows:
                    sink.sendall(piece)
        except OSError:
            pass  # cut, or a peer is gone: the same to us
        finally:
            pair.hang_up()


class Pair:
    """Both ends of one connection through the proxy."""

    def __init__(self, client, server):
        self.client, self.server = client, server
        self.swallows = False
        for end in client, server:
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)

    def reset(self):
        """Make both peers see a reset, and both pumps end."""
        for end in self.client, self.server:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self.hang_up()

    def hang_up(self):
        """End both pumps, also one that waits for a peer to read."""
        for end in self.client, self.server:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self):
        """Free the sockets."""
        self.client.close()
        self.server.close()


def readable(end):
    """Whether there is something to read, or the end of it; waits a little."""
    return bool(select.select([end], [], [], LOOK_S)[0])
