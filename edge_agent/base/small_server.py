"""A server for programs on this device: few connections, none for long, a thread for each."""

import contextlib
import socket
import socketserver
import sys
import threading
from typing import Any

from edge_agent.base.awake import awake_s
from edge_agent.base.heartbeat import IDLE_S, Heartbeat

THREADS_MAX = 64
"""Threads of connections at once, cut off or not: who comes then is closed unheard."""
POLL_S = 0.5
"""How often connections are looked after while there are any, and those tried again for whom there is no descriptor."""


class SmallServer(socketserver.ThreadingMixIn, socketserver.TCPServer):
    """Lives for `connections_max` connections at once and `connection_s` of each, whatever is said on it.

    For a further one that is cut off whose time is over first.
    """

    daemon_threads = True
    block_on_close = False
    connections_max: int
    connection_s: float
    thread_name: str

    def __init__(self, address: Any, handler: type[socketserver.BaseRequestHandler]) -> None:
        self._ends_s: dict[Any, float] = {}
        self.full = False
        """No descriptor was left for who wants to be let in: they would be tried without end."""
        super().__init__(address, handler)

    def serve(self, stopping: threading.Event, beat: Heartbeat) -> None:
        """Answer until `stopping` is set and `wake` called; then hang up on everybody."""
        while not stopping.is_set():
            self.timeout = POLL_S if self._ends_s else IDLE_S
            beat(self.timeout)
            self.handle_request()
            beat()
            if self.full:
                stopping.wait(POLL_S)
            self.cut(awake_s())
        self.server_close()
        self.cut(float("inf"))

    def wake(self) -> None:
        """Let who serves look whether it is to stop; nobody is let in any more."""
        with contextlib.suppress(OSError):  # it has stopped
            self.socket.shutdown(socket.SHUT_RDWR)

    def get_request(self) -> tuple[Any, Any]:
        """Let somebody in. Raises OSError."""
        try:
            request = super().get_request()
        except ConnectionAbortedError:  # it was gone before we looked
            raise
        except OSError:
            self.full = True
            raise
        self.full = False
        return request

    def verify_request(self, request: Any, client_address: Any) -> bool:  # noqa: ARG002 - the library's signature
        """Make room for who comes: one gives way. What is cut off and does not end bounds all of it."""
        present = self._ends_s.copy()
        waiting = {each: end_s for each, end_s in present.items() if end_s > 0}
        if len(waiting) >= self.connections_max:
            self._ends_s[min(waiting, key=waiting.__getitem__)] = 0.0
            self.cut(0.0)
        return len(present) < THREADS_MAX

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer on a thread of its own."""
        self._ends_s[request] = awake_s() + self.connection_s
        threading.Thread(
            target=self.process_request_thread, args=(request, client_address), name=self.thread_name, daemon=True
        ).start()

    def prolong(self, request: Any, seconds: float) -> None:
        """Let a connection live on for so long; one that is cut off meanwhile stays so."""
        self._ends_s[request] = awake_s() + seconds

    def shutdown_request(self, request: Any) -> None:
        """Forget a connection that has ended."""
        self._ends_s.pop(request, None)
        super().shutdown_request(request)

    def cut(self, now_s: float) -> None:
        """End the connections whose time has passed; their threads see it as an end of what is said."""
        for request in [each for each, end_s in self._ends_s.copy().items() if end_s <= now_s]:
            try:
                request.shutdown(socket.SHUT_RDWR)
            except OSError:  # it has ended meanwhile
                self._ends_s.pop(request, None)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - the library's signature
        """Leave a broken connection to its end; any other fault is ours, and ends the agent as everywhere."""
        error = sys.exception()
        if error is not None and not isinstance(error, OSError):
            raise error
